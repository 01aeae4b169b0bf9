"""The driver of a sweep: what ``klray.sweep.dispatch`` decides, done on Ray, and what comes of it told back."""

import contextlib
import dataclasses
import logging
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Literal

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from klray.checkpoints import Checkpoint
from klray.errors import KlrayError, StoreError
from klray.store import Failure, Store
from klray.store.objects import FolderObjects, probe
from klray.sweep import cluster
from klray.sweep.actor import ScorerActor
from klray.sweep.board import Posted
from klray.sweep.claims import Held
from klray.sweep.cluster import Shape
from klray.sweep.dispatch import Dispatch
from klray.sweep.examining import SHARE, Expected, clock_fault, expected, shares
from klray.sweep.fleet import WAIT_SECONDS, Fleet, Worker
from klray.sweep.others import Others
from klray.sweep.queue import Queue, Work
from klray.sweep.replies import Outcome, Pending, Refusal, Unfit, WorkerFacts
from klray.sweep.settings import RaySettings, ScoringSettings
from klray.sweep.telling import Telling
from klray.words.heard import kind_of
from klray.words.numbers import counted

log = logging.getLogger("klray")

LOOK_SECONDS = 2.0  # between two looks at the cluster's nodes
ROUND_SECONDS = 1e-4  # for each answer that is waited for, between the first that comes and a look at the others
COMMIT_SECONDS = 60.0  # to a worker that is to go, for what it has scored
LAST_SECONDS = 20.0  # the same of all, where the sweep is ended: whoever ends it gives 30 as a rule
SHARE_SECONDS = 120.0  # to the nodes, to say whether they have the store's folder
SILENT_SECONDS = 60.0  # of an actor, before it is done without: Ray gives up a node after some 15


@dataclasses.dataclass(eq=False)
class _Call:
    """What an actor was asked for."""

    kind: Literal["examine", "score", "commit"]
    worker: Worker
    work: Work | None = None


