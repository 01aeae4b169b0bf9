"""The workers of a sweep: how many are asked for, where they are, which nodes are put aside."""

import dataclasses
from collections import Counter
from collections.abc import Mapping

from klray.errors import StoreError
from klray.sweep.queue import Work
from klray.sweep.replies import Place, Refusal, WorkerFacts
from klray.words.numbers import counted

WAIT_SECONDS = 30.0  # between two words about workers that have not started
PATIENT_SECONDS = 600.0  # the same while others are at work and nothing has changed
MOST_ASKED = 500  # of a cluster that can grow, where nobody says how many
MOST_ASIDE = 3  # nodes of a growing cluster that are put aside while none is fit: then it is no use
STARTS = 2  # workers that died on one node before they could be examined


@dataclasses.dataclass(frozen=True)
class Nodes:
    """What a cluster has."""

    room: Mapping[str, int]  # actors that each node carries that is alive and stays, whatever else runs there
    draining: frozenset[str] = frozenset()  # nodes that are to go
    grows: bool = False  # more nodes come where actors wait
    busy: str = ""  # what actors wait for, in words


@dataclasses.dataclass(eq=False)
class Worker:
    """One actor, from when it is asked for until it ends."""

    number: int
    place: Place | None = None
    facts: WorkerFacts | None = None
    ready: bool = False  # examined, and fit
    leaving: bool = False  # gets no more work
    work: Work | None = None  # being scored
    commits: list[Work] = dataclasses.field(default_factory=list)  # on their way into the store
    ahead: list[Work] = dataclasses.field(default_factory=list)  # others may take them when nothing else is left
    suspects: list[tuple[Work, Refusal | StoreError]] = dataclasses.field(default_factory=list)  # failed, perhaps by it
    repository: str = ""  # of the last work

    @property
    def works(self) -> list[Work]:
        """What it has begun."""
        begun = [self.work] if self.work is not None else []
        return [*begun, *self.commits, *[work for work, _ in self.suspects]]

    @property
    def is_busy(self) -> bool:
        """Whether it has begun anything."""
        return self.work is not None or bool(self.commits) or bool(self.suspects)

    @property
    def backlog(self) -> float:
        """Bytes that it still has before it: half of what it scores, because nobody knows how far it is."""
        return (self.work.bytes / 2 if self.work is not None else 0.0) + sum(each.bytes for each in self.ahead)

    @property
    def node(self) -> str:
        """Id of the node; "" while it is not known."""
        return self.place.node if self.place else ""

    @property
    def name(self) -> str:
        """The host's name, for people."""
        return self.place.host if self.place else ""


