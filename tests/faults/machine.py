"""State machine: the store's protocol against a plain model, under crashes, errors and every order of operations.

Promised, after every step:
- a column is visible if and only if its commit exists; a commit is never replaced, and goes only when the column was
  damaged on purpose and a repair took it out;
- a snapshot whose manifest exists opens, and every row is one committed attempt's values, bit for bit;
- a reader gets what the snapshot held when it became visible, whatever happened between opening and reading;
- whoever is told that its commit stands, or that it has a claim, is told the truth;
- at the end, verify finds exactly the damage and the leftovers, repair removes them and nothing else, every column can
  be written again, and one more publication holds exactly what is committed.

Injected: writers and claimants on the same keys, zombies that commit late, publishers, audits, repairs, readers and
failure records, all of them production code in threads (``gates``), stopped after any number of storage operations; a
crash before or after any operation; an OSError from an operation that was not done, and from one that was (lost
acknowledgement); damage to columns, commits and snapshots; leftovers that grow old; two publishers in one millisecond.

Not injected: two repairs at the same moment, between whose look and deletion a column can be written anew; S3 has no
conditional deletion that is the same everywhere.

Not production: the clock that names snapshots, pools of one thread, and snapshots without half of the coordinates.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import zarr
from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from klray.errors import StoreError
from klray.store import Store, audit, layout, publishing
from klray.store import chunks as store_chunks
from klray.store.columns import commit_column
from klray.store.objects import FolderObjects
from tests.faults.damage import chunks, damage, folders
from tests.faults.ending import N_KEYS, Ending
from tests.faults.gates import TO_THE_BRINK, UNLIMITED, Actor, Fault
from tests.faults.model import TEXTS, Clock, Inline, Model, make_column, sha256, small_snapshots
from tests.stores import put_column

MOST_ACTORS = 4
GRACE = timedelta(days=1)
AGE_SECONDS = 2 * GRACE.total_seconds()
STEPS = 25  # rules in a schedule
SHRINK = bool(os.environ.get("SHRINK"))

KINDS = (
    ["writer"] * 6
    + ["retrying writer", "claimant"] * 2
    + ["publisher"] * 3
    + ["audit", "repair", "repair", "reader", "reader"]
)
DISTURBANCES = ["tick", "age", "damage", "damage snapshot"]
MOVES = ["advance"] * 25 + KINDS + ["publisher", "reader"] + DISTURBANCES + ["damage snapshot"] * 3
FAULTS = [Fault.NONE] * 6 + [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.ERROR_BEFORE, Fault.ERROR_AFTER]
OPERATIONS = [*[TO_THE_BRINK] * 5, 1, 1, 2, 3, 4, 6, 9, 14, 25, 1000]

tally: collections.Counter[str] = collections.Counter()


class StoreMachine(Ending, RuleBasedStateMachine):
    """One schedule on one store."""

    empty: Path  # a store without columns, copied for every schedule

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.empty.parent))
        shutil.copytree(self.empty, self.folder, dirs_exist_ok=True)
        self.objects = FolderObjects(self.folder)
        self.store = Store.open(str(self.folder))
        self.model = Model()
        self.clock = Clock()
        self.actors: list[Actor] = []
        self.began = 0
        self.damaged_snapshots: set[str] = set()
        self.judges: dict[str, Callable[[Any], None]] = {}
        self.patches = contextlib.ExitStack()
        self.patches.enter_context(mock.patch.object(publishing, "datetime", self.clock))

    # actors

    @rule(
        move=st.sampled_from(MOVES),
        who=st.integers(0, 7),
        operations=st.sampled_from(OPERATIONS),
        fault=st.sampled_from(FAULTS),
    )
    def move(self, move: str, who: int, operations: int, fault: Fault) -> None:
        """One rule for all moves: of several, hypothesis leaves some out of most schedules."""
        if move in DISTURBANCES:
            getattr(self, f"_{move.replace(' ', '_')}")(who)
        elif move in KINDS and len(self.actors) < MOST_ACTORS:
            self._start(move, who % N_KEYS)
        elif self.actors:
            self._advance(self.actors[who % len(self.actors)], operations, fault)
        else:
            self._start("writer", who % N_KEYS)

    def _start(self, kind: str, number: int) -> None:
        """Another job begins and stops at its first operation."""
        if kind == "repair" and any(actor.name.startswith("repair") for actor in self.actors):
            kind = "audit"
        self.began += 1
        name = f"{kind} {self.began}"
        tally[kind] += 1
        work, judge = getattr(self, f"_{kind.replace(' ', '_')}")(number)
        self.judges[name] = judge
        self.actors.append(Actor(name, self.objects, lambda objects: work(Store(objects, self.store.texts))))

    def _advance(self, actor: Actor, operations: int, fault: Fault) -> None:
        """One actor goes on for some operations; the last of them may go wrong."""
        before = len(actor.operations)
        tally["steps"] += 1
        actor.advance(operations, fault)
        tally["operations"] += len(actor.operations) - before
        self._see(repairing=actor.name.startswith("repair"))
        if actor.finished:
            self.actors.remove(actor)
            tally.update(actor.injected)
            note(f"{actor.name}: {' | '.join(actor.operations)} -> {actor.error or actor.result}")
            if actor.error is None and not actor.crashed:
                self.judges[actor.name](actor.result)
            elif isinstance(actor.error, ValueError) and "reader" in actor.name and self.damaged_snapshots:
                pass  # Zarr's own words for a chunk that was cut: an error, not other values
            elif isinstance(actor.error, StoreError):
                self._judge_refusal(actor)
            elif actor.error is not None and not _injected(actor.error):
                raise actor.error

    def _writer(self, number: int, *, retries: bool = False) -> tuple[Callable[[Store], bool], Callable[[bool], None]]:
        column = self.model.begin(make_column(number, self.began))
        attempt = f"{self.began:08x}" * 4

        def work(store: Store) -> bool:
            if self.began % 2 and hasattr(store, "add") and not retries:
                return bool(store.add(column))
            commit = put_column(store, column, attempt)
            try:
                return commit_column(store.objects, commit)
            except OSError:
                if not retries:
                    raise
                return commit_column(store.objects, commit)

        def judge(stands: bool) -> None:
            ever = self.model.ever.get(column.identity.key, set())
            own = sha256(column) in ever
            assert own == stands, f"the writer was told {stands}; its commit {'was' if own else 'never was'} there"
            assert ever

        return work, judge

    def _retrying_writer(self, number: int) -> tuple[Callable[[Store], bool], Callable[[bool], None]]:
        return self._writer(number, retries=True)

    def _publisher(self, _: int) -> tuple[Callable[[Store], Any], Callable[[Any], None]]:
        def judge(published: Any) -> None:
            manifest, _ = published
            assert manifest.id in self.model.snapshots, f"publish returned {manifest.id}, which is not visible"

        return lambda store: store.publish(), judge

    def _audit(self, _: int) -> tuple[Callable[[Store], Any], Callable[[Any], None]]:
        sound_before = set(self.model.stands) - self.model.tainted
        ever_tainted = self.history_of_damage

        def judge(found: Any) -> None:
            wrong = {damage.key for damage in found.damages if damage.key} - ever_tainted
            assert not wrong, f"verify calls sound columns damaged: {wrong}"
            wrong = {damage.path for damage in found.damages if not damage.key}
            wrong.discard(layout.LATEST)  # a publisher was between its manifest and LATEST, or died there
            assert all(any(each in path for each in self.damaged_snapshots) for path in wrong), wrong
            assert found.sound + len(found.damages) >= len(sound_before - ever_tainted)

        return lambda store: store.audit(), judge

    @property
    def history_of_damage(self) -> set[str]:
        """Keys that were ever damaged: the same set object, so that a judge sees what came later."""
        return self.__dict__.setdefault("_history_of_damage", set())

    def _repair(self, _: int) -> tuple[Callable[[Store], Any], Callable[[Any], None]]:
        aged = self.aged

        def work(store: Store) -> Any:
            found = store.audit()
            return store.repair(found, GRACE)

        def judge(removed: list[str]) -> None:
            young = [path for path in removed if not path.startswith("commits/") and path not in aged]
            assert not young, f"repair removed what was written to a moment ago: {young}"

        return work, judge

    @property
    def aged(self) -> set[str]:
        """Folders that nobody has written to for longer than the grace period."""
        return self.__dict__.setdefault("_aged", set())

    def _reader(self, number: int) -> tuple[Callable[[Store], Any], Callable[[Any], None]]:
        known = sorted(self.model.snapshots)
        if number == 0 or not known:  # columns one by one
            return self._column_reader()
        snapshot = "latest" if number % 2 else known[number % len(known)]

        def work(store: Store) -> Any:
            data = store.dataset(snapshot)
            store.commits()  # other requests between opening and reading
            return str(data.attrs["snapshot"]), data["key"].values.tolist(), data["log_likelihood"].values

        def judge(got: Any) -> None:
            if got[0] not in self.damaged_snapshots:
                self.model.see_snapshot(*got)
                tally["rows read"] += len(got[1])

        return work, judge

    def _column_reader(self) -> tuple[Callable[[Store], Any], Callable[[Any], None]]:
        def work(store: Store) -> Any:
            found = store.commits()
            return [(commit.key, store.read_column(commit)[0]) for commit in found]

        def judge(got: Any) -> None:
            self.model.see_rows([key for key, _ in got], [row for _, row in got])
            tally["rows read"] += len(got)

        return work, judge

    def _judge_refusal(self, actor: Actor) -> None:
        """An error in words is right where there is damage, or nothing to work on."""
        words = str(actor.error)
        expected = ["no committed column to publish", "has no snapshot yet"]
        if not self.history_of_damage and not self.damaged_snapshots:
            assert any(each in words for each in expected), f"{actor.name}: {words}"

    # what befalls a store from outside

    def _tick(self, _: int) -> None:
        """The clock moves: before that, publishers meet in one millisecond."""
        self.clock.milliseconds += 1

    def _age(self, _: int) -> None:
        """A day passes, in which no job is at work but readers: the grace period is longer than any job takes."""
        if not all("reader" in actor.name for actor in self.actors):
            return
        now = datetime.now(UTC).timestamp()
        for folder, _, names in os.walk(self.folder):
            for name in names:
                os.utime(f"{folder}/{name}", (now - AGE_SECONDS, now - AGE_SECONDS))
        self.aged.update(folders(self.folder, "columns", 4), folders(self.folder, "snapshots", 2))
        self.aged.update(f"claims/{path.name}" for path in self._claims())

    def _damage(self, who: int) -> None:
        """One column, or its commit, is no longer what was written."""
        sound = sorted(self.model.stands.keys() - self.model.tainted)
        if not sound or len(self.model.tainted) == 2:
            return
        key, how = sound[who % len(sound)], ["flip", "cut", "lose", "lose all", "commit"][who % 5]
        marker = self.folder / "commits" / f"{key}.json"
        if how == "commit":
            marker.write_bytes(b"{cut")
        else:
            folder = self.folder / json.loads(marker.read_bytes())["path"]
            damage(chunks(folder) if how != "lose all" else [folder], how)
            self.model.spoilt.add(self.model.stands[key])
        self.model.tainted.add(key)
        self.history_of_damage.add(key)
        tally["damaged columns"] += 1

    def _damage_snapshot(self, who: int) -> None:
        """A chunk of a snapshot is no longer what was written."""
        if not self.model.snapshots or self.damaged_snapshots:
            return
        snapshot = sorted(self.model.snapshots)[-1 - (who // 6) % len(self.model.snapshots)]
        whole = chunks(self.folder / "snapshots" / snapshot)
        damage(whole[who % len(whole) :], ["flip", "cut", "lose"][who % 3])
        self.damaged_snapshots.add(snapshot)
        tally["damaged snapshots"] += 1

    # what must be true

    @invariant()
    def nothing_lost_nothing_replaced(self) -> None:
        """Looked at from outside, after what was not an actor's step."""
        self._see(repairing=False)

    def _see(self, *, repairing: bool) -> None:
        commits = {}
        for path in sorted((self.folder / "commits").glob("[!.]*.json")):
            body = path.read_bytes()
            commits[path.stem] = self.model.stands[path.stem] if body == b"{cut" else json.loads(body)["sha256"]
        self.model.see_commits(commits, repairing=repairing)
        finished = {path.stem for path in self._finished()}
        for snapshot in finished - self.model.snapshots.keys():
            self.model.see_snapshot(snapshot, *self._rows(snapshot))
            tally["snapshots"] += 1
        latest = self.folder / "snapshots" / "LATEST.json"
        if latest.exists():
            named = json.loads(latest.read_bytes())["id"]
            assert named in self.model.snapshots, f"LATEST names {named}, which is not finished"

    def _finished(self) -> list[Path]:
        """Manifests."""
        return [path for path in (self.folder / "snapshots").glob("[!.]*.json") if path.stem != "LATEST"]

    def _rows(self, snapshot: str) -> tuple[list[str], np.ndarray]:
        group = zarr.open_group(self.folder / "snapshots" / snapshot, mode="r", zarr_format=3)
        keys = [str(key) for key in group["key"][:]]
        manifest = json.loads((self.folder / "snapshots" / f"{snapshot}.json").read_bytes())
        assert manifest["n_models"] == len(keys)
        return keys, group["log_likelihood"][:]

    def teardown(self) -> None:
        """Everybody ends, zombies included; then the store is looked at, mended and completed."""
        try:
            self.clock.milliseconds += 1
            while self.actors:
                self._advance(self.actors[0], UNLIMITED, Fault.NONE)
            self._judge_failures()
            self._judge_audit()
            self._complete()
            tally["schedules"] += 1
        finally:
            for actor in self.actors:
                actor.kill()
            self.patches.close()
            shutil.rmtree(self.folder)


