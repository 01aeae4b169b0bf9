"""The driver of a sweep: who works on what, and what came of it."""

import dataclasses
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ray
import ray.exceptions

from klray.checkpoints import Checkpoint, Patience
from klray.errors import KlrayError
from klray.store import Failure, Store
from klray.store.objects import probe
from klray.sweep.actor import ScorerActor
from klray.sweep.cluster import Shape
from klray.sweep.examining import Expected, expected
from klray.sweep.queue import Queue, Work
from klray.sweep.replies import Outcome, Pending, Refusal, Unfit
from klray.sweep.settings import ScoringSettings
from klray.words.numbers import counted
from klray.words.progress import Progress

log = logging.getLogger("klray")

PATIENCE_SECONDS = 30.0  # between two words about workers that have not started
# Checkpoints set aside for a worker, which fetches them in turn as far as its cache has room: more than one, so that
# neither the link nor the scorer stands still where one checkpoint takes longer than another.
AHEAD = 4
COMMITS = 2  # columns of a worker that wait for a slow store; then it scores no further
COMMIT_SECONDS = 60.0  # to a worker that is to go, for what it has scored


@dataclasses.dataclass(eq=False)
class _Worker:
    actor: Any
    work: Work | None = None  # being scored
    ahead: list[Work] = dataclasses.field(default_factory=list)  # others may take them when nothing else is left
    last_repository: str = ""
    ready: bool = False
    starts: int = 0
    commits: int = 0  # columns on their way into the store

    @property
    def idle(self) -> bool:
        return self.ready and self.work is None and self.commits < COMMITS


@dataclasses.dataclass(eq=False)
class _Call:
    """What an actor was asked for."""

    kind: Literal["ready", "score", "commit"]
    worker: _Worker
    actor: Any  # the worker's at that time
    work: Work | None = None


