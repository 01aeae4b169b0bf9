"""A sweep of 32 checkpoints behind a hub with a limited rate: its wall time beside its download and its compute alone.

One worker, the real sweep: Ray actor, hub client, store in a folder. The time goes from the first byte that is fetched
to the last commit, less the start of the model's process: to import PyTorch and the architecture, and to read the
tokenizer (behind a slow link it is hidden: there, look at the time with it). That and Ray's start, some seconds a sweep
whatever its length, are in columns of their own.

Compute alone is what the sweep computes, by the same object with the same settings, from folders: load, weight sketch
and forward passes of all 32. A machine that others use, too, may be slower by a half from one minute to the next, so
sweeps and compute alone take turns, and the medians of each are compared. The loads and scores of the sweep itself,
which say what they took, are the steadier measure. Bytes on disk are looked at every 20 ms; where the longest gap
between two looks is long, the machine was doing something else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from klray.checkpoints import Cache, Checkpoint, Hub, RepositorySpec, Selection, resolve
from klray.store import Store
from klray.sweep.model import Compute
from klray.sweep.settings import RaySettings, ScoringSettings
from klray.sweep.sweeping import sweep
from klray.texts import python_stdlib
from klray.tiny.hub_server import local_hub
from tests.benchmarks.machine import table
from tests.benchmarks.trajectory14m import REPOSITORY, write_run

N_CHECKPOINTS = 32
N_TEXTS = 24  # 1.5 s a checkpoint, so that what a checkpoint costs besides is seen in its proportion
RATIOS = (0.5, 1.0, 2.0)  # download over compute
CACHED = 4  # checkpoints that the cache may hold
LOOK_SECONDS = 0.02
ROUNDS = 3
SELECTION = Selection("bench", (RepositorySpec(REPOSITORY, "step*"),))


class DiskWatch(threading.Thread):
    """Looks at the bytes below a folder: the most, when the first came, and the longest time between two looks."""

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self.folder, self.most, self.first, self.gap = folder, 0, 0.0, 0.0
        self.done = threading.Event()

    def run(self) -> None:
        before = time.monotonic()
        while not self.done.wait(LOOK_SECONDS):
            found = 0
            for parent, _, names in os.walk(self.folder):
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        found += (Path(parent) / name).stat().st_size
            if found and not self.first:
                self.first = time.time()
            self.most = max(self.most, found)
            self.gap, before = max(self.gap, time.monotonic() - before), time.monotonic()

    def __enter__(self) -> DiskWatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.join()


@dataclasses.dataclass(frozen=True)
class Swept:
    """How a sweep went, in seconds; per checkpoint: when it was committed, and what its commit says of its parts."""

    total: float
    first: float
    committed: list[float]
    timings: list[dict[str, float]]
    watch: DiskWatch

    @property
    def start(self) -> float:
        """The start of the model's process, and what its first load took longer than the others."""
        loads = [each["load_seconds"] for each in self.timings]
        return sum(each.get("start_seconds", 0.0) for each in self.timings) + loads[0] - statistics.median(loads)

    @property
    def steady(self) -> float:
        """From the first byte to the last commit, less ``start``."""
        return self.committed[-1] - self.first - self.start


def swept(hub: Hub, checkpoints: Sequence[Checkpoint], folder: Path, cache_bytes: int) -> Swept:
    """Run a sweep into a new store below ``folder``."""
    text_set = python_stdlib(n=N_TEXTS)
    store = Store.create(str(folder / "store"), text_set)
    cache = folder / "cache"
    settings = ScoringSettings(cache_dir=str(cache), cache_bytes=cache_bytes)
    start = time.perf_counter()
    with DiskWatch(cache) as watch:
        report = sweep(store, text_set, checkpoints, [], hub, settings, RaySettings(workers=1))
    total = time.perf_counter() - start
    assert report.scored == len(checkpoints), report.failures
    written = {path.stem: path.stat().st_mtime for path in (folder / "store" / "commits").glob("*.json")}
    commits = sorted(store.commits(), key=lambda commit: written[commit.key])
    return Swept(total, watch.first, sorted(written.values()), [commit.timings for commit in commits], watch)


