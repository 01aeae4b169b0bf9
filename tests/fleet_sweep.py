"""A sweep whose workers are examined as any, on a real disk and a real store, and give any checkpoint a column at once.

``python -m tests.fleet_sweep STORE CACHE COUNT`` joins the cluster of RAY_ADDRESS, and says in a line of JSON what came
of so many checkpoints. Each worker gives four columns, and more when there is the file ``STORE-go``.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import ray

from klray.checkpoints import Cache, Checkpoint, Facts, RemoteFile
from klray.store import Column, Store
from klray.sweep import driver
from klray.sweep.actor import ScorerActor
from klray.sweep.cluster import connected
from klray.sweep.examining import Expected, examine, here
from klray.sweep.replies import Outcome, Unfit, WorkerFacts
from klray.sweep.settings import RaySettings, ScoringSettings
from klray.sweep.telling import Telling
from klray.words.progress import Progress
from tests.stores import TEXTS, column

SETTINGS = ScoringSettings()
JOB = "f" * 32
SECONDS = 0.2  # that a checkpoint takes


class Scorer:
    """What stands in for the model."""

    def __init__(self, store: Store):
        self.store, self.given = store, 0
        self.go = Path(f"{store.url}-go")

    def key(self, checkpoint: Checkpoint) -> str:
        return SETTINGS.identity(checkpoint, TEXTS.fingerprint).key

    def column(self, checkpoint: Checkpoint, upcoming: object) -> Column:
        time.sleep(SECONDS)
        while self.given >= 4 and not self.go.exists():
            time.sleep(0.05)
        self.given += 1
        identity = SETTINGS.identity(checkpoint, TEXTS.fingerprint)
        return dataclasses.replace(column("a", int(checkpoint.revision)), identity=identity)

    def commit(self, scored: Column) -> Outcome:
        return Outcome(scored.identity.key, self.store.add_column(scored)[1], 84)


class Actor(ScorerActor):
    """Examined as any other, but for the device."""

    def __init__(self, patience: Any, url: str, folder: str):
        self.url, self.folder = url, Path(folder)
        self.scorer = Scorer(Store.open(url))  # type: ignore[assignment]
        self._scored, self._facts = {}, {"job": JOB}

    @cached_property
    def cache(self) -> Cache:
        return Cache(self.folder, 10**9)

    def ready(self, wanted: Expected) -> WorkerFacts | Unfit:
        place = here(ray.get_runtime_context().get_node_id())
        opened = self.scorer.store.objects
        return examine(place, wanted, self.url, lambda: opened, lambda: self.cache, lambda: ("cpu", 1))


def main(url: str, folder: str, count: int) -> None:
    """Sweep."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    driver.ScorerActor = Actor  # type: ignore[misc]
    store = Store.create(url, TEXTS)
    checkpoints = []
    for number in map(str, range(count)):
        weights = RemoteFile("model.safetensors", 10**6, number, None)
        checkpoints.append(Checkpoint("org/a", number, f"commit{number}", (weights,), Facts()))
    with connected(RaySettings(address="auto")) as shape:
        asked = RaySettings(max_attempts=1)
        sweep = driver.Driver(store, SETTINGS, shape, (url, folder), checkpoints, {}, asked, JOB)
        with Telling(store, Progress(count, "score", "checkpoint"), JOB, "org", count) as telling:
            sweep.go(telling)
    tally = sweep.dispatch.tally
    print(json.dumps({"scored": tally.scored, "failed": tally.failed, "closing": sweep.fleet.closing()}), flush=True)


if __name__ == "__main__":
    from tests import fleet_sweep  # by its name, which workers know it by

    fleet_sweep.main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
