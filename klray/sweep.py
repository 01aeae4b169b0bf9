"""Sweep: score what a store lacks, on Ray actors, whatever happens to some of them."""

from __future__ import annotations

import dataclasses
import logging
import random
import time
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import ray
import ray.exceptions

from klray.checkpoints import Checkpoint, Hub, Unavailable
from klray.cluster import RaySettings, Shape, connected
from klray.errors import CheckpointError, KlrayError, Reason, StoreError
from klray.progress import Progress
from klray.scorer import Outcome, Scorer, ScoringSettings
from klray.store import Failure, Identity, Store, unresolved
from klray.texts import TextSet

log = logging.getLogger("klray")

PATIENCE_SECONDS = 30.0  # between two words about workers that have not started


@dataclasses.dataclass(frozen=True)
class SweepReport:
    """How a sweep ended."""

    scored: int  # columns that this sweep committed
    present: int  # columns that were there before
    elsewhere: int  # columns that other jobs committed meanwhile
    failures: tuple[Failure, ...]
    tokens: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why an actor could not score a checkpoint; returned, not raised, so that nothing has to survive unpickling."""

    reason: Reason
    message: str


@dataclasses.dataclass
class _Work:
    checkpoint: Checkpoint
    identity: Identity
    attempts: int = 0


@dataclasses.dataclass
class _Worker:
    actor: Any
    work: _Work | None = None  # being scored
    ahead: _Work | None = None  # being fetched; another worker may take it when nothing else is left
    last_repository: str = ""
    ready: bool = False
    starts: int = 0


class ScorerActor:
    """A Scorer inside a Ray actor."""

    def __init__(self, *arguments: Any):
        self.scorer = Scorer(*arguments)

    def ready(self) -> bool:
        """Answers once the scorer stands."""
        return True

    def score(self, checkpoint: Checkpoint, upcoming: Checkpoint | None) -> Outcome | Refusal:
        """As ``Scorer.score``; what concerns this checkpoint alone is returned as a Refusal."""
        try:
            return self.scorer.score(checkpoint, upcoming)
        except CheckpointError as error:
            return Refusal(error.reason, error.message)
        except StoreError:
            raise
        except Exception as error:
            log.exception("%s@%s", checkpoint.repository, checkpoint.revision)
            return Refusal("unexpected", f"{type(error).__name__}: {error}")


def missing(
    checkpoints: Iterable[Checkpoint], committed: Set[str], settings: ScoringSettings, text_set: str
) -> tuple[list[Checkpoint], list[Checkpoint]]:
    """Split checkpoints into (missing, present) by the keys that a store has committed for a text set's fingerprint."""
    keys: dict[str, Checkpoint] = {}
    for checkpoint in checkpoints:
        keys.setdefault(settings.identity(checkpoint, text_set).key, checkpoint)
    return (
        [checkpoint for key, checkpoint in keys.items() if key not in committed],
        [checkpoint for key, checkpoint in keys.items() if key in committed],
    )


def sweep(
    store: Store,
    text_set: TextSet,
    checkpoints: Sequence[Checkpoint],
    unavailable: Sequence[Unavailable],
    hub: Hub,
    settings: ScoringSettings,
    ray_settings: RaySettings,
    storage_options: Mapping[str, Any] | None = None,
    resolved: Iterable[tuple[str, str]] = (),
) -> SweepReport:
    """Score every checkpoint that the store lacks; failures are recorded with their reasons and the sweep goes on.

    ``resolved`` are the (repository, revision or pattern) that were asked for and found: earlier records that they
    could not be are withdrawn.

    Raises
    ------
    StoreError
        The store refuses to be written; what was committed before is safe.
    KlrayError
        The cluster cannot carry the actors that were asked for.
    """
    start = time.monotonic()
    asked = [(each.repository, each.revision) for each in checkpoints] + list(resolved)
    store.withdraw_failures(_unresolved(store, repository, revision, settings) for repository, revision in asked)
    todo, present = missing(checkpoints, store.committed_keys(), settings, store.texts.fingerprint)
    failed = [_record_unavailable(store, each, settings) for each in unavailable]
    if not todo:
        return SweepReport(0, len(present), 0, tuple(failed), 0, time.monotonic() - start)
    with connected(ray_settings) as shape:
        settings = dataclasses.replace(settings, device=shape.device)
        shape = dataclasses.replace(shape, workers=min(shape.workers, len(todo)))
        arguments = (hub, store.url, dict(storage_options or {}), ray.put(text_set), settings)
        run = _Run(store, settings, shape, arguments, todo, ray_settings.max_attempts)
        log.info("scoring %d checkpoints on %d %s workers", len(todo), shape.workers, shape.device)
        with Progress(len(todo), "score", "checkpoint") as progress:
            run.go(progress)
    return SweepReport(
        scored=run.scored,
        present=len(present),
        elsewhere=run.elsewhere,
        failures=tuple(failed + run.failures),
        tokens=run.tokens,
        seconds=time.monotonic() - start,
    )


