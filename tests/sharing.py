"""Jobs that share one list, played through: ``Others`` and ``Queue`` as they are, a store that is a dict, and a clock
that the play turns."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from klray.checkpoints import Checkpoint, Facts, RemoteFile
from klray.store import Identity
from klray.store.jobs import Job
from klray.store.objects import Listed
from klray.sweep.others import Others
from klray.sweep.queue import Queue, Work

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class PlayedStore:
    """What a store says of commits and claims."""

    commits: Counter[str] = field(default_factory=Counter)  # how often each column was scored to its end
    claims: dict[str, tuple[int, str, int]] = field(default_factory=dict)  # key: turn, mark, job
    marks: itertools.count[int] = field(default_factory=itertools.count)
    beats: dict[str, Listed] = field(default_factory=dict)
    said: dict[str, Job] = field(default_factory=dict)

    def committed_keys(self) -> set[str]:
        return set(self.commits)

    def standing_claims(self) -> dict[str, tuple[int, Listed]]:
        return {key: (turn, Listed(NOW, mark)) for key, (turn, mark, _) in self.claims.items()}

    def job_beats(self) -> dict[str, Listed]:
        return dict(self.beats)

    def heard_job(self, job: str) -> Job | None:
        return self.said.get(job)

    def beat(self, job: str, seconds: float) -> None:
        """The job's word, when the store's clock shows so many seconds."""
        self.beats[job] = Listed(NOW + timedelta(seconds=seconds), str(next(self.marks)))

    def claim(self, key: str, job: int, turn: int) -> bool:
        """As ``klray.store.claims.claim``: whether the job has it now."""
        standing = self.claims.get(key)
        if standing is not None and standing[0] >= turn:
            return standing[2] == job
        self.claims[key] = turn, str(next(self.marks)), job
        return True


def work(number: int, size: int, repository: str = "org/a") -> Work:
    """One checkpoint of a list."""
    files = (RemoteFile("model.safetensors", size, f"{number:064x}", None),)
    checkpoint = Checkpoint(repository, f"step{number}", f"{number:040x}", files, Facts())
    return Work(checkpoint, Identity(repository, checkpoint.commit, "t" * 64))


def name_of(job: int) -> str:
    """Its 32 hex digits."""
    return f"{job:032x}"


@dataclass
class Played:
    """How a play ended: seconds, and how many were scored more than once."""

    seconds: float
    twice: int
    lists: int


@dataclass
class _Job:
    number: int
    queue: Queue
    others: Others
    ahead: list[Work] = field(default_factory=list)
    looking: bool = False


def play(
    seconds_of: Sequence[float],
    n_jobs: int,
    seed: int = 0,
    starts: Sequence[float] = (),
    dies: Callable[[int], float] = lambda job: float("inf"),
    ahead: int = 4,
) -> Played:
    """``n_jobs`` of one worker each score checkpoints that take ``seconds_of``; each job begins at ``starts`` and is
    killed at ``dies``."""
    random.seed(seed)
    clock, store = [0.0], PlayedStore()
    events: list[tuple[float, int, Callable[[], None]]] = []
    order = itertools.count()
    took = {work(number, round(1e6 * each)).identity.key: each for number, each in enumerate(seconds_of)}
    lists = 0

    def at(when: float, what: Callable[[], None]) -> None:
        heapq.heappush(events, (when, next(order), what))

    def begin(job: _Job) -> None:
        def gone(one: Work) -> None:
            job.queue.settle(one, committed=True)

        while True:
            one = job.others.next(lambda: job.ahead.pop(0) if job.ahead else job.queue.take("org/a", set()), gone)
            if one is None:
                if job.others.waiting:
                    at(clock[0] + max(job.others.pause, 0.01), lambda: (look(job), begin(job))[1])
                return
            key = one.identity.key
            if not store.claim(key, job.number, one.turn):
                job.others.hold(one, "host", name_of(store.claims[key][2]))
            elif key in store.commits:
                store.claims.pop(key)
                job.others.end(one, scored=False)
                gone(one)
            else:
                break
        while len(job.ahead) < ahead and (more := job.queue.take("org/a", set())) is not None:
            job.ahead.append(more)
        for each in job.others.ahead(job.ahead, len(job.queue) + len(job.ahead)):
            store.claim(each.identity.key, job.number, 0)
        at(clock[0] + took[key], lambda: finish(job, one))

    def finish(job: _Job, one: Work) -> None:
        if clock[0] >= dies(job.number):
            return
        store.commits[one.identity.key] += 1
        store.claims.pop(one.identity.key, None)
        job.others.end(one, scored=True)
        begin(job)

    def look(job: _Job) -> None:
        nonlocal lists
        lists += 1
        job.others.look()

    def watch(job: _Job) -> None:
        if len(store.commits) < len(took) and clock[0] < dies(job.number):
            store.beat(name_of(job.number), clock[0])  # every 30 s at least
            if job.others.pause <= 0:
                look(job)
            at(clock[0] + max(job.others.pause, 0.05), lambda: watch(job))

    for number in range(n_jobs):
        queue = Queue([work(each, round(1e6 * seconds)) for each, seconds in enumerate(seconds_of)], {})
        job = _Job(number, queue, Others(store, lambda: clock[0], name_of(number)))
        at(starts[number] if starts else 0.0, lambda job=job: (look(job), watch(job), begin(job))[2])
    while events and len(store.commits) < len(took):
        clock[0], _, what = heapq.heappop(events)
        what()
    assert len(store.commits) == len(took), f"{len(took) - len(store.commits)} were never scored"
    twice = sum(count - 1 for count in store.commits.values())
    return Played(clock[0], twice, lists)


def ideal(seconds_of: Sequence[float], starts: Sequence[float]) -> float:
    """Seconds that one coordinator takes who hands the longest of what is left to whoever is free, of workers that
    begin at ``starts``."""
    free = list(starts)
    heapq.heapify(free)
    ends = 0.0
    for each in sorted(seconds_of, reverse=True):
        ends = max(ends, end := heapq.heappop(free) + each)
        heapq.heappush(free, end)
    return ends