def _injected(error: BaseException) -> bool:
    return isinstance(error, OSError) and "injected" in str(error)


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """An empty store in memory to copy, and the settings under which schedules run."""
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="klray-faults-") as folder,
        small_snapshots(),
        mock.patch.object(publishing, "ThreadPoolExecutor", Inline),
        mock.patch.object(store_chunks, "ThreadPoolExecutor", Inline),
        mock.patch.object(audit, "ThreadPoolExecutor", Inline),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="coroutine .* was never awaited")  # of actors that crashed
        StoreMachine.empty = Path(folder) / "empty"
        Store.create(str(StoreMachine.empty), TEXTS)
        log = logging.getLogger("klray")
        before = log.level
        log.setLevel(logging.ERROR)  # damage is expected here
        try:
            yield
        finally:
            log.setLevel(before)


def run(schedules: int, seed_number: int) -> collections.Counter[str]:
    """Run that many schedules, the same ones for the same numbers; returns what happened how often.

    Raises
    ------
    AssertionError
        A promise was broken: hypothesis prints the shortest schedule that it found.
    """
    tally.clear()
    machine = seed(seed_number)(type("StoreMachine", (StoreMachine,), {}))
    with prepared():
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=schedules,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                phases=[Phase.generate, *([Phase.shrink] if SHRINK else [])],
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            ),
        )
    return collections.Counter(tally)
