"""A worker that scores nothing, for the benchmark of the driver: what it imports is little, a hundred of them start."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

import ray

from klray.sweep.replies import Outcome, Pending, Place, WorkerFacts


class FakeWorker:
    """Answers as ``klray.sweep.actor.ScorerActor`` does, at once."""

    CONCURRENCY: ClassVar = {"commits": 1}

    def __init__(self, patience: Any, folder: Path, workers: int):
        self._folder, self._workers = folder, workers

    def ready(self, _: Any) -> WorkerFacts:
        """Answers when all workers have started."""
        (self._folder / ray.get_runtime_context().get_actor_id()).touch()
        while len(list(self._folder.iterdir())) < self._workers:
            time.sleep(0.5)
        return WorkerFacts(Place("here", ray.get_runtime_context().get_node_id(), 0), "cpu", 0, 0, time.time())

    def score(self, checkpoint: Any, upcoming: Any, source: str, turn: int) -> Pending:
        return Pending(checkpoint.commit)

    @ray.method(concurrency_group="commits")
    def commit(self, key: str) -> Outcome:
        return Outcome(key, first=True, tokens=1)
