"""Who works on what: the decisions of a sweep. It knows neither Ray nor a clock: it is told what happens, and when.

``Hands`` do what is decided; what comes of it is told by the methods of ``Dispatch``. So a sweep of a hundred workers
is played through in a test, and what is tried there is what runs.
"""

from collections import Counter
from collections.abc import Sequence, Set
from functools import partial
from typing import Protocol

from klray.checkpoints import Checkpoint
from klray.errors import KlrayError, StoreError
from klray.sweep.claims import Held
from klray.sweep.fleet import Fleet, Nodes, Worker
from klray.sweep.others import Others
from klray.sweep.queue import Queue, Work
from klray.sweep.replies import Outcome, Refusal, Unfit, WorkerFacts
from klray.sweep.telling import Tally
from klray.words.numbers import counted

# Checkpoints set aside for a worker, which fetches them in turn as far as its cache has room: more than one, so that
# neither the link nor the scorer stands still where one checkpoint takes longer than another.
AHEAD = 4
MUCH_LARGER = 2  # sizes: a factor of 2 in bytes
COMMITS = 2  # columns of a worker that wait for a slow store; then it scores no further
# What may be the fault of the node rather than of the checkpoint: another node tries before it is recorded.
OF_A_NODE = ("disk_full", "out_of_memory", "download_failed", "checksum_mismatch", "unexpected")
LOSSES = 5  # nodes that a work may lose before that is held against it
STRIKES = 3  # checkpoints that failed on a node and were scored elsewhere: then it gets no more


class Hands(Protocol):
    """What a dispatch does in the world. Every answer comes later, through a method of ``Dispatch``."""

    def start(self, worker: Worker, avoid: Set[str]) -> None:
        """Ask for an actor on any node but those to ``avoid``, and examine it: ``welcome``, ``unfit`` or ``died``."""

    def examine(self, worker: Worker) -> None:
        """Examine a worker again: as above."""

    def score(self, worker: Worker, work: Work, upcoming: Sequence[Checkpoint]) -> None:
        """Score: ``scored``, ``finished``, ``held``, ``refused``, ``store_failed`` or ``died``."""

    def commit(self, worker: Worker, work: Work) -> None:
        """Commit what was scored: ``finished``, ``refused``, ``store_failed`` or ``died``."""

    def end(self, worker: Worker) -> None:
        """End an actor that has nothing more to do."""

    def is_committed(self, work: Work) -> bool:
        """Whether its column is in the store now."""

    def record(self, work: Work, refusal: Refusal) -> None:
        """Record that a checkpoint has failed."""

    def say(self, words: str) -> None:
        """Tell the operator."""


