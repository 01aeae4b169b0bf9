"""All pairs of K models on 10,000 texts in a file: klray beside SciPy, scikit-learn, Dask and the published loop.

    python -m tests.benchmarks.all_pairs [--models 1018 5000] [--budget 2GiB]

Every way runs in a process of its own, in turn, each ``ROUNDS`` times: medians. The floor is half of all products, by
bare BLAS in both cores, of float64 panels in memory. Ways that are marked are measured for a part of the pairs.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.utils import parse_bytes
from scipy.spatial.distance import cdist
from sklearn.metrics import pairwise_distances_chunked

import klray
from klray.analysis.kl.all_pairs import kl_with_standard_error
from klray.analysis.kl.tiling import tiling
from klray.units import kl_per_variance
from tests.benchmarks.machine import table

N_TEXTS, TEXT_BYTES, RUN, CHUNK = 10_000, 900, 154, 400
ROUNDS = 3
PART = 40  # models whose pairs the published loop computes

Result = Any  # (K, K) bits/byte, or what there is of it


def write_models(path: Path, n_models: int) -> None:
    """(K, N) float32: runs of 154 checkpoints by heavy-tailed steps that shrink, from starts of their own."""
    rng = np.random.default_rng(0)
    file = np.lib.format.open_memmap(path, "w+", np.float32, (n_models, N_TEXTS))
    text = -rng.gamma(12.0, 58.0, N_TEXTS)
    size = np.geomspace(12.0, 1.0, RUN)
    for start in range(0, n_models, RUN):
        at = text + 60.0 * rng.standard_normal(N_TEXTS)
        for place, row in enumerate(range(start, min(start + RUN, n_models))):
            at = at + size[place] * rng.standard_t(5, N_TEXTS)
            file[row] = at
    file.flush()


def floor(values: np.ndarray, _: Path, __: int) -> Result:
    """Half of all products of float64 panels."""
    side, n = 2048, len(values)
    panels = [np.ascontiguousarray(values[at : at + side], np.float64) for at in range(0, n, side)]
    room = np.empty((side, side))
    start = time.perf_counter()
    for i, j in combinations(range(len(panels)), 2):
        np.matmul(panels[i], panels[j].T, out=room[: len(panels[i]), : len(panels[j])])
    for panel in panels:  # of a panel with itself half
        half = panel[: len(panel) // 2]
        np.matmul(half, panel.T, out=room[: len(half), : len(panel)])
    return time.perf_counter() - start


def of_klray(error: bool) -> Callable[[np.ndarray, Path, int], Result]:
    """Tile by tile from the file to files; KL alone, or with its standard errors."""

    def work(values: np.ndarray, folder: Path, budget: int) -> Result:
        threads = dask.system.CPU_COUNT
        rows = da.from_array(values, chunks=(CHUNK, -1), name="values", asarray=False)
        plan = tiling(*values.shape, threads, 4, CHUNK, budget)
        print(f"{plan}", file=sys.stderr)
        labelled = xr.DataArray(rows, dims=("model", "text"))
        sizes = np.full(N_TEXTS, TEXT_BYTES)
        if error:
            options = {"reference": np.asarray(values[len(values) // 2]), "tile": plan.tile, "room": plan.room}
            found = [each.data for each in kl_with_standard_error(labelled, sizes, **options)]
        else:
            found = [klray.kl_divergence(labelled, sizes, tile=plan.tile).data]
        shape = (len(values),) * 2
        files = [np.lib.format.open_memmap(folder / f"{at}.npy", "w+", np.float64, shape) for at in range(len(found))]
        with dask.config.set(scheduler="threads", num_workers=threads):
            da.store(found, files, lock=False)
        return files[0]

    return work


def plain_dask(values: np.ndarray, folder: Path, _: int) -> Result:
    """The formula as a Dask expression of centred rows: |x|^2 + |y|^2 - 2 <x, y>."""
    rows = da.from_array(values, chunks=(1024, -1)).astype(np.float64)
    rows = rows - rows.mean(axis=1, keepdims=True)
    squares = (rows**2).sum(axis=1)
    found = (squares[:, None] + squares[None] - 2 * rows @ rows.T) * (kl_per_variance(TEXT_BYTES) / N_TEXTS)
    file = np.lib.format.open_memmap(folder / "dask.npy", "w+", np.float64, found.shape)
    da.store(found, file, lock=False)
    return file


def scikit_learn(values: np.ndarray, folder: Path, _: int) -> Result:
    """pairwise_distances_chunked, squared Euclidean, of float64 rows in memory."""
    rows = values.astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    file = np.lib.format.open_memmap(folder / "sklearn.npy", "w+", np.float64, (len(rows),) * 2)
    at = 0
    for part in pairwise_distances_chunked(rows, metric="sqeuclidean", n_jobs=1):
        file[at : at + len(part)] = part * (kl_per_variance(TEXT_BYTES) / N_TEXTS)
        at += len(part)
    return file


def scipy_part(values: np.ndarray, _: Path, __: int) -> Result:
    """SciPy's cdist, squared Euclidean, of a part; scaled to all pairs."""
    rows = values.astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    part = rows[: min(256, len(rows))]
    start = time.perf_counter()
    cdist(part, part, "sqeuclidean")
    return (time.perf_counter() - start) * (len(rows) / len(part)) ** 2 / 2


