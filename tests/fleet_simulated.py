"""A cluster of fake actors and a clock: what ``klray.sweep.dispatch`` decides is played through, faster than it runs.

Nodes come, go, are lost and are sick as a test says; work takes seconds in proportion to its bytes.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

from klray.checkpoints import Checkpoint, Facts, RemoteFile
from klray.store import Identity
from klray.sweep.dispatch import Dispatch
from klray.sweep.fleet import Fleet, Nodes, Worker
from klray.sweep.others import Others
from klray.sweep.queue import Queue, Work
from klray.sweep.replies import Outcome, Place, Refusal, Unfit, WorkerFacts
from tests.sharing import PlayedStore

LOOK = 2.0  # seconds between two looks at the nodes, as the driver has


def checkpoint(number: int, repository: str, size: int) -> Checkpoint:
    files = (RemoteFile("model.safetensors", size, f"{number}", None),)
    return Checkpoint(repository, f"step{number}", f"commit{number}", files, Facts())


@dataclass
class Node:
    """A node of one actor. ``unfit``: what its examination finds, now; ``refuses``: what becomes of works there."""

    name: str
    unfit: Callable[[], Unfit | None] = lambda: None
    refuses: Callable[[Work], Refusal | None] = lambda work: None
    lost: bool = False
    draining: bool = False
    start_seconds: float = 10.0
    busy: Worker | None = None


@dataclass
class Cluster:
    """The ``Hands`` of a dispatch, and the world in which they work."""

    works: list[Checkpoint]
    nodes: list[Node]
    asked: int | None = None
    grows: Callable[[], Node] | None = None  # a node that comes where an actor waits
    seconds_a_byte: float = 1.0
    overhead: float = 0.0
    max_attempts: int = 2
    jitter: float = 0.0
    now: float = 0.0
    said: list[str] = field(default_factory=list)
    failed: list[tuple[str, Refusal]] = field(default_factory=list)
    by_node: dict[str, list[str]] = field(default_factory=dict)  # labels of works, in the order in which they ended
    ended: list[tuple[float, str]] = field(default_factory=list)  # when actors were, and on which node
    scored: int = 0  # times that anything was

    def __post_init__(self) -> None:
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ticket = itertools.count()
        self._where: dict[Worker, Node] = {}
        self._waiting: list[tuple[Worker, Set[str]]] = []
        self._random = random.Random(0)
        works = [Work(each, Identity(each.repository, each.commit, "texts")) for each in self.works]
        self.fleet = Fleet(self.asked, self._nodes(), "1 CPUs")
        self.dispatch = Dispatch(
            Queue(works, {}), self.fleet, self, self.max_attempts, Others(PlayedStore(), lambda: self.now)
        )

    def at(self, seconds: float, do: Callable[[], None]) -> None:
        """Have something happen, so many seconds after the beginning."""
        heapq.heappush(self._events, (seconds, next(self._ticket), do))

    def run(self, most: float = 1e7) -> float:
        """Seconds until nothing is left to do, of which the first ``most`` are played."""
        self.at(LOOK, self._look)
        while True:
            self.dispatch.go_on(self.now)
            self._place()
            if self.dispatch.is_done:
                return self.now
            self.now, _, do = heapq.heappop(self._events)
            assert self.now < most, "\n".join(self.said)
            do()

    def lose(self, node: Node) -> None:
        """A node is gone, and with it whatever was there."""
        node.lost = True
        if (worker := node.busy) is not None:
            node.busy = None
            self.dispatch.died(worker, "its node has died", node.name, blameless=True)

    # Hands

    def start(self, worker: Worker, avoid: Set[str]) -> None:
        self._waiting.append((worker, set(avoid)))

    def examine(self, worker: Worker) -> None:
        node = self._where[worker]
        self._later(1.0, worker, lambda: self._examined(worker, node))

    def score(self, worker: Worker, work: Work, upcoming: Sequence[Checkpoint]) -> None:
        node = self._where[worker]
        refusal = node.refuses(work)
        takes = (self.overhead + self.seconds_a_byte * work.bytes) * (1 + self.jitter * self._random.random())
        if refusal is not None:
            self._later(0.05, worker, lambda: self.dispatch.refused(worker, work, refusal))
        else:
            self._later(takes, worker, lambda: self._scored(worker, work))

    def commit(self, worker: Worker, work: Work) -> None:
        outcome = Outcome(work.identity.key, first=True, tokens=1)
        self._later(0.5, worker, lambda: self._committed(worker, work, outcome))

    def end(self, worker: Worker) -> None:
        node = self._where.pop(worker, None)
        self._waiting = [each for each in self._waiting if each[0] is not worker]
        if node is not None:
            node.busy = None
            self.ended.append((self.now, node.name))

    def is_committed(self, work: Work) -> bool:
        return False

    def record(self, work: Work, refusal: Refusal) -> None:
        self.failed.append((work.checkpoint.label, refusal))

    def say(self, words: str) -> None:
        self.said.append(words)

    # the world

    def _later(self, seconds: float, worker: Worker, do: Callable[[], None]) -> None:
        self.at(self.now + seconds, lambda: do() if worker in self._where else None)

    def _look(self) -> None:
        self.dispatch.seen(self._nodes())
        self.at(self.now + LOOK, self._look)

    def _nodes(self) -> Nodes:
        room = {each.name: 1 for each in self.nodes if not each.lost and not each.draining}
        draining = frozenset(each.name for each in self.nodes if each.draining)
        return Nodes(room, draining, self.grows is not None, "0 of 9 CPUs are free")

    def _place(self) -> None:
        for worker, avoid in list(self._waiting):
            free = [each for each in self.nodes if each.busy is None and not each.lost and not each.draining]
            free = [each for each in free if each.name not in avoid]
            if not free:
                if self.grows is not None and (node := self.grows()) is not None:
                    self.nodes.append(node)
                    free = [node]
                else:
                    continue
            free[0].busy = worker
            self._where[worker] = free[0]
            self._waiting.remove((worker, avoid))
            node = free[0]
            self._later(node.start_seconds, worker, lambda worker=worker, node=node: self._examined(worker, node))  # type: ignore[misc]

    def _examined(self, worker: Worker, node: Node) -> None:
        unfit = node.unfit()
        place = Place(f"host-{node.name}", node.name, 1)
        if unfit is not None:
            self.dispatch.unfit(worker, unfit)
        else:
            self.dispatch.welcome(worker, WorkerFacts(place, "cpu", 1, 1, time.time()))

    def _scored(self, worker: Worker, work: Work) -> None:
        self.scored += 1
        self.dispatch.scored(worker, work)

    def _committed(self, worker: Worker, work: Work, outcome: Outcome) -> None:
        self.by_node.setdefault(worker.node, []).append(work.checkpoint.label)
        self.dispatch.finished(worker, work, outcome)


def mixed(count: int, repositories: int, seed: int) -> list[Checkpoint]:
    """Checkpoints of runs whose models differ in size by up to 256 times."""
    chosen = random.Random(seed)
    sizes = [int(10 * 2 ** (8 * chosen.random())) for _ in range(repositories)]
    return [checkpoint(number, f"org/{number % repositories}", sizes[number % repositories]) for number in range(count)]


def hundred(count: int, repositories: int) -> tuple[Cluster, float]:
    """A hundred workers, and the seconds that they would take were the work divided evenly."""
    works = mixed(count, repositories, seed=count + repositories)
    cluster = Cluster(works, [Node(f"{number:02}") for number in range(100)], overhead=2.0, jitter=0.2)
    each = [(cluster.overhead + each.bytes) * (1 + cluster.jitter / 2) for each in works]
    return cluster, max(sum(each) / 100, max(each))


if __name__ == "__main__":
    for count, repositories in ((1_000, 12), (1_000, 60), (1_000, 1_000), (10_000, 40), (10_000, 1_000)):
        cluster, ideal = hundred(count, repositories)
        begun = time.process_time()
        wall = cluster.run()
        milliseconds = 1000 * (time.process_time() - begun) / count
        print(f"{count:6,} {repositories:5,}  {wall / ideal:.3f}  {milliseconds:.2f} ms")