class Fleet:
    """Workers of a sweep that asks for ``asked`` of them, or None: as many as the cluster has, or can grow to."""

    def __init__(self, asked: int | None, nodes: Nodes, each: str):
        self.asked, self.nodes, self.each = asked, nodes, each
        self.workers: list[Worker] = []
        self.aside: dict[str, str] = {}  # by node, "host put aside: why"
        self._number = 0
        self._fit: Counter[str] = Counter()  # workers at a time, by node
        self._died: Counter[str] = Counter()
        self._hosts: dict[str, str] = {}
        self._cure = ""  # of the last node that was put aside
        self._rooms: dict[str, int] = {}  # workers that nodes would carry that are put aside
        self._said: tuple[float, tuple[int, int]] | None = None  # when it was told who is missing, and who was

    @property
    def ready(self) -> list[Worker]:
        """Those who are fit for work."""
        return [each for each in self.workers if each.ready]

    @property
    def room(self) -> int:
        """Actors that the nodes carry that are not put aside."""
        return sum(room for node, room in self.nodes.room.items() if node not in self.aside)

    def states(self) -> dict[str, int]:
        """Workers by what they do, and nodes that are put aside."""
        starting = sum(each.facts is None for each in self.workers)
        working = sum(each.is_busy for each in self.workers)
        idle = len(self.workers) - starting - working
        return {"starting": starting, "working": working, "idle": max(0, idle), "aside": len(self.aside)}

    def missing(self, left: int) -> list[Worker]:
        """New workers, to be started: as many as lack where so many works are ``left`` that nobody has begun."""
        if not left or "" in self.aside:
            return []
        able = self.asked if self.asked is not None else MOST_ASKED if self.nodes.grows else max(1, self.room)
        staying = [each for each in self.workers if not each.leaving]
        busy = sum(each.is_busy for each in staying) if left < able else 0  # counted where it matters
        wanted = min(able, left + busy)
        new = [Worker(self._number + number) for number in range(max(0, wanted - len(staying)))]
        self._number += len(new)
        self.workers += new
        return new

    def spare(self, left: int) -> list[Worker]:
        """Workers to end, so that the cluster shrinks: those for whom nothing is left.

        One stays for each work that goes on, on another node if there is one: it may have to be tried again.
        """
        starting = [each for each in self.workers if each.facts is None]
        if left:
            return starting[left:]
        at_work = [each.node for each in self.workers for _ in each.works]
        idle = [each for each in self.ready if not each.works and not each.leaving]
        return [*starting, *sorted(idle, key=lambda each: each.node in at_work)[len(at_work) :]]

    def seen(self, nodes: Nodes) -> list[Worker]:
        """Take in what the cluster has now; the workers that are to leave with their nodes, the first of each node."""
        self.nodes = nodes
        leaving = [each for each in self.workers if each.node in nodes.draining and not each.leaving]
        for each in leaving:
            self.leave(each)
        return list({each.node: each for each in leaving}.values())

    def leave(self, worker: Worker) -> None:
        """Give a worker no more work."""
        worker.leaving = True

    def welcome(self, worker: Worker, facts: WorkerFacts) -> None:
        """Take in that a worker is fit."""
        worker.place, worker.facts, worker.ready = facts.place, facts, True
        self._hosts[facts.place.node] = facts.place.host
        self._died[facts.place.node] = 0
        self._fit[worker.node] = max(self._fit[worker.node], sum(each.ready for each in self.on(worker.node)))
        if worker.node in self.nodes.draining:
            self.leave(worker)

    def put_aside(self, node: str, host: str, found: str, cure: str) -> bool:
        """Give a node no more workers; False if it was put aside before."""
        if node in self.aside:
            return False
        self.aside[node] = f"node {host} put aside: {found}"
        self._cure = cure
        self._rooms[node] = max(1, self.nodes.room.get(node, 1))
        return True

    def failed_to_start(self, node: str) -> bool:
        """Take in that a worker died on ``node`` before it was examined; True when that was once too often."""
        self._died[node] += 1
        return self._died[node] >= STARTS

    def on(self, node: str) -> list[Worker]:
        """Workers of a node."""
        return [each for each in self.workers if each.node == node]

    def others(self, *nodes: str) -> bool:
        """Whether there is a worker on another node than these, or one that starts may come to one."""
        starting = any(each.facts is None for each in self.workers)
        elsewhere = any(room for node, room in self.nodes.room.items() if node not in (*nodes, *self.aside))
        fit = (each for each in self.workers if each.facts is not None and not each.leaving)
        return any(each.node not in nodes for each in fit) or (starting and elsewhere)

    def name_of(self, node: str) -> str:
        """The host's name of a node, as far as it is known."""
        return self._hosts.get(node, node[:8])

    def stranded(self) -> str:
        """Why nobody will ever work again; "" while somebody works, or may come."""
        if any(each.facts is not None for each in self.workers) or not self.aside:
            return ""
        coming = self.room > 0 or (self.nodes.grows and len(self.aside) < MOST_ASIDE)
        return "" if coming and "" not in self.aside else f"{self._all_aside()}; {self._cure}"

    def waited(self, now: float) -> str:
        """What is to be said of workers that have not started, now and then; "" for nothing."""
        missing = sum(each.facts is None for each in self.workers)
        ready = len(self.workers) - missing
        if self._said is None or not missing:
            self._said = now, (ready, missing)
            return ""
        since, before = self._said
        pause = PATIENT_SECONDS if ready and before == (ready, missing) else WAIT_SECONDS
        if now - since < pause:
            return ""
        self._said = now, (ready, missing)
        grows = "; the cluster adds nodes where it can" if self.nodes.grows else ""
        return (
            f"{ready} of {counted(ready + missing, 'worker')} have started; each of the others waits for {self.each}: "
            f"{self.nodes.busy}{grows}"
        )

    def closing(self) -> str:
        """How many workers there were, and which nodes were put aside; "" where there is nothing to tell."""
        if not self.aside:
            return ""
        fit = sum(count for node, count in self._fit.items() if node not in self.aside)
        lost = sum(self._rooms.get(node, 1) for node in self.aside)
        return f"{fit} of {counted(fit + lost, 'worker')}; {self._all_aside()}"

    def _all_aside(self) -> str:
        return "; ".join(self.aside.values())
