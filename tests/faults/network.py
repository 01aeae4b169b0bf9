"""Network: jobs on one store over real S3 clients, through a proxy that loses, breaks, refuses, stalls and repeats.

Promised:
- writers, publishers and readers survive every fault of ``proxy.FAULTS``: nobody gives up;
- every column is committed, whoever is told that its commit stands is told the truth, and nothing is replaced;
- a reader gets committed values, never fill values; it sees the old snapshot or the new one;
- in the end, looked at without the proxy, columns and snapshots hold what was committed, bit for bit, and verify finds
  no damage.

A schedule is two to four writers, a publisher and a reader, each a thread with a client of its own, and what its seed
draws for every request. Threads meet in an order that the machine decides, so that the same seed is the same faults,
not the same run. Pauses before repeated requests are shortened: it is their number that matters here.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import random
import threading
import types
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest import mock

import botocore.retryhandler
import s3fs

from klray.errors import Pauses, StoreError
from klray.store import Store
from klray.store.columns import commit_column
from klray.store.objects import bucket as bucket_module
from klray.store.objects import opening, s3
from tests.faults.model import TEXTS, Model, make_column, sha256, small_snapshots
from tests.faults.proxy import Plan, Proxy, proxy
from tests.faults.servers import new_bucket, server
from tests.stores import put_column

N_KEYS = 3
SCHEDULES_AT_ONCE = 6  # most of a schedule is waiting
ACTORS_AT_ONCE = 6 * SCHEDULES_AT_ONCE
SHARES = (0.02, 0.05, 0.1, 0.2)
FIRST_PAUSE_SECONDS = 0.01
READS = 2


@dataclasses.dataclass
class Outcome:
    """What a schedule's writers were told: (key, SHA-256 of the attempt, whether its commit stands)."""

    told: list[tuple[str, str, bool]] = dataclasses.field(default_factory=list)


def run(schedules: int, seed: int, name: str = "moto", backend: str = "s3fs") -> collections.Counter[str]:
    """Run that many schedules with the seeds ``seed`` and above; returns what happened how often.

    ``name`` is the server's, ``backend`` the library through which klray asks it.

    Raises
    ------
    AssertionError
        A promise was broken; the message begins with the schedule's seed.
    """
    tally: collections.Counter[str] = collections.Counter()
    with (
        mock.patch.object(opening, "DEFAULT_BACKEND", backend),
        server(name) as running,
        proxy(running.endpoint) as network,
        quick_retries(),
        small_snapshots(),
        own_clients(),
        ThreadPoolExecutor(ACTORS_AT_ONCE) as actors,
        ThreadPoolExecutor(SCHEDULES_AT_ONCE) as conductors,
    ):
        bucket = new_bucket(running)
        futures = {
            number: conductors.submit(_schedule, number, bucket, network, running.endpoint, actors)
            for number in range(seed, seed + schedules)
        }
        try:
            for number, future in futures.items():
                try:
                    tally += future.result()
                except (Exception, AssertionError) as error:
                    raise AssertionError(f"seed {number}: {type(error).__name__}: {error}") from error
        finally:
            conductors.shutdown(wait=True, cancel_futures=True)
    return tally


def _schedule(
    number: int, bucket: str, network: Proxy, endpoint: str, actors: ThreadPoolExecutor
) -> collections.Counter[str]:
    """One schedule on a store of its own."""
    dice = random.Random(number)
    name = f"schedule-{number}"
    url = f"s3://{bucket}/{name}"
    plan = Plan(str(number), dice.choice(SHARES))
    Store.create(url, TEXTS, {"endpoint_url": endpoint}, single_writer=True)  # without the probe of 16 writers
    through = {"endpoint_url": network.endpoint}
    network.schedules[name] = plan
    model = Model()
    outcome = Outcome()
    done = threading.Event()
    n_writers = dice.randint(2, 4)
    orders = [dice.sample(range(N_KEYS), N_KEYS) for _ in range(n_writers)]
    for number_of_writer in range(n_writers):
        for key in range(N_KEYS):
            model.begin(make_column(key, number_of_writer))
    writers = [actors.submit(_write, url, through, order, who, outcome) for who, order in enumerate(orders)]
    others = [actors.submit(_read, url, through, done), actors.submit(_publish, url, through, done)]
    gave_up = [error for error in map(Future.exception, writers) if error]
    done.set()
    gave_up += [error for error in map(Future.exception, others) if error]
    network.settle()
    del network.schedules[name]
    if gave_up:
        raise gave_up[0]
    _judge(Store.open(url, {"endpoint_url": endpoint}), model, outcome, [other.result() for other in others])
    return collections.Counter({"schedules": 1, "requests": plan.requests, **plan.injected})


