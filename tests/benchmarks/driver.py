"""How many checkpoints a second the driver hands out and takes back: a hundred workers on Ray that answer at once.

Each checkpoint is two calls of an actor, to score and to commit. Workers and driver share this machine's cores, so the
peer runs on the same workers, before: the same calls with the same arguments by a loop on Ray alone, which decides
nothing.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import ray

from klray.checkpoints import Checkpoint, Facts, RemoteFile
from klray.store import Store
from klray.sweep import driver
from klray.sweep.cluster import connected
from klray.sweep.dispatch import AHEAD
from klray.sweep.driver import Driver
from klray.sweep.fleet import Worker
from klray.sweep.queue import Work
from klray.sweep.settings import RaySettings, ScoringSettings
from klray.sweep.telling import Telling
from klray.words.progress import Progress
from tests.benchmarks.fake_worker import FakeWorker
from tests.benchmarks.machine import table
from tests.stores import TEXTS

WORKERS, CHECKPOINTS, REPOSITORIES = 100, 10_000, 50
JOB = "f" * 32


@dataclasses.dataclass
class _Spent:
    """Seconds, and those of CPU: of this process, and of it and all that it has started."""

    wall: float = dataclasses.field(default_factory=time.monotonic)
    own: float = dataclasses.field(default_factory=time.process_time)
    all: float = dataclasses.field(default_factory=lambda: _of_all())

    def until_now(self) -> _Spent:
        now = _Spent()
        return _Spent(now.wall - self.wall, now.own - self.own, now.all - self.all)

    def row(self, what: str) -> tuple[str, ...]:
        each = 1000 / CHECKPOINTS
        return (what, f"{CHECKPOINTS / self.wall:,.0f}", f"{each * self.own:.2f}", f"{each * self.all:.2f}")


def main() -> str:
    """Measure and return the table."""
    todo = checkpoints(CHECKPOINTS)
    with tempfile.TemporaryDirectory() as place, mock.patch.object(driver, "ScorerActor", FakeWorker):
        store = Store.create(str(Path(place) / "store"), TEXTS)
        ray.init(num_cpus=WORKERS, include_dashboard=False, logging_level="warning", log_to_driver=False)
        try:
            alone, swept = _measured(todo, store, Path(place))
        finally:
            ray.shutdown()
    rows = [
        (f"{CHECKPOINTS:,} by {WORKERS} workers", "a second", "ms of the driver's CPU", "ms of all CPU"),
        swept.row("klray"),
        alone.row("the same calls, by Ray alone"),
        ("ratio", f"{alone.wall / swept.wall:.2f}", f"{swept.own / alone.own:.2f}", f"{swept.all / alone.all:.2f}"),
    ]
    return table("Completions of the driver, with workers that answer at once", rows)


def checkpoints(count: int) -> list[Checkpoint]:
    """Of ``REPOSITORIES`` models, each of a size of its own."""
    found = []
    for number in range(count):
        weights = RemoteFile("model.safetensors", 10**6 * (1 + number % REPOSITORIES), f"{number:064x}", None)
        found.append(Checkpoint(f"org/{number % REPOSITORIES}", f"step{number}", f"{number:040x}", (weights,), Facts()))
    return found


class _Timed(Driver):
    """Measured from its first checkpoint on, when all workers have started; before it the peer has them."""

    alone: _Spent | None = None
    begun: _Spent | None = None
    took: _Spent | None = None

    def score(self, worker: Worker, work: Work, upcoming: Sequence[Checkpoint]) -> None:
        if self.begun is None:
            self.alone = _by_ray_alone(self.todo, list(self._actors.values()))
            self.begun = _Spent()
        super().score(worker, work, upcoming)

    def end(self, worker: Worker) -> None:
        """Later, with all others: what a process has used is not known when it has ended."""

    def _work(self, telling: Telling) -> None:
        super()._work(telling)
        assert self.begun is not None
        self.took = self.begun.until_now()


def _measured(todo: list[Checkpoint], store: Store, place: Path) -> tuple[_Spent, _Spent]:
    (folder := place / "started").mkdir()
    asked = RaySettings(workers=WORKERS)
    with connected(asked) as shape:
        found = _Timed(store, ScoringSettings(), shape, (folder, WORKERS), todo, {}, asked, JOB)
        with (
            Progress(len(todo), "score", "checkpoint") as progress,
            Telling(store, progress, JOB, "org", len(todo)) as telling,
        ):
            found.go(telling)
            assert found.alone is not None and found.took is not None
    assert found.dispatch.tally.scored == CHECKPOINTS, dataclasses.asdict(found.dispatch.tally)
    return found.alone, found.took


def _by_ray_alone(todo: Sequence[Checkpoint], actors: Sequence[Any]) -> _Spent:
    """What must be done on Ray for the same: two calls a checkpoint, one waiting for whichever answers first."""
    running: dict[Any, tuple[Any, bool]] = {}
    begun = ended = 0

    def score(actor: Any) -> None:
        nonlocal begun
        if begun < len(todo):
            upcoming = todo[begun + 1 : begun + 1 + AHEAD]
            running[actor.score.remote(todo[begun], upcoming, "", 0)] = actor, True
            begun += 1

    start = _Spent()
    for each in actors:
        score(each)
    while running:
        first, others = ray.wait(list(running), num_returns=1)
        more = ray.wait(others, num_returns=len(others), timeout=0)[0] if others else []
        for answer in (*first, *more):
            actor, scored = running.pop(answer)
            reply = ray.get(answer)
            if scored:
                running[actor.commit.remote(reply.key)] = actor, False
                score(actor)
            else:
                ended += 1
    assert ended == len(todo)
    return start.until_now()


def _of_all() -> float:
    used = 0.0
    for each in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            spent = each.cpu_times()
        except psutil.Error:
            continue
        used += spent.user + spent.system
    return used
