"""Verbs: ``klray publish``, ``analyze`` and ``report`` killed at random moments, and run again.

Promised: whatever a verb was doing when SIGKILL ended it, the same command again ends well, and snapshot, result and
report hold what they hold where nobody was killed; verify finds no damage. Two analyses at once make that result, too.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import random
import re
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

from klray.config import Config
from klray.store import Store
from tests.faults.forked import CONTEXT, forked_from
from tests.stores import TEXTS, add, column

VERBS = ("publish", "analyze", "report")
N_MODELS = 12
LIMIT_SECONDS = 300.0


def config_of(store: Path, recipe: str) -> Config:
    config = Config()
    config.analysis.recipe = recipe
    config.store.url = str(store)
    config.analysis.window, config.analysis.min_step, config.analysis.tile = 3, 0, 4
    config.report.dir = str(store.parent / "report")
    return config


def work(verb: str, store: Path, recipe: str = "keep") -> None:
    """What the verb does, in a process that may be killed."""
    from jobs.analyze import analyze
    from jobs.publish import publish
    from jobs.report import report

    logging.disable(logging.WARNING)
    verbs: dict[str, Callable[[Config], object]] = {"publish": publish, "analyze": analyze, "report": report}
    with Path(os.devnull).open("w") as nobody, contextlib.redirect_stdout(nobody), contextlib.redirect_stderr(nobody):
        verbs[verb](config_of(store, recipe))


def in_a_process(verb: str, store: Path, seconds: float | None = None) -> tuple[bool, float]:
    """Whether the verb came to its end before it was killed after ``seconds``, and how long it took."""
    process = CONTEXT.Process(target=work, args=(verb, store))
    start = time.monotonic()
    process.start()
    process.join(LIMIT_SECONDS if seconds is None else seconds)
    if process.exitcode is None:
        assert seconds is not None and process.pid is not None, f"{verb} took {LIMIT_SECONDS:g} s"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    killed = process.exitcode == -signal.SIGKILL
    assert killed or process.exitcode == 0, f"{verb} ended with {process.exitcode}"
    return not killed, time.monotonic() - start


def at_once(store: Path) -> None:
    """Two analyses, each of which computes everything."""
    both = [CONTEXT.Process(target=work, args=("analyze", store, "fit")) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(LIMIT_SECONDS)
        assert process.exitcode == 0


def made(store: Path) -> tuple[xr.Dataset, xr.Dataset, str]:
    """Snapshot, result and page, without when they were made and what that is called."""
    opened = Store.open(str(store))
    snapshot, result = opened.dataset().load(), opened.result(opened.manifest().id, "trajectory").load()
    identifier = opened.manifest().id
    for data in (snapshot, result):
        data.attrs = {name: value for name, value in data.attrs.items() if name != "snapshot"}
    page = (store.parent / "report" / "report.html").read_text("utf-8").replace(identifier, "SNAPSHOT")
    return snapshot, result, re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "PICTURE", page)


def equal(one: xr.Dataset, other: xr.Dataset) -> bool:
    return one.identical(other) and all(
        np.array_equal(one[name].values, other[name].values, equal_nan=one[name].dtype.kind == "f") for name in one
    )


def run(schedules: int, seed: int) -> collections.Counter[str]:
    """Kill each verb ``schedules`` times, at moments drawn from ``seed``, one kill after another on one store.

    Raises AssertionError: what was made is not what is made undisturbed, or something is damaged.
    """
    tally: collections.Counter[str] = collections.Counter()
    rng = random.Random(seed)
    with forked_from("jobs.analyze", "jobs.publish", "jobs.report"), tempfile.TemporaryDirectory() as folder:
        undisturbed, store = Path(folder) / "undisturbed" / "store", Path(folder) / "killed" / "store"
        for place in (undisturbed, store):
            add(Store.create(str(place), TEXTS), *(column("a", 1000 * step) for step in range(N_MODELS)))
        for verb in VERBS:
            if verb == VERBS[0]:
                in_a_process(verb, undisturbed)  # the first one waits for the server of processes, too
            _, seconds = in_a_process(verb, undisturbed)
            for _ in range(schedules):
                ended, _ = in_a_process(verb, store, rng.uniform(0.0, 1.2 * seconds))
                tally[f"{verb} {'ended' if ended else 'killed'}"] += 1
                tally["schedules"] += 1
            in_a_process(verb, store)
        at_once(store)
        (snapshot, result, page), (one, other, another) = made(undisturbed), made(store)
        assert equal(snapshot, one), f"seed {seed}: another snapshot than undisturbed"
        assert equal(result, other), f"seed {seed}: another result than undisturbed"
        assert page == another, f"seed {seed}: another report than undisturbed"
        found = Store.open(str(store)).audit()
        assert found.damages == (), found.damages
        tally["left over"] += len(found.leftovers)
    return tally
