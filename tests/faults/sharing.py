"""Sharing: 16 jobs in processes of their own over one list of 154 checkpoints, with nothing between them but the store.

Promised: each column is committed once, with one attempt's values; nobody waits for a job that died; hardly anything is
scored twice; what claims are left over is found by verify and taken out by repair.

Injected: a job that is killed while it scores; a zombie, which goes on when its claim is long over; clocks that are
years off. Not production: the scorer, which sleeps, and the least life of a claim, a few seconds.

Requests are counted as a bucket is asked: those of listings apart, which grow with the time and not with the list.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import TypeVar
from unittest import mock

from klray.checkpoints import Checkpoint, Facts, RemoteFile
from klray.store import Store, claims
from klray.store.jobs import RUNNING, Job
from klray.store.objects.bucket import BucketObjects
from klray.store.objects.roles import Action
from klray.sweep import others as others_module
from klray.sweep.claims import Claims, Held
from klray.sweep.deaths import this_process
from klray.sweep.others import Others
from klray.sweep.queue import Queue, Work
from tests.faults.forked import CONTEXT, forked_from
from tests.faults.model import TEXTS, Model, make_column
from tests.faults.servers import new_bucket, server
from tests.sharing import ideal

N_JOBS = 16
N_CHECKPOINTS = 154
LONGEST_SECONDS = 2.0
LIFE_SECONDS = 8.0  # of a claim, at least
LIMIT_SECONDS = 300.0
KINDS = ("killed", "zombie", "clock")
TWICE = 0.03  # of the checkpoints may be scored twice by jobs that nothing happens to

MOST_LOST = 4  # scores of a job that is killed, of which nobody is told

T = TypeVar("T")


def seconds_of(count: int, seed: int, longest: float) -> list[float]:
    """How long the scorer sleeps, for each checkpoint."""
    dice = random.Random(seed)
    return [longest * dice.uniform(0.5, 1.0) for _ in range(count)]


def run(
    schedules: int, seed: int, place: str = "folder", longest: float = LONGEST_SECONDS, *, disturbed: bool = True
) -> collections.Counter[str]:
    """So many lists, each shared by 16 jobs whose scores take ``longest`` seconds or less; what happened how often.

    Raises
    ------
    AssertionError
        A promise was broken.
    """
    tally: collections.Counter[str] = collections.Counter()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="klray-faults-")))
        base = str(scratch / "stores")
        if place != "folder":
            base = f"s3://{new_bucket(stack.enter_context(server(place)))}"
        stack.enter_context(forked_from("tests.faults.sharing"))
        for number in range(schedules):
            tally += _share(f"{base}/{number}", scratch, seed + number, longest, disturbed=disturbed)
            tally["schedules"] += 1
    return tally


def _share(url: str, scratch: Path, seed: int, longest: float, *, disturbed: bool) -> collections.Counter[str]:
    Store.create(url, TEXTS, single_writer=True)
    kinds = dict(zip(random.Random(seed).sample(range(N_JOBS), len(KINDS)), KINDS, strict=True)) if disturbed else {}
    ends = scratch / f"ends {seed}"
    ends.mkdir()
    started = CONTEXT.Event()
    processes = []
    for job in range(N_JOBS):
        arguments = (url, job, kinds.get(job, ""), seed, longest, ends, started, dict(os.environ))
        processes.append(CONTEXT.Process(target=_live, args=arguments, daemon=True))
    try:
        for process in processes:
            process.start()
        limit = time.monotonic() + LIMIT_SECONDS
        while len(list(ends.glob("ready*"))) < N_JOBS:
            assert time.monotonic() < limit, "the jobs have not started"
            time.sleep(0.05)
        start = time.time()
        started.set()
        for job, process in enumerate(processes):
            process.join(max(0.0, limit - time.monotonic()))
            expected = -signal.SIGKILL if kinds.get(job) == "killed" else 0
            error = ends / f"error {job}"
            words = error.read_text() if error.exists() else process.exitcode
            assert process.exitcode == expected, f"job {job} ({kinds.get(job)}): {words}"
    finally:
        for process in processes:
            process.kill()
    found = [json.loads(path.read_bytes()) for path in ends.glob("end *")]
    _judge(Store.open(url))
    sound = [each for each in found if each["kind"] in ("", "clock")]
    scored = sum(each["scored"] for each in found)
    tally: collections.Counter[str] = collections.Counter()
    tally["scored"], tally["second"] = scored, sum(each["second"] for each in found)
    tally["lists"] = sum(each["looks"] for each in found)
    dead = {job for each in found for job in each["dead"]}
    assert len(dead) <= list(kinds.values()).count("killed"), f"taken for dead: {dead}"
    tally["found dead"] = len(dead)
    for what in ("requests", "listings"):
        tally[what] = sum(each["asked"].get(what, 0) for each in found)
    assert sum(each["second"] for each in sound) <= TWICE * N_CHECKPOINTS + (1 if disturbed else 0), found
    best = ideal([each for job in found for each in job["seconds"]], [0.0] * N_JOBS)
    tally["hundredths of the ideal wall time"] = round(100 * (max(each["end"] for each in sound) - start) / best)
    tally.update(kinds.values())
    return tally


class _Off(datetime):
    """A clock that is years off."""

    @classmethod
    def now(cls, _: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(UTC) + timedelta(days=1000)


@contextlib.contextmanager
def _disturbed(kind: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if kind == "clock":
            stack.enter_context(mock.patch.object(claims, "datetime", _Off))
        yield


def _live(
    url: str,
    job: int,
    kind: str,
    seed: int,
    longest: float,
    ends: Path,
    started: object,
    environment: dict[str, str],
) -> None:
    """One job, from its start to its end."""
    os.environ.update(environment)
    random.seed(seed * N_JOBS + job)
    try:
        with _disturbed(kind), mock.patch.object(others_module, "LEAST_SECONDS", LIFE_SECONDS):
            _work(url, job, kind, seed, longest, ends, started)
    except Exception:  # noqa: BLE001 - told to the process that waits
        (ends / f"error {job}").write_text(traceback.format_exc())
        sys.exit(1)


def _work(url: str, job: int, kind: str, seed: int, longest: float, ends: Path, started: object) -> None:
    store = Store.open(url)
    name, took = f"{random.getrandbits(128):032x}", seconds_of(N_CHECKPOINTS, seed, longest)
    claimed = Claims(store, name)
    store.beat(Job(name, "here", "sharing", RUNNING, "", N_CHECKPOINTS, process=this_process()))
    columns = [make_column(number, job) for number in range(N_CHECKPOINTS)]
    numbers = {each.identity.key: number for number, each in enumerate(columns)}
    files = [(RemoteFile("model.safetensors", 1, f"{number:064x}", None),) for number in range(N_CHECKPOINTS)]
    works = [
        Work(Checkpoint(each.identity.repository, "step", each.identity.commit, files[number], Facts()), each.identity)
        for number, each in enumerate(columns)
    ]
    queue = Queue(works, {})
    dies = random.randint(2, MOST_LOST)
    scored, second, seconds = 0, 0, list[float]()
    (ends / f"ready {job}").touch()
    started.wait()  # type: ignore[attr-defined]
    with _counted() as asked, Others(store, job=name) as others:

        def gone(one: Work) -> None:
            queue.settle(one, committed=True)

        while True:
            one = others.next(lambda: queue.take("", set()), gone)
            if one is None:
                if not others.waiting:
                    break
                time.sleep(min(max(others.pause, 0.05), 0.5))
                continue
            key = one.identity.key
            taken = claimed.take(key, one.turn)
            if isinstance(taken, Held):
                others.hold(one, taken.host, taken.job)
                continue
            if not taken:
                others.end(one, scored=False)
                gone(one)
                continue
            if kind and scored == dies:
                if kind == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if kind == "zombie":
                    time.sleep(4 * LIFE_SECONDS)
            begun = time.monotonic()
            time.sleep(took[numbers[key]])
            _, first = store.add_column(columns[numbers[key]])
            scored, second = scored + 1, second + (not first)
            seconds.append(time.monotonic() - begun)
            claimed.drop(key)
            others.end(one, scored=True)
        looks = others.looks
    end: dict[str, object] = {"kind": kind, "scored": scored, "second": second, "looks": looks, "end": time.time()}
    end |= {"seconds": seconds, "asked": dict(asked), "dead": sorted(others.dead)}
    (ends / f"end {job}").write_text(json.dumps(end))


@contextlib.contextmanager
def _counted() -> Iterator[collections.Counter[str]]:
    """How often this process asks a bucket: for listings, and for all else."""
    asked: collections.Counter[str] = collections.Counter()
    patiently = BucketObjects._patiently

    def counting(self: BucketObjects, attempt: Callable[[], T], key: str, action: Action = "write") -> T:
        asked["listings" if action == "list" else "requests"] += 1
        return patiently(self, attempt, key, action)

    with mock.patch.object(BucketObjects, "_patiently", counting):
        yield asked


def _judge(store: Store) -> None:
    model = Model()
    for number in range(N_CHECKPOINTS):
        for job in range(N_JOBS):
            model.begin(make_column(number, job))
    commits = store.commits()
    assert len(commits) == N_CHECKPOINTS, f"{len(commits)} commits, {N_CHECKPOINTS} were expected"
    model.see_commits({commit.key: commit.sha256 for commit in commits}, repairing=False)
    for commit in commits:
        model.see_rows([commit.key], store.read_column(commit))
    found = store.audit()
    assert found.sound == N_CHECKPOINTS and not found.damages, found.damages
    assert {leftover.kind for leftover in found.leftovers} <= {"column", "claim", "temporary"}, found.leftovers
    store.repair(found, timedelta(0))
    assert store.standing_claims() == {}
