"""Processes: 32 writers over the same 32 checkpoints, killed at every step of the protocol and started again.

Promised: in the end exactly 32 commits, each naming one attempt's values, bit for bit what that writer would have
written undisturbed; nothing else is visible; verify finds no damage, only orphans; a store whose creator was killed at
any step is completed by the next.

Injected: SIGKILL by the process itself, before or after one operation on objects (and on a folder the hard link and
every flush to the disk inside one), such that over a run every step is hit on both sides; and SIGKILL from
outside at any moment.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import multiprocessing.connection
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from klray.store import Store
from klray.store import store as store_module
from klray.store.columns import commit_column
from klray.store.objects import Objects, folder, open_objects
from tests.faults.forked import CONTEXT, forked_from
from tests.faults.gates import GatedObjects
from tests.faults.model import TEXTS, Model, make_column, sha256, small_snapshots
from tests.faults.servers import new_bucket, server
from tests.stores import put_column

N_WRITERS = 32
N_KEYS = 32
LIVES = (2, 5)  # that end by SIGKILL, before a writer is left alone
OUTSIDE = 0.15  # share of the lives that end by SIGKILL from outside
OUTSIDE_SECONDS = (0.05, 1.5)
SIDES = ("before", "after")
LIMIT_SECONDS = 900.0


@dataclasses.dataclass(frozen=True)
class Death:
    """Where a process kills itself: on one side of the n-th time that it takes a step."""

    step: str
    side: str
    occurrence: int


class Mortal:
    """The gate of a process: counts the steps that it takes and kills it where it is to die."""

    def __init__(self, death: Death | None, hits: Path | None):
        self.death = death
        self.hits = hits
        self.steps: collections.Counter[str] = collections.Counter()

    def pass_gate(self, operation: str, effect: Callable[[], Any]) -> Any:
        step = self._take(operation)
        try:
            return effect()
        finally:
            self._die_if(step, "after")

    def _take(self, operation: str) -> str:
        step = step_name(operation)
        self.steps[step] += 1
        self._die_if(step, "before")
        return step

    def _die_if(self, step: str, side: str) -> None:
        if self.death == Death(step, side, self.steps[step]):
            assert self.hits
            with self.hits.open("a") as file:
                file.write(f"{side} {step}\n")
            os.kill(os.getpid(), signal.SIGKILL)


def step_name(operation: str) -> str:
    """A step of the protocol: the operation without what differs from column to column."""
    text = re.sub(r"columns/[^/]+/[^/]+/[0-9a-f]+-[0-9a-f]+", "columns/*", operation)
    text = re.sub(r"[0-9a-f]{64}", "*", text)
    return re.sub(r"\[.*", "[...]", text)


@contextlib.contextmanager
def mortal_world(mortal: Mortal) -> Iterator[None]:
    """Every store that is opened meanwhile is one on which this process may die."""

    def opened(url: str, storage_options: Any = None) -> Objects:
        return GatedObjects(open_objects(url, storage_options), mortal)

    def inside(name: str) -> Callable[..., Any]:
        real = getattr(os, name)
        return lambda *args, **kwargs: mortal.pass_gate(f"{name} inside", lambda: real(*args, **kwargs))

    class Os:
        """``os`` as ``klray.store.objects.folder`` sees it."""

        link = staticmethod(inside("link"))
        fsync = staticmethod(inside("fsync"))

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

    with mock.patch.object(store_module, "open_objects", opened), mock.patch.object(folder, "os", Os()):
        yield


def run(_: int, seed: int, place: str = "folder") -> collections.Counter[str]:
    """32 writers over 32 checkpoints, once; returns what happened how often.

    Raises
    ------
    AssertionError
        A promise was broken.
    """
    with contextlib.ExitStack() as stack:
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=memory, prefix="klray-faults-")))
        stack.enter_context(small_snapshots())
        if place == "folder":
            base = str(scratch / "stores")
        else:
            base = f"s3://{new_bucket(stack.enter_context(server(place)))}"
        stack.enter_context(forked_from("tests.faults.processes"))
        tally = _creators(base, scratch, seed)
        return tally + _writers(f"{base}/writers", scratch, seed)


def _creators(base: str, scratch: Path, seed: int) -> collections.Counter[str]:
    """Kill a creator on both sides of every step; another completes the store."""
    tally: collections.Counter[str] = collections.Counter()
    steps = _steps_of(lambda: Store.create(f"{base}/created", TEXTS, single_writer=True))
    for number, (step, side) in enumerate((step, side) for step in steps for side in SIDES):
        url = f"{base}/created-{number}"
        process = CONTEXT.Process(
            target=_create, args=(url, Death(step, side, 1), scratch / "hits", dict(os.environ)), daemon=True
        )
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, f"the creator was not killed {side} {step}: {process.exitcode}"
        store = Store.create(url, TEXTS, single_writer=True)
        assert store.texts.domains == TEXTS.domains and store.texts.text_bytes.tolist() == TEXTS.n_bytes.tolist()
        tally[f"killed {side} a step of creation"] += 1
    return tally


def _create(url: str, death: Death, hits: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)  # it comes from a fork server that may have begun before the S3 server
    with mortal_world(Mortal(death, hits)):
        Store.create(url, TEXTS, single_writer=True)


def _steps_of(work: Callable[[], Any]) -> list[str]:
    """The steps that ``work`` takes when nothing goes wrong."""
    mortal = Mortal(None, None)
    with mortal_world(mortal):
        work()
    return list(mortal.steps)


def _writers(url: str, scratch: Path, seed: int) -> collections.Counter[str]:
    dice = random.Random(seed)
    hits = scratch / "hits of writers"
    hits.touch()
    Store.create(f"{url}-dry", TEXTS, single_writer=True)
    steps = _steps_of(lambda: _work(f"{url}-dry", 0, [0], checks=True))
    wanted = [(step, side) for step in steps for side in SIDES]
    lives = [dice.randint(*LIVES) for _ in range(N_WRITERS)]
    running: dict[int, multiprocessing.connection.Connection | Any] = {}
    until: dict[int, float] = {}
    tally: collections.Counter[str] = collections.Counter()
    turn = 0
    limit = time.monotonic() + LIMIT_SECONDS

    def begin(writer: int) -> None:
        nonlocal turn
        death = None
        if lives[writer] > 0 and dice.random() < OUTSIDE:
            until[writer] = time.monotonic() + dice.uniform(*OUTSIDE_SECONDS)
        elif lives[writer] > 0:
            step, side = wanted[turn % len(wanted)]
            death = Death(step, side, 1 if turn < len(wanted) else dice.randint(1, 3))
            turn += 1
        order = dice.sample(range(N_KEYS), N_KEYS)
        seed_of_life, environment = dice.getrandbits(32), dict(os.environ)
        arguments = (url, writer, order, death, hits, scratch / f"error {writer}", seed_of_life, environment)
        running[writer] = CONTEXT.Process(target=_live, args=arguments, daemon=True)
        running[writer].start()
        tally["processes"] += 1

    try:
        for writer in range(N_WRITERS):
            begin(writer)
        while running:
            assert time.monotonic() < limit, f"writers {sorted(running)} have not finished after {LIMIT_SECONDS} s"
            multiprocessing.connection.wait([process.sentinel for process in running.values()], timeout=0.05)
            for writer, process in list(running.items()):
                if process.is_alive():
                    if until.get(writer, limit) < time.monotonic():
                        process.kill()
                    continue
                process.join()
                if process.exitcode == -signal.SIGKILL:
                    tally["killed from outside" if until.pop(writer, None) else "killed by themselves"] += 1
                    lives[writer] -= 1
                    begin(writer)
                else:
                    error = scratch / f"error {writer}"
                    assert process.exitcode == 0, error.read_text() if error.exists() else process.exitcode
                    del running[writer]
    finally:
        for process in running.values():
            process.kill()
    _judge(Store.open(url))
    hit = set(hits.read_text().splitlines())
    # Most writers find everything committed before they come to late steps: those are hit here, one writer at a time.
    missed = [(step, side) for step, side in wanted if f"{side} {step}" not in hit]
    _alone(f"{url}-alone", missed, hits, scratch)
    tally["steps hit"] = len(wanted)
    tally["steps hit by a writer alone"] = len(missed)
    tally["schedules"] = 1
    return tally


def _alone(url: str, deaths: list[tuple[str, str]], hits: Path, scratch: Path) -> None:
    """Kill one writer at each of these steps, and let another write the same checkpoint."""
    Store.create(url, TEXTS, single_writer=True)
    for number, (step, side) in enumerate(deaths):
        for death, status in ((Death(step, side, 1), -signal.SIGKILL), (None, 0)):
            arguments = (url, 0, [number], death, hits, scratch / "error alone", number, dict(os.environ))
            process = CONTEXT.Process(target=_live, args=arguments, daemon=True)
            process.start()
            process.join(60)
            assert process.exitcode == status, f"{side} {step}: {process.exitcode}, not {status}"
    expected = {make_column(number, 0).identity.key: sha256(make_column(number, 0)) for number in range(len(deaths))}
    store = Store.open(url)
    assert {commit.key: commit.sha256 for commit in store.commits()} == expected
    assert not store.audit().damages


def _live(
    url: str,
    writer: int,
    order: list[int],
    death: Death | None,
    hits: Path,
    error: Path,
    seed: int,
    environment: dict[str, str],
) -> None:
    """One life of a writer."""
    os.environ.update(environment)
    random.seed(seed)
    try:
        with mortal_world(Mortal(death, hits)):
            _work(url, writer, order, checks=writer % 2 == 0)
    except Exception:  # noqa: BLE001 - told to the process that waits
        error.write_text(traceback.format_exc())
        sys.exit(1)


def _work(url: str, writer: int, order: list[int], *, checks: bool) -> None:
    """What a job does: create or open the store; write and commit what is missing, or all there is and come second."""
    store = Store.create(url, TEXTS, single_writer=True)  # without the probe of 16 writers each time
    for number in order:
        column = make_column(number, writer)
        if checks and store.is_committed(column.identity.key):
            continue
        attempt = f"{random.getrandbits(128):032x}"
        commit_column(store.objects, put_column(store, column, attempt))


def _judge(store: Store) -> None:
    model = Model()
    for number in range(N_KEYS):
        for writer in range(N_WRITERS):
            model.begin(make_column(number, writer))
    commits = store.commits()
    assert len(commits) == N_KEYS, f"{len(commits)} commits, {N_KEYS} were expected"
    model.see_commits({commit.key: commit.sha256 for commit in commits}, repairing=False)
    for commit in commits:
        model.see_rows([commit.key], store.read_column(commit))
    found = store.audit()
    assert found.sound == N_KEYS and not found.damages, found.damages
    assert {leftover.kind for leftover in found.leftovers} <= {"column", "temporary"}, found.leftovers
    assert store.snapshot_ids() == [] and store.failures() == []
    store.publish()
    data = store.dataset()
    held = model.see_rows(data["key"].values.tolist(), data["log_likelihood"].values)
    assert held == model.stands