def main(rounds: int = ROUNDS) -> str:
    """Measure and return the table."""
    rows: list[tuple[str, ...]] = [
        (
            "download/compute",
            "download alone, s",
            "compute alone, s",
            "sweep, s",
            "over the larger",
            "with compute as in the sweep",
            "and the process's start",
            "start of the process, s",
            "all, with Ray's start, s",
            "most on disk, MB",
            "bound, MB",
            "longest gap, s",
        )
    ]
    with tempfile.TemporaryDirectory() as place:
        root = write_run(Path(place) / "hub", N_CHECKPOINTS)
        weights = (root / REPOSITORY / "step0" / "model.safetensors").stat().st_size
        for ratio in RATIOS:
            rows.append(_row(root, Path(place) / str(ratio), ratio, weights, rounds))
            print(table("so far", rows), file=sys.stderr, flush=True)
    title = (
        f"Sweep of {N_CHECKPOINTS} checkpoints of Pythia-14m's shape ({weights / 1e6:.0f} MB), {N_TEXTS} texts, fp32; "
        f"medians of {rounds} turns (least to most)"
    )
    return table(title, rows)


def _row(root: Path, place: Path, ratio: float, weights: int, rounds: int) -> tuple[str, ...]:
    alone, sweeps = [_compute_alone(root)], []
    with local_hub(root, N_CHECKPOINTS * weights / (ratio * alone[0])) as (endpoint, token):
        hub = Hub(endpoint, token)
        checkpoints, _ = resolve(hub, SELECTION)
        bound = CACHED * checkpoints[0].bytes
        download = _download_alone(hub, checkpoints, place / "alone", bound)
        for number in range(rounds):
            sweeps.append(swept(hub, checkpoints, place / str(number), bound))
            alone.append(_compute_alone(root))
    sweeps.sort(key=lambda each: each.steady)
    sweep, compute = sweeps[rounds // 2], statistics.median(alone)
    loads = [each["load_seconds"] for each in sweep.timings]
    inside = sum(loads) + sum(each["score_seconds"] for each in sweep.timings) - (loads[0] - statistics.median(loads))
    return (
        f"{download / compute:.2f}",
        f"{download:.1f}",
        f"{compute:.1f} ({min(alone):.1f} to {max(alone):.1f})",
        f"{sweep.steady:.1f} ({sweeps[0].steady:.1f} to {sweeps[-1].steady:.1f})",
        f"{sweep.steady / max(download, compute):.2f}",
        f"{sweep.steady / max(download, inside):.2f}",
        f"{(sweep.steady + sweep.start) / max(download, inside):.2f}",
        f"{sweep.start:.1f}",
        f"{sweep.total:.1f}",
        f"{max(each.watch.most for each in sweeps) / 1e6:.0f}",
        f"{bound / 1e6:.0f}",
        f"{max(each.watch.gap for each in sweeps):.2f}",
    )


def _download_alone(hub: Hub, checkpoints: Sequence[Checkpoint], folder: Path, bound: int) -> float:
    start = time.perf_counter()
    with Cache(folder, bound) as cache:
        for checkpoint in checkpoints:
            cache.fetch(hub, checkpoint)
            cache.release(checkpoint)
    return time.perf_counter() - start


def _compute_alone(root: Path) -> float:
    """Seconds to load, sketch and score all checkpoints from their folders, in a process with nothing else to do."""
    command = [sys.executable, "-m", "tests.benchmarks.overlap", str(root)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _compute(root: Path) -> float:
    folders = RepositorySpec(str(root / REPOSITORY), "step*")
    checkpoints, _ = resolve(Hub("nobody is asked"), dataclasses.replace(SELECTION, repositories=(folders,)))
    compute = Compute(ScoringSettings(), python_stdlib(n=N_TEXTS))

    def score(checkpoint: Checkpoint) -> None:
        compute.score(checkpoint, Path(checkpoint.directory), lambda: None)

    score(checkpoints[0])
    start = time.perf_counter()
    for checkpoint in checkpoints:
        score(checkpoint)
    return time.perf_counter() - start


if __name__ == "__main__":
    print(_compute(Path(sys.argv[1])))