def _write(url: str, options: dict[str, Any], order: list[int], who: int, outcome: Outcome) -> None:
    store = Store.open(url, options)
    for number in order:
        column = make_column(number, who)
        if store.is_committed(column.identity.key) and who % 2:
            continue  # as a sweep does; the others score all the same and come second
        stands = commit_column(store.objects, put_column(store, column, f"{who:08x}" * 4))
        outcome.told.append((column.identity.key, sha256(column), stands))


def _publish(url: str, options: dict[str, Any], done: threading.Event) -> list[Any]:
    """Publish while others write, and again when they have finished."""
    store = Store.open(url, options)
    while not store.committed_keys() and not done.is_set():
        done.wait(0.02)
    published = []
    if store.committed_keys():
        published.append(store.publish()[0])
    done.wait()
    published.append(store.publish()[0])
    return published


def _read(url: str, options: dict[str, Any], done: threading.Event) -> list[Any]:
    """Open the newest snapshot and read it a while later, again and again."""
    store = Store.open(url, options)
    found: list[Any] = []
    while len(found) < READS:
        finished = done.is_set()
        try:
            data = store.dataset()
        except StoreError as error:
            if "no snapshot yet" not in str(error):
                raise
            if finished:
                return found
        else:
            store.commits()
            found.append((data.attrs["snapshot"], data["key"].values.tolist(), data["log_likelihood"].values))
            if finished:
                return found
        done.wait(0.03)
    return found


def _judge(store: Store, model: Model, outcome: Outcome, results: list[Any]) -> None:
    read, published = results
    model.see_commits({commit.key: commit.sha256 for commit in store.commits()}, repairing=False)
    assert len(model.stands) == N_KEYS, f"{N_KEYS - len(model.stands)} columns are lost"
    for key, sha, stands in outcome.told:
        assert (model.stands[key] == sha) == stands, f"a writer of {key[:8]} was told {stands}; it is the other way"
    found = store.audit()
    assert not found.damages, found.damages
    assert found.sound == N_KEYS
    for snapshot in store.snapshot_ids():
        data = store.dataset(snapshot)
        model.see_snapshot(snapshot, data["key"].values.tolist(), data["log_likelihood"].values)
    for each in read:
        model.see_snapshot(*each)
    assert {manifest.id for manifest in published} <= set(model.snapshots)
    newest, _ = store.publish()  # a late repeat of a request can have moved LATEST back
    data = store.dataset()
    assert data.attrs["snapshot"] == newest.id
    model.see_snapshot(newest.id, data["key"].values.tolist(), data["log_likelihood"].values)
    assert model.snapshots[newest.id] == model.stands, "the newest snapshot does not hold what is committed"


@contextlib.contextmanager
def quick_retries() -> Iterator[None]:
    """Shorter pauses in klray, botocore and s3fs, which pause 0.2 s, up to 1 s and 0.1 s before the first repeat."""

    def delay(base: Any, growth_factor: float, attempts: int) -> float:
        return random.uniform(0.5, 1.5) * FIRST_PAUSE_SECONDS * growth_factor ** (attempts - 1)

    with (
        mock.patch.object(bucket_module, "PAUSES", Pauses(FIRST_PAUSE_SECONDS / 2, 8, 2.0)),
        mock.patch.object(botocore.retryhandler, "delay_exponential", delay),
    ):
        yield


@contextlib.contextmanager
def own_clients() -> Iterator[None]:
    """Every thread has clients of its own, and keeps them for later schedules: making one takes 0.1 s."""
    real = s3fs.S3FileSystem
    kept: dict[tuple[Any, ...], s3fs.S3FileSystem] = {}

    def client(**options: Any) -> s3fs.S3FileSystem:
        key = (threading.get_ident(), repr(sorted(options.items())))
        if key not in kept:
            kept[key] = real(**{**options, "skip_instance_cache": True})
        return kept[key]

    with mock.patch.object(s3, "s3fs", types.SimpleNamespace(S3FileSystem=client)):
        yield
    for each in kept.values():
        if each._s3 is not None and not each.asynchronous:
            each.close_session(each.loop, each._s3)
