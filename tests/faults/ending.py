"""The end of a schedule: the store is looked at, mended and completed, and must be what the model says."""

from __future__ import annotations

import json
from datetime import timedelta

import numpy as np

from klray.store import Manifest, Store, layout
from klray.store.columns import commit_column
from tests.faults.claimants import Claimants
from tests.faults.damage import folders
from tests.faults.model import make_column
from tests.stores import put_column

N_KEYS = 3
SPARE_KEY = 99  # committed at the end where the newest snapshot was damaged, so that there is something to publish


class Ending(Claimants):
    """What the state machine does when everybody has ended; it has the store, its folder and the model."""

    store: Store
    damaged_snapshots: set[str]

    def _judge_failures(self) -> None:
        """Failure records stand for what has no commit, and for nothing else."""
        for number in range(2):
            identity = make_column(number, 0).identity
            self.store.record_failure(identity, f"step{number}", "download_failed", "no network", "f" * 32)
        found = {failure.key for failure in self.store.failures()}
        assert found == {make_column(number, 0).identity.key for number in range(2)} - set(self.model.stands)

    def _judge_audit(self) -> None:
        """Verify says exactly what is wrong; repair takes exactly that out."""
        found = self.store.audit()
        assert {damage.key for damage in found.damages if damage.key} == self.model.tainted & set(self.model.stands)
        paths = {damage.path for damage in found.damages if not damage.key}
        last = max(
            (Manifest.from_json(f"snapshots/{path.name}", path.read_bytes()) for path in self._finished()),
            key=lambda each: each.order,
            default=None,
        )
        latest = self.store.objects.get_json(layout.LATEST)
        behind = last is not None and (latest is None or latest["id"] != last.id)  # a publisher died before LATEST
        assert (layout.LATEST in paths) == behind, f"LATEST names {latest}, the last is {last}"
        bad = {path.split("/")[1] for path in paths - {layout.LATEST}}
        assert bad == self.damaged_snapshots, f"snapshots {bad} are called damaged, {self.damaged_snapshots} are"
        assert found.sound == len(set(self.model.stands) - self.model.tainted)
        commits = [path.read_bytes() for path in sorted((self.folder / "commits").glob("[!.]*.json"))]
        named = {json.loads(body)["path"] for body in commits if body != b"{cut"}
        shielded = {key[:8] for key in self.model.tainted}  # of a commit that cannot be read nobody knows the folder
        columns = {path for path in folders(self.folder, "columns", 4) if path not in named}
        unfinished = {
            path
            for path in folders(self.folder, "snapshots", 2)
            if path.removeprefix("snapshots/") not in self.model.snapshots
        }
        expected = columns | unfinished | self._left_claims()
        reported = {leftover.path for leftover in found.leftovers}
        missing = {path for path in expected - reported if path.rsplit("/", 1)[-1][:8] not in shielded}
        assert not missing and reported <= expected, f"missing {missing}, too many {reported - expected}"
        self.store.repair(found, timedelta(0))
        self._see(repairing=True)
        assert not self._left_claims() - {f"claims/{key}-0.json" for key in self.model.tainted}
        again = self.store.audit()
        assert not any(damage.key for damage in again.damages) and again.sound == len(self.model.stands)
        for commit in self.store.commits():
            values = self.store.read_column(commit)
            np.testing.assert_array_equal(values[0], self.model.values[self.model.stands[commit.key]])

    def _complete(self) -> None:
        """All columns are committed in the end, and the newest snapshot holds exactly them."""
        numbers = range(N_KEYS) if not self.damaged_snapshots else [*range(N_KEYS), SPARE_KEY]
        for number in numbers:
            column = make_column(number, 0)
            missing = column.identity.key not in self.model.stands
            if missing:
                assert commit_column(self.store.objects, put_column(self.store, self.model.begin(column), "e" * 32))
        self._see(repairing=False)
        assert len(self.model.stands) == len(numbers)
        manifest, _ = self.store.publish()
        self._see(repairing=False)
        data = self.store.dataset()
        assert data.attrs["snapshot"] == manifest.id
        assert not np.isnan(data["log_likelihood"].values).any()
        held = self.model.see_rows(data["key"].values.tolist(), data["log_likelihood"].values)
        assert held == self.model.stands
        for snapshot in self.model.snapshots.keys() - self.damaged_snapshots:
            self.model.see_snapshot(snapshot, *self._rows(snapshot))