class Driver:
    """Scores ``todo`` on actors of ``shape``; the ``Hands`` of a dispatch.

    ``present`` are the keys of committed columns by the content of their checkpoints; ``arguments`` are those of a
    ``Scorer``; ``job`` are 32 hex digits, which actors and commits name.
    """

    def __init__(
        self,
        store: Store,
        settings: ScoringSettings,
        shape: Shape,
        arguments: tuple[Any, ...],
        todo: Sequence[Checkpoint],
        present: Mapping[str, str],
        asked: RaySettings,
        job: str,
    ):
        self.store, self.settings, self.shape, self.arguments = store, settings, shape, arguments
        works = [Work(each, settings.identity(each, store.texts.fingerprint)) for each in todo]
        self.todo, self.job = todo, job
        self.fleet = Fleet(asked.workers, cluster.nodes(shape), str(shape))
        self.dispatch = Dispatch(Queue(works, present), self.fleet, self, asked.max_attempts, Others(store, job=job))
        self.failures: list[Failure] = []
        self.warned: list[tuple[str, tuple[str, ...]]] = []  # by label of the checkpoint
        self._kind: Any = None  # of the actors
        self._actors: dict[Worker, Any] = {}
        self._running: dict[Any, _Call] = {}
        self._silent: dict[Worker, tuple[float, ray.exceptions.RayError]] = {}  # since when, and what was found
        self._board: Posted | None = None
        self._wanted: Expected | None = None
        self._kinds: set[str] = set()  # of warnings that were told

    def go(self, telling: Telling) -> None:
        """Work until nothing is left to do."""
        with probe.common(self.store.objects) as common:
            self._wanted = expected(common, self.todo, self.job)
            if isinstance(self.store.objects, FolderObjects):
                self._check_shared(common)
            here = NodeAffinitySchedulingStrategy(cluster.this_node(), soft=False)  # no other node can silence all
            self._board = Posted(here, self.job)
            try:
                with self.dispatch.others:
                    self._work(telling)
            except KeyboardInterrupt:
                self._end_commits()
                telling.tell(self.dispatch.tally, self.dispatch.left, self.fleet.states())
                raise
            finally:
                for actor in self._actors.values():
                    ray.kill(actor)  # GPU memory is best returned by ending the process
                self._board.close()

    def _work(self, telling: Telling) -> None:
        assert self._board is not None
        looked = said = time.monotonic()
        while True:
            self.dispatch.go_on(time.monotonic())
            telling.tell(self.dispatch.tally, self.dispatch.left, self.fleet.states())
            if self.dispatch.is_done:
                return
            for finished in self._finished():
                self._take(finished)
            self._look_at_silent()
            if any(each.is_busy for each in self.fleet.workers) or not (words := self.dispatch.others.words()):
                said = time.monotonic()
            elif time.monotonic() - said >= WAIT_SECONDS:
                said = time.monotonic()
                log.info("waiting for %s", words)
            if time.monotonic() - looked >= LOOK_SECONDS:
                self.dispatch.seen(cluster.nodes(self.shape))
                self._board.relay()
                looked = time.monotonic()

    def _finished(self) -> list[Any]:
        """Answers that are there, after a while if there are none yet.

        Where many are waited for, those that come next are taken along: what is done after each round costs the same.
        """
        seconds = min(LOOK_SECONDS, self.dispatch.others.again)
        if not self._running:
            time.sleep(seconds)
            return []
        first, others = ray.wait(list(self._running), num_returns=1, timeout=seconds)
        if not (first and others):
            return list(first)
        time.sleep(ROUND_SECONDS * len(others))
        return [*first, *ray.wait(others, num_returns=len(others), timeout=0)[0]]

    def _check_shared(self, common: tuple[str, bytes]) -> None:
        """Raises StoreError where the store is a folder that this node alone has."""
        others = [node for node, room in self.fleet.nodes.room.items() if room and node != cluster.this_node()]
        if not others:
            return
        ask = ray.remote(num_cpus=0, max_retries=0)(shares)
        places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in others]
        asked = [ask.options(scheduling_strategy=each).remote(self.store.url, common) for each in places]
        answers = []
        for each in ray.wait(asked, num_returns=len(asked), timeout=SHARE_SECONDS)[0]:
            try:
                answers.append(ray.get(each))
            except ray.exceptions.RayError:
                log.debug("a node did not say whether it has the store", exc_info=True)
        hosts = sorted(host for host, there in answers if not there)
        if hosts and not any(there for _, there in answers):
            more = f" and {counted(len(hosts) - 1, 'other')}" if len(hosts) > 1 else ""
            whose = f"node {hosts[0]}{more} of the cluster"
            raise StoreError(f"store {self.store.url} is a folder that {whose} does not share with this one; {SHARE}")

    # Hands

    def start(self, worker: Worker, avoid: Set[str]) -> None:
        """As ``Hands.start``."""
        if self._kind is None:  # one for all: Ray takes 80 ms to send a class to the cluster
            self._kind = ray.remote(concurrency_groups=ScorerActor.CONCURRENCY)(ScorerActor)
        options = {**self.shape.options(set(avoid)), "name": f"klray-{self.job[:8]}-{worker.number}"}
        assert self._board is not None
        self._actors[worker] = self._kind.options(**options).remote(self._board.handle, *self.arguments)
        self.examine(worker)

    def examine(self, worker: Worker) -> None:
        """As ``Hands.examine``."""
        assert self._wanted is not None
        key, body = self._wanted.common
        if self.store.objects.get(key) is None:  # cleared away
            self.store.objects.put(key, body)
        self._running[self._actors[worker].ready.remote(self._wanted)] = _Call("examine", worker)

    def score(self, worker: Worker, work: Work, upcoming: Sequence[Checkpoint]) -> None:
        """As ``Hands.score``."""
        task = self._actors[worker].score.options(name=work.checkpoint.label)
        answer = task.remote(work.checkpoint, upcoming, work.source, work.turn)
        self._running[answer] = _Call("score", worker, work)

    def commit(self, worker: Worker, work: Work) -> None:
        """As ``Hands.commit``."""
        self._running[self._actors[worker].commit.remote(work.identity.key)] = _Call("commit", worker, work)

    def end(self, worker: Worker) -> None:
        """As ``Hands.end``; what the actor has scored is awaited."""
        calls = {answer: call for answer, call in self._running.items() if call.worker is worker}
        self._await_commits(calls.values(), COMMIT_SECONDS)
        for answer in calls:
            del self._running[answer]
        ray.kill(self._actors.pop(worker))

    def is_committed(self, work: Work) -> bool:
        """As ``Hands.is_committed``."""
        return self.store.is_committed(work.identity.key)

    def record(self, work: Work, refusal: Refusal) -> None:
        """As ``Hands.record``."""
        revision, reason, message = work.checkpoint.revision, refusal.reason, refusal.message
        self.failures.append(self.store.record_failure(work.identity, revision, reason, message, uuid.uuid4().hex))
        log.warning("%s failed: %s", work.checkpoint.label, message)

    def say(self, words: str) -> None:
        """As ``Hands.say``."""
        log.warning("%s", words)

    # what comes of it

    def _take(self, answer: Any) -> None:
        call = self._running.pop(answer, None)
        if call is None:  # of an actor that was ended meanwhile
            return
        worker, work = call.worker, call.work
        try:
            reply = ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            if work is not None and isinstance(error.cause, StoreError):
                self.dispatch.store_failed(worker, work, error.cause)
            elif work is not None:
                raise error.cause if isinstance(error.cause, Exception) else error from error
            else:
                self._died(worker, error)
        except ray.exceptions.RayError as error:
            self._died(worker, error)
        else:
            self._told(worker, work, reply)

    def _told(self, worker: Worker, work: Work | None, reply: Any) -> None:
        if isinstance(reply, Unfit):
            self.dispatch.unfit(worker, reply)
            return
        if work is None:
            assert isinstance(reply, WorkerFacts)
            if words := clock_fault(reply.clock):
                self.say(f"the clock of node {reply.place.host} {words}")
            self.dispatch.welcome(worker, reply)
            return
        if reply.warnings:
            self._relay(worker, work.checkpoint.label, reply.warnings)
        if isinstance(reply, Pending):
            self.dispatch.scored(worker, work)
        elif isinstance(reply, Held):
            self.dispatch.held(worker, work, reply)
        elif isinstance(reply, Refusal):
            self.dispatch.refused(worker, work, reply)
        else:
            self.dispatch.finished(worker, work, reply)

    def _relay(self, worker: Worker, label: str, warnings: Sequence[str]) -> None:
        """Log what a worker warned of: the first of each kind for people, all of them for machines."""
        self.warned.append((label, tuple(warnings)))
        for text in warnings:
            level = logging.DEBUG if kind_of(text) in self._kinds else logging.WARNING
            self._kinds.add(kind_of(text))
            log.log(level, "%s", text, extra={"host": worker.name, "checkpoint": label, "job": self.job})

    def _died(self, worker: Worker, error: ray.exceptions.RayError) -> None:
        """What it had answered counts; then it is gone, or silent, which may be a node that nobody knows to be lost."""
        if worker not in self._actors:
            return
        others = [answer for answer, call in self._running.items() if call.worker is worker]
        answered = ray.wait(others, num_returns=len(others), timeout=0)[0] if others else []
        for answer in others:
            if answer in answered and not _failed(answer):
                self._take(answer)
            else:
                self._running.pop(answer, None)
        worker.ready = False
        self._silent.setdefault(worker, (time.monotonic(), error))

    def _look_at_silent(self) -> None:
        """Those of whose end one knows by now why; who is silent for too long is gone without."""
        for worker, (since, error) in list(self._silent.items()):
            actor = self._actors.get(worker)
            silent = isinstance(error, ray.exceptions.ActorUnavailableError) and actor is not None
            gone = time.monotonic() - since > SILENT_SECONDS
            if silent and not gone and not cluster.is_dead(actor):
                continue
            del self._silent[worker]
            if actor is None:
                continue
            node = worker.node or cluster.node_of(actor)
            lines = str(getattr(error, "cause", None) or error).strip().splitlines()
            why = lines[-1 if worker.facts is None else 0].strip()
            lost = (silent and not cluster.is_dead(actor)) or cluster.is_lost(actor, node, error)
            self.dispatch.died(worker, why, node, blameless=lost)

    def _end_commits(self) -> None:
        """Wait for what is scored and on its way into the store, and count it: the sweep was ended from outside."""
        with contextlib.suppress(KlrayError, OSError, ray.exceptions.RayError):  # it ends, whatever else is wrong
            for answer in self._await_commits(self._running.values(), LAST_SECONDS):
                self._take(answer)
            for worker in self.fleet.workers:  # of whom an answer was being taken
                for work in [each for each in worker.commits if self.is_committed(each)]:
                    self.dispatch.finished(worker, work, Outcome(work.identity.key, first=True, tokens=0))

    def _await_commits(self, calls: Iterable[_Call], seconds: float) -> list[Any]:
        wanted = {id(call) for call in calls if call.kind == "commit"}
        commits = [answer for answer, call in self._running.items() if id(call) in wanted]
        return ray.wait(commits, num_returns=len(commits), timeout=seconds)[0] if commits else []


def _failed(answer: Any) -> bool:
    try:
        ray.get(answer)
    except ray.exceptions.RayError:
        return True
    return False
