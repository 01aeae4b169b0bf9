"""Publishing 2,000 columns of 10,000 texts through s3fs and obstore, beside reading the same objects with plain s3fs.

Each measurement is a process of its own, so that its peak memory is its own. Servers: moto in a process of its own, and
Ceph's gateway where radosgw is installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask.array  # noqa: F401 - xarray imports it when it is first used: 0.9 s that are no work
import numpy as np
import s3fs

from klray.store import Column, Identity, Store, layout
from klray.texts import TextSet
from tests.benchmarks.machine import table
from tests.faults.servers import server
from tests.s3_server import why_no_ceph

N_TEXTS = 10_000
FIRST, MORE = 2_000, 100
BACKENDS = ("s3fs", "obstore")
TEXTS = TextSet("bench", tuple(f"text {i:05d} " * 30 for i in range(N_TEXTS)), ("prose",) * N_TEXTS)


def main() -> str:
    """Measure and return the tables."""
    tables = []
    for name in ("ceph",) if why_no_ceph() is None else ("moto",):
        with server(name) as running:
            running.make_bucket("bench")
            tables.append(_measure(name, "s3://bench"))
    return "\n".join(tables)


def _measure(name: str, place: str) -> str:
    rows = [("work", "seconds", "CPU seconds", "ratio", "peak memory")]
    plain: dict[str, Any] = {}
    for backend in BACKENDS:  # each in a store of its own, because what is published need not be read again
        url = f"{place}/{backend}"
        filling = _child("fill", url, backend)
        plain = plain or _child("plain", url, backend)
        first = _child("publish", url, backend)
        _child("fill more", url, backend)
        more = _child("publish", url, backend)
        verified = _child("verify", url, backend)
        status = _child("catalog", url, backend)
        throughput = f"{plain['seconds'] / first['seconds']:.2f} of plain s3fs's throughput"
        share = f"{more['seconds'] / first['seconds']:.1%} of the first time"
        if backend == BACKENDS[0]:
            rows.append(_row("plain s3fs reads commits and values", plain, "1.00"))
        rows += [
            _row(f"{backend}: klray writes and commits {FIRST:,} columns (8 threads)", filling),
            _row(f"{backend}: klray publishes {FIRST:,}", first, throughput),
            _row(f"{backend}: klray publishes {MORE:,} more", more, share),
            _row(f"{backend}: klray verifies every column and chunk", verified),
            _row(f"{backend}: klray knows the facts of all columns (status)", status),
        ]
    return table(f"Publishing {FIRST:,} columns of {N_TEXTS:,} texts on {name}", rows)


def _row(work: str, measured: dict[str, Any], ratio: str = "") -> tuple[str, ...]:
    memory = f"{measured['peak_bytes'] / 2**20:,.0f} MiB"
    return work, f"{measured['seconds']:.2f}", f"{measured['cpu_seconds']:.2f}", ratio, memory


def _fill(store: Store, numbers: range) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert all(first for _, first in threads.map(lambda number: store.add_column(_column(number)), numbers))


def _column(number: int) -> Column:
    values = np.random.default_rng(number).normal(-700, 200, (1, N_TEXTS))
    run, step = f"bench/run-{number % 20:02d}", number // 20 * 1000
    return Column(
        identity=Identity(run, f"{number:040x}", TEXTS.fingerprint),
        log_likelihood=values,
        layers=(-1,),
        n_tokens=np.full(N_TEXTS, 250),
        facts={"revision": f"step{step}", "step": step, "run": run, "family": "bench"},
        versions={},
        timings={},
    )


def _child(what: str, url: str, backend: str) -> dict[str, Any]:
    arguments = [sys.executable, "-m", "tests.benchmarks.publishing", what, url, backend]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _run(what: str, url: str, backend: str) -> None:
    options = {"backend": backend}
    store = Store.create(url, TEXTS, options) if what == "fill" else Store.open(url, options)
    files, root = s3fs.S3FileSystem(use_listings_cache=False), url.removeprefix("s3://")
    objects: list[str] = []
    if what == "plain":
        for commit in store.commits():
            objects += [f"{root}/{layout.commit_path(commit.key)}", f"{root}/{layout.values_path(commit.path)}"]
    start, cpu_start = time.perf_counter(), time.process_time()
    if what == "fill":
        _fill(store, range(FIRST))
    elif what == "fill more":
        _fill(store, range(FIRST, FIRST + MORE))
    elif what == "plain":
        assert len(files.cat(objects)) == 2 * FIRST
    elif what == "publish":
        assert store.publish()[1]
    elif what == "verify":
        assert store.audit().sound == FIRST + MORE
    else:
        assert len(store.catalog()) == FIRST + MORE
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": _peak()}))


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    _run(*sys.argv[1:])
