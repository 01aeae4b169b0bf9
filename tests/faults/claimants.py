"""Claimants: jobs that claim a checkpoint, score it and take the claim back, among whatever else befalls a store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from klray.store import Store, layout
from klray.store.audit import CLAIM_LIFE
from klray.store.claims import Claim
from klray.store.columns import commit_column
from tests.faults.model import Model, make_column
from tests.stores import put_column


class Claimants:
    """What the state machine does with claims; it has the store's folder and the model.

    Promised: of those who claim one turn one has it; a claim, whose ever and however old, keeps nobody from a commit.
    """

    folder: Path
    model: Model
    began: int

    def _claimant(self, number: int) -> tuple[Callable[[Store], Any], Callable[[Any], None]]:
        column = self.model.begin(make_column(number, self.began))
        key, attempt, stays = column.identity.key, f"{self.began:08x}" * 4, self.began % 2 == 0

        def work(store: Store) -> int | Claim | None:
            found = store.claim(key, attempt)
            if isinstance(found, int):
                commit_column(store.objects, put_column(store, column, attempt))
                if not stays:
                    store.release(key, found)
            return found

        def judge(found: int | Claim) -> None:
            if isinstance(found, Claim):
                assert found.job != attempt and found.key == key
            elif found is not None and stays and (path := self.folder / layout.claim_path(key, found)).exists():
                assert json.loads(path.read_bytes())["job"] == attempt, "two jobs were told that they have one turn"

        return work, judge

    def _claims(self) -> list[Path]:
        return sorted((self.folder / layout.CLAIMS).glob("[!.]*"))

    def _left_claims(self) -> set[str]:
        """Claims that verify lists: of committed checkpoints, and old ones."""
        old = time.time() - CLAIM_LIFE.total_seconds()
        return {
            f"{layout.CLAIMS}/{path.name}"
            for path in self._claims()
            if path.stat().st_mtime < old or path.name.split("-")[0] in self.model.stands
        }