class _Run:
    """One sweep's state: what waits, who does what, what came of it."""

    def __init__(
        self,
        store: Store,
        settings: ScoringSettings,
        shape: Shape,
        arguments: tuple[Any, ...],
        todo: Sequence[Checkpoint],
        max_attempts: int,
    ):
        self.store, self.settings, self.shape, self.arguments = store, settings, shape, arguments
        self.max_attempts = max_attempts
        self.waiting = deque(_Work(each, settings.identity(each, store.texts.fingerprint)) for each in todo)
        # Jobs that score the same checkpoints at the same time begin at different places, and pass over what they meet.
        self._go_elsewhere()
        self.running: dict[Any, _Worker] = {}
        self.scored = self.elsewhere = self.tokens = 0
        self.failures: list[Failure] = []

    def go(self, progress: Progress) -> None:
        workers = [_Worker(self._actor()) for _ in range(self.shape.workers)]
        self.running = {worker.actor.ready.remote(): worker for worker in workers}
        try:
            while self.waiting or any(worker.work for worker in workers):
                finished, _ = ray.wait(list(self.running), num_returns=1, timeout=PATIENCE_SECONDS)
                if not finished:
                    self._say_who_is_missing(workers)
                    continue
                worker = self.running.pop(finished[0])
                if worker.work is None:
                    self._welcome(worker, finished[0], workers)
                elif self._finish(worker, finished[0]):
                    self._show(progress)
                for idle in workers:
                    if idle.ready and idle.work is None:
                        self._start(idle, workers, progress)
        finally:
            for worker in workers:
                ray.kill(worker.actor)  # GPU memory is best returned by ending the process

    def _show(self, progress: Progress) -> None:
        progress.advance(note=f"{self.tokens:,} tokens" + (f", {len(self.failures)} failed" if self.failures else ""))

    def _actor(self) -> Any:
        options = {"num_cpus": self.shape.cpus_per_worker, "num_gpus": self.shape.gpus_per_worker}
        return ray.remote(ScorerActor).options(**options).remote(*self.arguments)

    def _welcome(self, worker: _Worker, answer: Any, workers: list[_Worker]) -> None:
        """Take in that a worker stands; one that died on the way is tried again, then gone without."""
        try:
            worker.ready = bool(ray.get(answer))
        except ray.exceptions.RayError as error:
            cause = _cause(error)
            if isinstance(cause, KlrayError):
                raise cause from error
            worker.starts += 1
            if worker.starts < self.max_attempts:
                log.warning("a worker died while it started, trying once more")
                worker.actor = self._actor()
                self.running[worker.actor.ready.remote()] = worker
                return
            workers.remove(worker)
            if not workers:
                raise KlrayError(
                    f"no scoring worker could start: {str(cause).strip().splitlines()[-1]}; each opens store "
                    f"{self.store.url} and a cache in {self.settings.cache_dir}"
                ) from error

    def _say_who_is_missing(self, workers: list[_Worker]) -> None:
        started = sum(worker.ready for worker in workers)
        if started < len(workers):
            log.info("%d of %d workers have started; the cluster may be busy with other work", started, len(workers))

    def _start(self, worker: _Worker, workers: list[_Worker], progress: Progress) -> None:
        while True:
            work, worker.ahead = worker.ahead or self._take(worker, workers), None
            if work is None:
                return
            if not self.store.is_committed(work.identity.key):
                break
            self.elsewhere += 1  # by another job, since this one began
            self._go_elsewhere()
            self._show(progress)
        worker.work = work
        worker.last_repository = work.checkpoint.repository
        work.attempts += 1
        idle = sum(each.work is None for each in workers)
        if len(self.waiting) > idle:  # the last ones go to whoever is free first
            worker.ahead = self._take(worker, workers)
        upcoming = worker.ahead.checkpoint if worker.ahead else None
        self.running[worker.actor.score.remote(work.checkpoint, upcoming)] = worker

    def _go_elsewhere(self) -> None:
        """Go on at another place of the list: whoever works here will be at the next place, too, when we are."""
        if self.waiting:
            self.waiting.rotate(-random.randrange(len(self.waiting)))  # noqa: S311 - not cryptography

    def _take(self, worker: _Worker, workers: list[_Worker]) -> _Work | None:
        """The next work: of the repository that the worker has loaded if there is any, so that its model is reused."""
        for work in self.waiting:
            if work.checkpoint.repository == worker.last_repository:
                self.waiting.remove(work)
                return work
        if self.waiting:
            taken = {each.last_repository for each in workers}
            work = next((each for each in self.waiting if each.checkpoint.repository not in taken), self.waiting[0])
            self.waiting.remove(work)
            return work
        for other in workers:
            if other.ahead is not None:
                work, other.ahead = other.ahead, None
                return work
        return None

    def _finish(self, worker: _Worker, result: Any) -> bool:
        """Take in a result; False when the work goes back to wait, because its worker died."""
        work, worker.work = worker.work, None
        assert work is not None
        try:
            outcome = ray.get(result)
        except ray.exceptions.RayTaskError as error:
            cause = _cause(error)
            raise cause if isinstance(cause, KlrayError) else error from error
        except ray.exceptions.RayError as error:
            if worker.ahead is not None:
                self.waiting.appendleft(worker.ahead)
            worker.actor, worker.ahead, worker.last_repository = self._actor(), None, ""
            where = f"{work.checkpoint.repository}@{work.checkpoint.revision}"
            if work.attempts < self.max_attempts:
                log.warning("%s: its worker died, trying once more (attempt %d)", where, work.attempts + 1)
                self.waiting.append(work)
                return False
            found = str(error).strip().splitlines()[0]
            outcome = Refusal(
                "worker_died",
                f"{where}: the process that scored it died {work.attempts} times ({found}); if memory was short, lower "
                "scoring.tokens_per_batch or ray.workers",
            )
        if isinstance(outcome, Refusal):
            self._record(work, outcome)
        else:
            self.scored += outcome.first
            self.elsewhere += not outcome.first
            if not outcome.first:
                self._go_elsewhere()
            self.tokens += outcome.tokens
        return True

    def _record(self, work: _Work, refusal: Refusal) -> None:
        revision = work.checkpoint.revision
        failure = self.store.record_failure(
            work.identity, revision, refusal.reason, refusal.message, attempt=uuid.uuid4().hex
        )
        log.warning("%s@%s failed: %s", work.checkpoint.repository, revision, refusal.message)
        self.failures.append(failure)


def _cause(error: BaseException) -> BaseException:
    """What was raised inside an actor; Ray tells of an error in a constructor only in words."""
    return getattr(error, "cause", None) or error


def _unresolved(store: Store, repository: str, revision: str, settings: ScoringSettings) -> Identity:
    return Identity(
        repository=repository,
        commit=unresolved(revision),
        text_set=store.texts.fingerprint,
        dtype=settings.dtype,
        quantization=settings.quantization,
    )


def _record_unavailable(store: Store, each: Unavailable, settings: ScoringSettings) -> Failure:
    identity = _unresolved(store, each.repository, each.revision, settings)
    log.warning("%s@%s: %s", each.repository, each.revision, each.message)
    return store.record_failure(identity, each.revision, each.reason, each.message, attempt=uuid.uuid4().hex)
