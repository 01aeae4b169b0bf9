"""How many checkpoints a second the driver hands out and takes back: a hundred workers on Ray that answer at once.

Each checkpoint is two calls of an actor, to score and to commit. Workers and driver share this machine's cores.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from unittest import mock

import ray

from klray.checkpoints import Checkpoint, Facts, RemoteFile
from klray.store import Store
from klray.sweep import driver
from klray.sweep.cluster import connected
from klray.sweep.driver import Driver
from klray.sweep.settings import RaySettings, ScoringSettings
from klray.words.progress import Progress
from tests.benchmarks.fake_worker import FakeWorker
from tests.benchmarks.machine import table
from tests.stores import TEXTS

WORKERS, CHECKPOINTS, REPOSITORIES = 100, 10_000, 50


def main() -> str:
    """Measure and return the table."""
    sizes = [10**6 * (1 + number % REPOSITORIES) for number in range(CHECKPOINTS)]
    todo = [
        Checkpoint(
            f"org/{number % REPOSITORIES}",
            f"step{number}",
            f"{number:040x}",
            (RemoteFile("model.safetensors", size, f"{number:064x}", None),),
            Facts(),
        )
        for number, size in enumerate(sizes)
    ]
    with tempfile.TemporaryDirectory() as place, mock.patch.object(driver, "ScorerActor", FakeWorker):
        store = Store.create(str(Path(place) / "store"), TEXTS)
        (folder := Path(place) / "started").mkdir()
        ray.init(num_cpus=WORKERS, include_dashboard=False, logging_level="warning", log_to_driver=False)
        try:
            with connected(RaySettings(workers=WORKERS)) as shape:
                arguments = (folder, WORKERS)
                found = Driver(store, ScoringSettings(), shape, arguments, todo, {}, RaySettings(workers=WORKERS))
                with Progress(len(todo), "score", "checkpoint") as progress:
                    used = time.process_time()
                    found.go(progress)
                    ended, used = time.monotonic(), time.process_time() - used
        finally:
            ray.shutdown()
    tally, begun = found.dispatch.tally, found.dispatch.begun
    assert tally.scored == CHECKPOINTS and begun is not None, dataclasses.asdict(tally)
    rows = [
        ("workers", "checkpoints", "seconds", "a second", "seconds of CPU of the driver"),
        (
            str(WORKERS),
            f"{CHECKPOINTS:,}",
            f"{ended - begun:.1f}",
            f"{CHECKPOINTS / (ended - begun):,.0f}",
            f"{used:.1f}",
        ),
    ]
    return table("Completions of the driver, with workers that answer at once", rows)