class Driver:
    """Scores ``todo`` on actors of ``shape``.

    ``present`` are the keys of committed columns by the content of their checkpoints; ``arguments`` are those of a
    ``Scorer``; a checkpoint is tried ``max_attempts`` times if the process that scores it dies.
    """

    def __init__(
        self,
        store: Store,
        settings: ScoringSettings,
        shape: Shape,
        arguments: tuple[Any, ...],
        todo: Sequence[Checkpoint],
        present: Mapping[str, str],
        max_attempts: int,
    ):
        self.store, self.settings, self.shape, self.arguments = store, settings, shape, arguments
        self.max_attempts = max_attempts
        works = [Work(each, settings.identity(each, store.texts.fingerprint)) for each in todo]
        self.queue = Queue(works, present)
        self.workers: list[_Worker] = []
        self.running: dict[Any, _Call] = {}
        self.patience: Any = None
        self.wanted: Expected | None = None  # of workers
        self.scored = self.taken_over = self.elsewhere = self.tokens = 0
        self.failures: list[Failure] = []
        self.warned: list[tuple[str, tuple[str, ...]]] = []  # by label of the checkpoint
        self.begun: float | None = None  # when the first worker began, by the monotonic clock

    def go(self, progress: Progress) -> None:
        """Work until nothing is left to do."""
        with probe.common(self.store.objects) as common:
            self.wanted = expected(common, [each.checkpoint for each in self.queue.works()])
            self._go(progress)

    def _go(self, progress: Progress) -> None:
        self.patience = ray.remote(Patience).options(num_cpus=0).remote()
        self.workers = [_Worker(self._actor()) for _ in range(self.shape.workers)]
        for worker in self.workers:
            self._ask_ready(worker)
        try:
            while self.queue or any(call.work for call in self.running.values()):
                finished, _ = ray.wait(list(self.running), num_returns=1, timeout=PATIENCE_SECONDS)
                if not finished:
                    self._say_who_is_missing()
                    continue
                call = self.running.pop(finished[0])
                if call.work is None:
                    self._welcome(call.worker, finished[0])
                elif self._finish(call, call.work, finished[0]):
                    self._show(progress)
                for worker in self.workers:
                    if worker.idle:
                        self._start(worker, progress)
        finally:
            for worker in self.workers:
                ray.kill(worker.actor)  # GPU memory is best returned by ending the process
            ray.kill(self.patience)

    def _show(self, progress: Progress) -> None:
        progress.advance(note=f"{self.tokens:,} tokens" + (f", {len(self.failures)} failed" if self.failures else ""))

    def _actor(self) -> Any:
        options = {"num_cpus": self.shape.cpus_per_worker, "num_gpus": self.shape.gpus_per_worker}
        kind = ray.remote(concurrency_groups=ScorerActor.CONCURRENCY, **options)(ScorerActor)
        return kind.remote(self.patience, *self.arguments)

    def _ask_ready(self, worker: _Worker) -> None:
        self.running[worker.actor.ready.remote(self.wanted)] = _Call("ready", worker, worker.actor)

    def _welcome(self, worker: _Worker, answer: Any) -> None:
        """Take in that a worker stands; one that died on the way is tried again, then gone without."""
        try:
            reply = ray.get(answer)
            if isinstance(reply, Unfit):
                host, found, cure = reply.place.host, reply.found, reply.cure
                log.warning("node %s put aside: %s; %s", host, found, cure)
                self.workers.remove(worker)
                if not self.workers:
                    raise KlrayError(f"no scoring worker is left: node {host} put aside: {found}; {cure}")
            worker.ready = not isinstance(reply, Unfit)
        except ray.exceptions.RayError as error:
            cause = _cause(error)
            if isinstance(cause, KlrayError):
                raise cause from error
            worker.starts += 1
            if worker.starts < self.max_attempts:
                log.warning("a worker died while it started, trying once more")
                worker.actor = self._actor()
                self._ask_ready(worker)
                return
            self.workers.remove(worker)
            if not self.workers:
                raise KlrayError(
                    f"no scoring worker could start: {str(cause).strip().splitlines()[-1]}; each opens store "
                    f"{self.store.url} and a cache in {self.settings.cache_dir}; what was committed is safe"
                ) from error

    def _say_who_is_missing(self) -> None:
        if (started := sum(worker.ready for worker in self.workers)) < len(self.workers):
            words = "%d of %d workers have started; this machine, or the cluster, may be busy with other work"
            log.info(words, started, len(self.workers))

    def _start(self, worker: _Worker, progress: Progress) -> None:
        while (work := worker.ahead.pop(0) if worker.ahead else self._take(worker)) is not None:
            if not self.store.is_committed(work.identity.key):
                break
            self.elsewhere += 1  # by another job, since this one began
            self.queue.settle(work, committed=True)
            self.queue.go_elsewhere()
            self._show(progress)
        if work is None:
            return
        self.begun = self.begun or time.monotonic()
        worker.work = work
        worker.last_repository = work.checkpoint.repository
        work.attempts += 1
        self._set_aside(worker)
        # One whose worker died is tried alone: a checkpoint that was fetched beside it may have been to blame.
        ahead = worker.ahead if work.attempts == 1 else []
        upcoming = [each.checkpoint for each in ahead if not each.source]
        answer = worker.actor.score.remote(work.checkpoint, upcoming, work.source)
        self.running[answer] = _Call("score", worker, worker.actor, work)

    def _set_aside(self, worker: _Worker) -> None:
        """Set checkpoints aside for a worker to fetch, no more than its share; the last ones go to whoever is free."""
        idle = sum(each.work is None for each in self.workers)
        left = len(self.queue) + sum(len(each.ahead) for each in self.workers)
        share = -(-left // len(self.workers))
        while len(self.queue) > idle and len(worker.ahead) < min(AHEAD, share):
            work = self._take(worker)
            assert work is not None
            worker.ahead.append(work)

    def _take(self, worker: _Worker) -> Work | None:
        """The next work that waits, else the last one that was set aside for another worker."""
        work = self.queue.take(worker.last_repository, {each.last_repository for each in self.workers})
        if work is None and (others := [each for each in self.workers if each.ahead]):
            work = max(others, key=lambda each: len(each.ahead)).ahead.pop()
        return work

    def _finish(self, call: _Call, work: Work, result: Any) -> bool:
        """Take in a result; False when the work is not at its end: to be committed, or tried again."""
        worker = call.worker
        if call.kind == "score":
            worker.work = None
        else:
            worker.commits -= 1
        died = ""
        try:
            outcome = ray.get(result)
        except ray.exceptions.RayTaskError as error:
            cause = _cause(error)
            raise cause if isinstance(cause, KlrayError) else error from error
        except ray.exceptions.RayError as error:
            died = str(error).strip().splitlines()[0]
        else:
            if outcome.warnings:
                self.warned.append((work.checkpoint.label, outcome.warnings))
            if isinstance(outcome, Pending):
                worker.commits += 1
                self.running[call.actor.commit.remote(outcome.key)] = _Call("commit", worker, call.actor, work)
                return False
            if isinstance(outcome, Refusal) and outcome.reason == "worker_died":
                died = outcome.message
                self._end(call.actor)
        if died:
            self._replace(worker, call.actor)
            outcome = self._after_death(call, work, died)
            if outcome is None:
                return False
        self.queue.settle(work, committed=not isinstance(outcome, Refusal))
        if isinstance(outcome, Refusal):
            self._record(work, outcome)
        else:
            self.scored += outcome.first
            self.taken_over += outcome.first and outcome.taken_over
            self.elsewhere += not outcome.first
            if not outcome.first:
                self.queue.go_elsewhere()
            self.tokens += outcome.tokens
        return True

    def _after_death(self, call: _Call, work: Work, died: str) -> Outcome | Refusal | None:
        """What became of a work whose worker died; None: it is tried again."""
        if call.kind == "commit":
            if self.store.is_committed(work.identity.key):
                return Outcome(work.identity.key, first=True, tokens=0)
            if not work.excused:  # the worker died of what it scored meanwhile, most likely
                work.excused = True
                work.attempts -= 1
        where = f"{work.checkpoint.repository}@{work.checkpoint.revision}"
        if work.attempts < self.max_attempts:
            log.warning("%s: its worker died, trying once more (attempt %d): %s", where, work.attempts + 1, died)
            self.queue.try_again(work)
            return None
        return Refusal(
            "worker_died",
            f"{where}: the process that scored it died {counted(work.attempts, 'time')} ({died}); if memory was short, "
            "lower scoring.tokens_per_batch or ray.workers",
        )

    def _end(self, actor: Any) -> None:
        """End an actor once what it has scored is in the store."""
        commits = [result for result, call in self.running.items() if call.actor is actor and call.kind == "commit"]
        if commits:
            ray.wait(commits, num_returns=len(commits), timeout=COMMIT_SECONDS)
        ray.kill(actor)

    def _replace(self, worker: _Worker, actor: Any) -> None:
        """Give a worker whose ``actor`` died another one, unless it has it already."""
        if worker.actor is actor:
            self.queue.put_back(worker.ahead)
            worker.actor, worker.ahead, worker.last_repository = self._actor(), [], ""
            worker.ready, worker.starts = False, 0
            self._ask_ready(worker)

    def _record(self, work: Work, refusal: Refusal) -> None:
        revision, reason, message = work.checkpoint.revision, refusal.reason, refusal.message
        self.failures.append(self.store.record_failure(work.identity, revision, reason, message, uuid.uuid4().hex))
        log.warning("%s@%s failed: %s", work.checkpoint.repository, revision, message)


def _cause(error: BaseException) -> BaseException:
    """What was raised inside an actor; Ray tells of an error in a constructor only in words."""
    return getattr(error, "cause", None) or error
