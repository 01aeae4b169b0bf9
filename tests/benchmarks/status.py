"""``klray status`` on a store with 20,000 published commits, in requests that a server sees and in seconds.

Its peer is what it would take without the catalog: reading every commit object.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import time
from collections.abc import Callable
from unittest import mock

import numpy as np

from jobs.status import status
from klray.config import Config, StoreConfig
from klray.store import Column, Identity, Store, layout
from klray.texts import TextSet
from tests.benchmarks.machine import table
from tests.faults.proxy import Plan, proxy
from tests.faults.servers import server
from tests.s3_server import why_no_ceph
from tests.stores import put_column

N_COMMITS, NEW = 20_000, 10
TEXTS = TextSet("bench", tuple(f"text {i} " * 40 for i in range(4)), ("prose",) * 4)
NAME = "schedule-status"  # by which the proxy knows whose requests it counts


def main() -> str:
    """Measure and return the table."""
    name = "moto" if why_no_ceph() else "ceph"
    rows = [("work", "requests", "seconds")]
    with server(name) as running, proxy(running.endpoint) as network:
        running.make_bucket("bench")
        url = f"s3://bench/{NAME}"
        filling = Store.create(url, TEXTS)
        fill(filling, range(N_COMMITS))
        network.schedules[NAME] = Plan("", share=0.0)

        def measure(what: str, work: Callable[[], object]) -> None:
            plan = network.schedules[NAME] = Plan("", share=0.0)
            start = time.perf_counter()
            work()
            rows.append((what, f"{plan.requests:,}", f"{time.perf_counter() - start:.1f}"))

        with mock.patch.dict("os.environ", AWS_ENDPOINT_URL=network.endpoint):
            store = Store.open(url)
            measure(f"publishing {N_COMMITS:,} columns of {len(TEXTS)} texts", store.publish)
            measure("klray status after it", lambda: _status(url))
            fill(filling, range(N_COMMITS, N_COMMITS + NEW))
            measure(f"klray status with {NEW} more commits", lambda: _status(url))
            measure("reading every commit object", store.commits)
    return table(f"Status of {N_COMMITS:,} commits on {name}", rows)


def _status(url: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status(Config(store=StoreConfig(url=url)))
    assert f"columns    {N_COMMITS:,}" in printed.getvalue() or f"columns    {N_COMMITS + NEW:,}" in printed.getvalue()


def fill(store: Store, numbers: range) -> None:
    """Columns as klray writes them, of equal values, many in one call: only identities and paths differ."""
    values = np.linspace(-500, -400, len(TEXTS))[None]
    column = Column(Identity("org/x", "0" * 40, TEXTS.fingerprint), values, (-1,), np.full(len(TEXTS), 7), {}, {}, {})
    written: dict[str, bytes] = {}
    with mock.patch.object(store.objects, "put_many", written.update):
        template = put_column(store, column, "a" * 32)
    bodies: dict[str, bytes] = {}
    for number in numbers:
        run, step = f"bench/run-{number % 20:02d}", number // 20 * 1000
        identity = dataclasses.replace(column.identity, repository=run, commit=f"{number:040x}")
        path = layout.column_path(run, f"step{step}", identity.key, "a" * 32)
        facts = {**template.facts, "revision": f"step{step}", "step": step, "run": run, "family": "bench"}
        commit = dataclasses.replace(template, key=identity.key, path=path, identity=identity, facts=facts)
        bodies |= {key.replace(template.path, path, 1): body for key, body in written.items()}
        bodies[layout.commit_path(commit.key)] = commit.to_json()
    store.objects.put_many(bodies)
