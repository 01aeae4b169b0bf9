"""Readers that looked before something was written, and look again: no listing and no open dataset may go stale.

Promised, on a folder and on every S3 server: what a reader asks for after a commit or a publication is what is there
then; a dataset that was opened before holds what it held; values are never fill values.

Injected: every kind of listing and reading, in one process, between every two steps of a writer in another.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import tempfile
from multiprocessing.connection import Connection
from typing import Any

from klray.errors import StoreError
from klray.store import Store
from klray.store.columns import commit_column
from tests.faults.forked import CONTEXT, forked_from
from tests.faults.model import TEXTS, Model, make_column, small_snapshots
from tests.faults.servers import new_bucket, server
from tests.stores import put_column

N_KEYS = 4
MOVES = 16
LIMIT_SECONDS = 240
LOOKS = ("list", "walk", "commits", "columns", "ids", "open", "read opened", "read newest", "audit")


def run(schedules: int, seed: int, place: str = "moto") -> collections.Counter[str]:
    """Run that many schedules with the seeds ``seed`` and above.

    Raises
    ------
    AssertionError
        A promise was broken; the message begins with the schedule's seed.
    """
    tally: collections.Counter[str] = collections.Counter()
    with contextlib.ExitStack() as stack:
        stack.enter_context(small_snapshots())
        if place == "folder":
            base = stack.enter_context(tempfile.TemporaryDirectory(prefix="klray-faults-"))
        else:
            base = f"s3://{new_bucket(stack.enter_context(server(place)))}"
        stack.enter_context(forked_from("tests.faults.readers"))
        ours, theirs = CONTEXT.Pipe()
        writer = CONTEXT.Process(target=_serve, args=(theirs, dict(os.environ)), daemon=True)
        writer.start()
        theirs.close()  # the writer alone holds it now: its death is an EOFError here
        try:
            for number in range(seed, seed + schedules):
                try:
                    tally += _schedule(f"{base}/schedule-{number}", random.Random(number), ours)
                except (AssertionError, EOFError, OSError, StoreError) as error:
                    raise AssertionError(f"seed {number}: {type(error).__name__}: {error}") from error
                tally["schedules"] += 1
        finally:
            ours.send(None)
            writer.join(30)
            writer.kill()
    return tally


def _serve(pipe: Connection, environment: dict[str, str]) -> None:
    """The writer's process: (step, arguments) to result."""
    os.environ.update(environment)
    with small_snapshots():
        while received := pipe.recv():
            step, url, argument = received
            store = Store.open(url)
            if step == "write":
                pipe.send(put_column(store, make_column(*argument), f"{random.getrandbits(128):032x}"))
            elif step == "commit":
                pipe.send(commit_column(store.objects, argument))
            else:
                pipe.send(store.publish())


def _schedule(url: str, dice: random.Random, pipe: Connection) -> collections.Counter[str]:
    Store.create(url, TEXTS, single_writer=True)
    reader = Store.open(url)
    model = Model()
    written: list[Any] = []
    opened: list[Any] = []
    tally: collections.Counter[str] = collections.Counter()
    for _ in range(MOVES):
        for look in dice.sample(LOOKS, dice.randint(0, 4)):
            _look(look, reader, model, opened, written)
            tally[look] += 1
        step = dice.choice(["write", "write", "commit", "commit", "publish"])
        if step == "write":
            argument = (dice.randrange(N_KEYS), dice.randrange(1000))
            model.begin(make_column(*argument))
            written.append(_ask(pipe, step, url, argument))
        elif step == "commit" and written:
            commit = written.pop(dice.randrange(len(written)))
            stands = _ask(pipe, step, url, commit)
            assert stands == (commit.key not in model.stands)
            if stands:
                model.see_commits({**model.stands, commit.key: commit.sha256}, repairing=False)
        elif step == "publish" and model.stands:
            manifest, new = _ask(pipe, step, url, None)
            assert manifest.n_columns == len(model.stands)
            assert model.snapshots.setdefault(manifest.id, dict(model.stands)) == model.stands
            assert new == (manifest.id != model.__dict__.get("newest"))
            model.__dict__["newest"] = manifest.id
    for look in LOOKS:
        _look(look, reader, model, opened, written)
    return tally


def _ask(pipe: Connection, *request: Any) -> Any:
    pipe.send(request)
    assert pipe.poll(LIMIT_SECONDS), f"the writer's process does not answer {request[:2]}"
    return pipe.recv()


def _look(look: str, reader: Store, model: Model, opened: list[Any], written: list[Any]) -> None:
    """One look at the store; what it shows is what is there now."""
    if look == "list":
        for prefix in ("", "commits", "columns", "snapshots", "columns/org--model", *(each.path for each in written)):
            reader.objects.names(prefix)
    elif look == "walk":
        reader.objects.walk("columns")
        reader.objects.walk("snapshots")
    elif look == "commits":
        assert {commit.key: commit.sha256 for commit in reader.commits()} == model.stands
    elif look == "columns":
        for commit in reader.commits():
            assert model.see_rows([commit.key], reader.read_column(commit)) == {commit.key: model.stands[commit.key]}
    elif look == "ids":
        assert set(reader.snapshot_ids()) == set(model.snapshots)
    elif look == "open" and model.snapshots:
        opened.append(reader.dataset(sorted(model.snapshots)[0] if len(opened) % 2 else "latest"))
    elif look == "read opened":
        for data in opened:
            _see(model, data)
    elif look == "read newest" and model.snapshots:
        data = reader.dataset()
        assert data.attrs["snapshot"] == model.__dict__["newest"]
        _see(model, data)
    elif look == "audit":
        found = reader.audit()
        assert not found.damages and found.sound == len(model.stands)
        assert {commit.path for commit in written} <= {leftover.path for leftover in found.leftovers}


def _see(model: Model, data: Any) -> None:
    """Values are read anew at every look: ``load`` would keep them in the dataset."""
    model.see_snapshot(data.attrs["snapshot"], data["key"].values.tolist(), data["log_likelihood"].values)
