"""Publishing 2,000 columns of 10,000 texts, beside reading the same objects with plain concurrent s3fs.

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

import numpy as np
import s3fs

from klray.store import Column, Identity, Store, layout
from klray.texts import TextSet
from tests.benchmarks.machine import table
from tests.faults.servers import server
from tests.s3_server import why_no_ceph

N_TEXTS = 10_000
FIRST, MORE = 2_000, 100
TEXTS = TextSet("bench", tuple(f"text {i:05d} " * 30 for i in range(N_TEXTS)), ("prose",) * N_TEXTS)


def main() -> str:
    """Measure and return the tables."""
    tables = []
    for name in ("ceph",) if why_no_ceph() is None else ("moto",):
        with server(name) as running:
            running.make_bucket("bench")
            tables.append(_measure(name, "s3://bench/publishing"))
    return "\n".join(tables)


def _measure(name: str, url: str) -> str:
    store = Store.create(url, TEXTS)
    filling = _fill(store, range(FIRST))
    plain = _child("plain", url)
    first = _child("publish", url)
    _fill(store, range(FIRST, FIRST + MORE))
    more = _child("publish", url)
    status = _child("catalog", url)
    rows = [
        ("work", "seconds", "ratio", "peak memory"),
        (f"writing and committing {FIRST:,} columns (8 threads)", f"{filling:.1f}", "", ""),
        ("plain s3fs reads their commits and values", f"{plain['seconds']:.2f}", "1.00", _mib(plain)),
        (
            f"klray publishes {FIRST:,}",
            f"{first['seconds']:.2f}",
            f"{plain['seconds'] / first['seconds']:.2f} of plain s3fs's throughput",
            _mib(first),
        ),
        (
            f"klray publishes {MORE:,} more",
            f"{more['seconds']:.2f}",
            f"{more['seconds'] / first['seconds']:.1%} of the first time",
            _mib(more),
        ),
        ("klray knows the facts of all columns (status)", f"{status['seconds']:.2f}", "", _mib(status)),
    ]
    return table(f"Publishing {FIRST:,} columns of {N_TEXTS:,} texts on {name}", rows)


def _mib(measured: dict[str, Any]) -> str:
    return f"{measured['peak_bytes'] / 2**20:,.0f} MiB"


def _fill(store: Store, numbers: range) -> float:
    start = time.perf_counter()
    with ThreadPoolExecutor(8) as threads:
        assert all(first for _, first in threads.map(lambda number: store.add_column(_column(number)), numbers))
    return time.perf_counter() - start


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


def _child(what: str, url: str) -> dict[str, Any]:
    arguments = [sys.executable, "-m", "tests.benchmarks.publishing", what, url]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _run(what: str, url: str) -> None:
    store = Store.open(url)
    files, root = s3fs.S3FileSystem(use_listings_cache=False), url.removeprefix("s3://")
    objects: list[str] = []
    if what == "plain":
        for commit in store.commits():
            objects += [f"{root}/{layout.commit_path(commit.key)}", f"{root}/{layout.values_path(commit.path)}"]
    start = time.perf_counter()
    if what == "plain":
        assert len(files.cat(objects)) == 2 * FIRST
    elif what == "publish":
        assert store.publish()[1]
    else:
        assert len(store.catalog()) == FIRST + MORE
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_bytes": _peak()}))


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    _run(*sys.argv[1:])