def published_part(values: np.ndarray, _: Path, __: int) -> Result:
    """The loop over pairs of the published code, np.var of a difference, of a part; scaled to all pairs."""
    start = time.perf_counter()
    n = len(list(map(lambda pair: np.var(values[pair[0]] - values[pair[1]]), combinations(range(PART), 2))))
    return (time.perf_counter() - start) * (len(values) * (len(values) - 1) / 2) / n


WAYS: dict[str, Callable[[np.ndarray, Path, int], Result]] = {
    "floor: half the products, bare BLAS": floor,
    "klray": of_klray(error=False),
    "klray, with standard errors": of_klray(error=True),
    "plain Dask": plain_dask,
    "scikit-learn, in chunks": scikit_learn,
    "SciPy (a part, scaled)": scipy_part,
    "published loop (a part, scaled)": published_part,
}


def one(name: str, path: Path, budget: int) -> None:
    """Run one way and print what it took as JSON."""
    values = np.load(path, mmap_mode="r")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        start = time.perf_counter()
        found = WAYS[name](values, Path(folder), budget)
        taken = found if isinstance(found, float) else time.perf_counter() - start
        error = 0.0 if isinstance(found, float) else _largest_error(values, found)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": taken, "peak_mb": peak, "error": error}))


def _largest_error(values: np.ndarray, found: np.ndarray) -> float:
    """Of pairs at 1e-6 bits/byte and above: neighbours of the ends of runs, and any."""
    rng = np.random.default_rng(1)
    ends = np.arange(RUN - 2, len(values) - 1, RUN)
    pairs = [*zip(ends, ends + 1, strict=True), *rng.integers(0, len(values), (200, 2))]
    worst = 0.0
    for i, j in pairs:
        expected = np.var(values[i].astype(np.float64) - values[j]) * kl_per_variance(TEXT_BYTES)
        if expected >= 1e-6:
            worst = max(worst, abs(found[i, j] / expected - 1))
    return worst


def compare(n_models: int, budget: int, leave_out: tuple[str, ...] = ()) -> str:
    """Every way at one size, as a table."""
    names = [name for name in WAYS if not name.startswith(leave_out or ("-",))]
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "values.npy"
        write_models(path, n_models)
        for _ in range(ROUNDS):
            for name in names:
                command = [sys.executable, "-m", "tests.benchmarks.all_pairs", "--one", name, "--values", str(path)]
                done = subprocess.run([*command, "--budget", f"{budget}B"], stdout=subprocess.PIPE, check=True)
                taken[name].append(json.loads(done.stdout))
    medians = {name: statistics.median(each["seconds"] for each in runs) for name, runs in taken.items()}
    base = medians[names[0]]
    rows = [(f"{n_models:,} x {N_TEXTS:,}", "seconds", "x floor", "peak MB", "largest error")]
    for name in names:
        peak = statistics.median(each["peak_mb"] for each in taken[name])
        error = max(each["error"] for each in taken[name])
        rows.append((name, f"{medians[name]:.2f}", f"{medians[name] / base:.2f}", f"{peak:,.0f}", f"{error:.0e}"))
    return table(f"All pairs, budget {budget / 2**30:.1f} GiB", rows)


def main() -> str:
    """Measure 1,018 models and return the table."""
    return compare(1018, 2 * 2**30)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, nargs="+", default=[1018])
    parser.add_argument("--budget", type=parse_bytes, default="2GiB")
    parser.add_argument("--without", nargs="*", default=[])
    parser.add_argument("--one")
    parser.add_argument("--values", type=Path)
    given = parser.parse_args()
    if given.one:
        one(given.one, given.values, given.budget)
    else:
        for size in given.models:
            print(compare(size, given.budget, tuple(given.without)))