class Dispatch:
    """Has ``queue`` worked off by the workers of ``fleet``, beside ``others``; a work is tried ``max_attempts`` times
    if what scores it dies.
    """

    def __init__(self, queue: Queue, fleet: Fleet, hands: Hands, max_attempts: int, others: Others):
        self.queue, self.fleet, self.hands, self.max_attempts = queue, fleet, hands, max_attempts
        self.others = others
        self.tally = Tally()
        self.begun: float | None = None  # when the first work was
        self._again: list[Work] = []  # that another node is to try
        self._strikes: Counter[str] = Counter()

    @property
    def left(self) -> int:
        """Works that nobody has begun, or that are to be begun again."""
        ahead = sum(len(each.ahead) for each in self.fleet.workers)
        return len(self.queue) + len(self._again) + len(self.others.waiting) + ahead

    @property
    def is_done(self) -> bool:
        """Whether all works are at their end."""
        return not any(each.is_busy for each in self.fleet.workers) and not self.left

    def go_on(self, now: float) -> None:
        """Give work to who is idle, ask for workers, let go of those for whom nothing is left.

        Call it after whatever was told, and now and then. Raises KlrayError: no worker is left, and none can come.
        """
        for worker in [each for each in self.fleet.workers if each.leaving]:
            self._let_go(worker)
        for worker in [each for each in self.fleet.workers if self._is_free(each)]:
            self._begin(worker, now)
        self._give_up()
        if self.is_done:
            return
        left = self.left
        for worker in self.fleet.missing(left):
            self.hands.start(worker, self.fleet.aside.keys() - {""})
        waiting = len(self.others.waiting)
        for worker in self.fleet.spare(left) if left > waiting else self.fleet.spare(0)[waiting:]:
            self._remove(worker)
        if words := self.fleet.waited(now):
            self.hands.say(words)
        if why := self.fleet.stranded():
            raise KlrayError(f"no scoring worker is left: {why}; what was committed is safe")

    # what happens to workers

    def seen(self, nodes: Nodes) -> None:
        """The cluster is as ``nodes`` say: whoever is on a node that is to go hands back what it has not begun."""
        for worker in self.fleet.seen(nodes):
            self.hands.say(f"node {worker.name} is drained: it finishes what it has begun")

    def welcome(self, worker: Worker, facts: WorkerFacts) -> None:
        """A worker was examined and is fit. What it failed at before is not its fault, as far as one can see."""
        self.fleet.welcome(worker, facts)
        while worker.suspects:
            work, why = worker.suspects.pop()
            self._judge(worker, work, why)

    def unfit(self, worker: Worker, unfit: Unfit) -> None:
        """A worker was examined and is not fit: its node gets no other. What it failed at is the node's fault."""
        worker.place = unfit.place
        self._put_aside(unfit.place.node, unfit.place.host, unfit.found, unfit.cure)
        self._lost(worker, worker.works)

    def died(self, worker: Worker, why: str, node: str, *, blameless: bool) -> None:
        """A worker ended; ``blameless``: its node was lost, which says nothing of what it worked on."""
        if worker not in self.fleet.workers:
            return
        if blameless:
            self.hands.say(f"node {worker.name or self.fleet.name_of(node)} was lost: others take what it worked on")
            self._lost(worker, worker.works)
            return
        if worker.facts is None:
            self._failed_to_start(worker, why, node)
        work, suspects = worker.work, [each for each, _ in worker.suspects]
        self._remove(worker)
        for each in worker.commits:
            if self.hands.is_committed(each):
                self._settle(each, Outcome(each.identity.key, first=True, tokens=0))
                continue
            if work is not None and not each.excused:  # the worker died of what it scored meanwhile, most likely
                each.excused = True
                each.attempts -= 1
            self._after_death(each, why)
        for each in [*suspects, *([work] if work is not None else [])]:
            self._after_death(each, why)

    def _failed_to_start(self, worker: Worker, why: str, node: str) -> None:
        if self.fleet.failed_to_start(node):
            cure = "look at Ray's logs there; klray must be installed for the Python that Ray runs"
            found = f"workers died before they could be examined: {why}"
            self._put_aside(node, worker.name or self.fleet.name_of(node), found, cure)
        else:
            self.hands.say(f"a worker died while it started, trying once more: {why}")

    def _lost(self, worker: Worker, works: Sequence[Work]) -> None:
        """A worker is no more; ``works`` that it had begun are not to blame, unless they always lose their node."""
        self._remove(worker)
        for work in works:
            if work in worker.commits and self.hands.is_committed(work):
                self._settle(work, Outcome(work.identity.key, first=True, tokens=0))
                continue
            work.lost += 1
            if work.lost < LOSSES:
                work.attempts -= 1
                self.queue.put_back([work])
            else:
                self._after_death(work, f"{counted(work.lost, 'node')} were lost with it")

    # what becomes of works

    def scored(self, worker: Worker, work: Work) -> None:
        """A work is scored: its column is committed while the next one is."""
        worker.work = None
        worker.commits.append(work)
        self.hands.commit(worker, work)

    def finished(self, worker: Worker, work: Work, outcome: Outcome) -> None:
        """A work has a column."""
        self._done_with(worker, work)
        for node in work.refused:
            self._strikes[node] += 1
            if self._strikes[node] == STRIKES:
                host = self.fleet.name_of(node)
                found = f"{counted(STRIKES, 'checkpoint')} failed there and were scored elsewhere"
                self._put_aside(node, host, f"{found}, the last one because {_words(work.refused[node])}", "look there")
                for each in self.fleet.on(node):
                    self.fleet.leave(each)
        self._settle(work, outcome)

    def held(self, worker: Worker, work: Work, held: Held) -> None:
        """Another job says that it is scoring a work."""
        self._done_with(worker, work)
        work.attempts -= 1
        self.others.hold(work, held.host, held.job)

    def refused(self, worker: Worker, work: Work, refusal: Refusal) -> None:
        """A work cannot be scored, or could not there."""
        self._done_with(worker, work)
        if refusal.reason == "worker_died":
            self._after_death(work, refusal.message)
        elif refusal.reason in OF_A_NODE:
            self._suspect(worker, work, refusal)
        else:
            self._settle(work, refusal)

    def store_failed(self, worker: Worker, work: Work, error: StoreError) -> None:
        """The store refused a worker: raised, once it has refused a second node, or there is no other."""
        self._done_with(worker, work)
        self._suspect(worker, work, error)

    def _suspect(self, worker: Worker, work: Work, why: Refusal | StoreError) -> None:
        """What failed may be the fault of the node: it is examined, and gets no work until it is found fit."""
        if not worker.suspects:
            self.hands.examine(worker)
        worker.suspects.append((work, why))
        worker.ready = False

    def _judge(self, worker: Worker, work: Work, why: Refusal | StoreError) -> None:
        """A node that is fit could not score a work: another one tries, if there is one and none has."""
        if not work.refused and self.fleet.others(worker.node):
            work.refused[worker.node] = why
            self.hands.say(f"{work.checkpoint.label} on {worker.name}: {_words(why)}; another node tries it")
            self._again.append(work)
        else:
            self._fail(work, why)

    def _fail(self, work: Work, why: Refusal | StoreError) -> None:
        if isinstance(why, StoreError):
            raise why
        self._settle(work, why)

    def _done_with(self, worker: Worker, work: Work) -> None:
        if worker.work is work:
            worker.work = None
        else:
            worker.commits.remove(work)

    def _settle(self, work: Work, result: Outcome | Refusal) -> None:
        self.queue.settle(work, committed=not isinstance(result, Refusal))
        self.others.end(work, scored=not isinstance(result, Refusal) and result.first)
        if isinstance(result, Refusal):
            self.tally.failed += 1
            self.tally.reasons[result.reason] += 1
            self.hands.record(work, result)
            return
        self.tally.scored += result.first
        self.tally.taken_over += result.first and result.taken_over
        self.tally.elsewhere += not result.first
        self.tally.tokens += result.tokens
        self.tally.bytes += 0 if result.taken_over else work.bytes if result.first else 0
        self.tally.seconds.update(result.seconds)

    def _after_death(self, work: Work, why: str) -> None:
        label, tried = work.checkpoint.label, work.attempts
        if tried < self.max_attempts:
            self.hands.say(f"{label}: its worker died, trying once more (attempt {tried + 1}): {why}")
            self.queue.try_again(work)
            return
        died = f"{label}: the process that scored it died {counted(tried, 'time')} ({why}); if memory was short, lower "
        self._settle(work, Refusal("worker_died", f"{died}scoring.tokens_per_batch or ray.workers"))

    # giving out work

    def _is_free(self, worker: Worker) -> bool:
        return worker.ready and not worker.leaving and worker.work is None and len(worker.commits) < COMMITS

    def _begin(self, worker: Worker, now: float) -> None:
        if (work := self._take(worker)) is None:
            return
        self.begun = now if self.begun is None else self.begun
        worker.work, worker.repository = work, work.checkpoint.repository
        work.attempts += 1
        self._set_aside(worker)
        # One whose worker died is tried alone: a checkpoint that was fetched beside it may have been to blame.
        left = len(self.queue) + len(worker.ahead)
        ahead = self.others.ahead(worker.ahead, left) if work.attempts == 1 else []
        self.hands.score(worker, work, [each.checkpoint for each in ahead if not each.source])

    def _set_aside(self, worker: Worker) -> None:
        """Set checkpoints aside for a worker to fetch, no more than its share of the bytes and of the number that are
        left; the last ones go to whoever is free.
        """
        ready = [each for each in self.fleet.workers if each.ready]
        idle = sum(each.work is None for each in ready)
        if len(self.queue) <= idle:
            return
        # What is counted over all workers is counted where it may matter: near the end.
        most = AHEAD if len(self.queue) >= AHEAD * len(ready) else min(AHEAD, -(-self.left // len(ready)))
        least = self.queue.bytes / len(ready)
        while len(self.queue) > idle and len(worker.ahead) < most:
            work = self._next(worker)
            assert work is not None
            worker.ahead.append(work)
            if worker.backlog > least and worker.backlog > self._share():
                self.queue.put_back([worker.ahead.pop()])
                return

    def _share(self) -> float:
        """Bytes that each worker would have of all that is not done, were they divided among them."""
        ready = self.fleet.ready
        return (self.queue.bytes + sum(each.backlog for each in ready)) / max(1, len(ready))

    def _take(self, worker: Worker) -> Work | None:
        """What another node could not, else what no other job has."""
        for refused in self._again:
            if worker.node not in refused.refused:
                self._again.remove(refused)
                return refused
        return self.others.next(partial(self._pick, worker), self._gone)

    def _pick(self, worker: Worker) -> Work | None:
        """What was set aside for this worker, or waits, unless much larger ones are set aside for another."""
        own = worker.ahead[0].size if worker.ahead else self.queue.size
        others = (each for each in self.fleet.workers if each.ahead)
        other = max(others, key=lambda each: each.ahead[0].bytes, default=None)
        if other is not None and other.ahead[0].size >= own + MUCH_LARGER:
            return other.ahead.pop(0)
        return worker.ahead.pop(0) if worker.ahead else self._next(worker)

    def _next(self, worker: Worker) -> Work | None:
        return self.queue.take(worker.repository, {each.repository for each in self.fleet.workers})

    def _gone(self, work: Work) -> None:
        """Another job has committed a work."""
        self._settle(work, Outcome(work.identity.key, first=False, tokens=0))

    def _give_up(self) -> None:
        """Record what one node could not score where no other one is left that could try."""
        for work in [each for each in self._again if not self.fleet.others(*each.refused)]:
            self._again.remove(work)
            self._fail(work, next(iter(work.refused.values())))

    # letting go

    def _let_go(self, worker: Worker) -> None:
        self._hand_back(worker)
        if worker.work is None and not worker.commits:
            self._remove(worker)

    def _remove(self, worker: Worker) -> None:
        self._hand_back(worker)
        if worker in self.fleet.workers:
            self.fleet.workers.remove(worker)
            self.hands.end(worker)

    def _hand_back(self, worker: Worker) -> None:
        self.queue.put_back(worker.ahead)
        worker.ahead.clear()

    def _put_aside(self, node: str, host: str, found: str, cure: str) -> None:
        if self.fleet.put_aside(node, host, found, cure):
            self.hands.say(f"node {host} put aside: {found}; {cure}")


def _words(why: Refusal | StoreError) -> str:
    return why.message if isinstance(why, Refusal) else str(why)
