"""Commits of a sweep beside what is scored next, on real Ray actors and a real store; what is scored stands in."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from klray.checkpoints import Checkpoint, Facts, RemoteFile
from klray.errors import CheckpointError, KlrayError
from klray.store import Column, Store
from klray.sweep import actor, driver
from klray.sweep.actor import ScorerActor, SharedPatience
from klray.sweep.cluster import Shape, connected
from klray.sweep.driver import Driver
from klray.sweep.examining import Expected, here
from klray.sweep.replies import Outcome, WorkerFacts
from klray.sweep.settings import RaySettings, ScoringSettings
from klray.sweep.telling import Telling
from klray.words.progress import Progress
from tests.stores import TEXTS, column

pytestmark = pytest.mark.slow

SETTINGS = ScoringSettings()


def wait_for(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not found():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.005)


class Ordinary:
    """Gives any checkpoint a column, and notes in a folder what it begins."""

    def __init__(self, url: str, folder: Path):
        self.store, self.folder = Store.open(url), folder

    def begin(self, what: str, revision: str) -> int:
        """How often that was begun, with this time."""
        (self.folder / f"{what} {revision} {time.time_ns()}").touch()
        return self.begun(what, revision)

    def begun(self, what: str, revision: str = "") -> int:
        return len(list(self.folder.glob(f"{what} {revision}*")))

    def key(self, checkpoint: Checkpoint) -> str:
        return SETTINGS.identity(checkpoint, TEXTS.fingerprint).key

    def column(self, checkpoint: Checkpoint, upcoming: object) -> Column:
        self.begin("score", checkpoint.revision)
        identity = SETTINGS.identity(checkpoint, TEXTS.fingerprint)
        return dataclasses.replace(column("a", int(checkpoint.revision)), identity=identity)

    def commit(self, scored: Column) -> Outcome:
        self.begin("commit", str(scored.facts["step"]))
        _, first = self.store.add_column(scored)
        return Outcome(scored.identity.key, first, 84)


class Overlapping(Ordinary):
    """No column is committed before the next one is begun."""

    def commit(self, scored: Column) -> Outcome:
        number = self.begun("commit") + 1
        wait_for(lambda: self.begun("score") > min(number, 2))
        return super().commit(scored)


class DyingBeside(Ordinary):
    """The process ends in the second checkpoint, while the first is committed for the first time."""

    def column(self, checkpoint: Checkpoint, upcoming: object) -> Column:
        scored = super().column(checkpoint, upcoming)
        if checkpoint.revision == "2":
            wait_for(lambda: self.begun("commit", "1") > 0)
            os._exit(1)
        return scored

    def commit(self, scored: Column) -> Outcome:
        if scored.facts["step"] == 1 and self.begin("commit", "1") == 1:
            time.sleep(60)
        return super().commit(scored)


class DyingAfter(Ordinary):
    """The process ends once the first column is committed, before anybody knows."""

    def commit(self, scored: Column) -> Outcome:
        outcome = super().commit(scored)
        if self.begun("commit") == 1:
            os._exit(1)
        return outcome


class ModelDying(Ordinary):
    """The process of the second checkpoint's model ends, while the first is committed."""

    def column(self, checkpoint: Checkpoint, upcoming: object) -> Column:
        scored = super().column(checkpoint, upcoming)
        if checkpoint.revision == "2":
            wait_for(lambda: self.begun("commit", "1") > 0)
            self.begin("end", "2")
            raise CheckpointError("the process of its model was killed", "worker_died")
        return scored

    def commit(self, scored: Column) -> Outcome:
        self.begin("commit", str(scored.facts["step"]))
        wait_for(lambda: self.begun("end", "2") > 0)
        return super().commit(scored)


class StartingOnce(Ordinary):
    """The process ends in the first checkpoint, and no other one can be started."""

    def __init__(self, url: str, folder: Path):
        super().__init__(url, folder)
        if self.begin("start", "once") > 1:
            raise RuntimeError("the disk is gone")

    def column(self, checkpoint: Checkpoint, upcoming: object) -> Column:
        os._exit(1)


class Actor(ScorerActor):
    """The actor of a sweep with another scorer."""

    def __init__(self, patience: Any, kind: type[Ordinary], url: str, folder: Path):
        self.scorer = kind(url, folder)  # type: ignore[assignment]
        self._scored = {}
        self._facts = {"job": JOB}

    def ready(self, wanted: Expected) -> WorkerFacts:
        return WorkerFacts(here(ray.get_runtime_context().get_node_id()), "cpu", 0, 0, time.time())


@pytest.fixture(scope="module")
def shape() -> Iterator[Shape]:
    with connected(RaySettings(workers=1)) as shape:
        yield shape


@pytest.fixture
def swept(
    shape: Shape, folder_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[type[Ordinary], int], tuple[Driver, dict[str, int]]]:
    """A sweep of three checkpoints in their order, and how often each was scored."""
    monkeypatch.setattr(driver, "ScorerActor", Actor)
    monkeypatch.setattr("klray.sweep.queue.random.shuffle", lambda works: None)
    weights = [RemoteFile("model.safetensors", 1, str(number), None) for number in (1, 2, 3)]
    checkpoints = [Checkpoint("org/a", str(file.sha256), f"commit{file.sha256}", (file,), Facts()) for file in weights]

    def sweep(kind: type[Ordinary], max_attempts: int) -> tuple[Driver, dict[str, int]]:
        arguments = (kind, folder_store.url, tmp_path)
        asked = RaySettings(workers=1, max_attempts=max_attempts)
        found = Driver(folder_store, SETTINGS, shape, arguments, checkpoints, {}, asked, JOB)
        with Telling(folder_store, Progress(3, "score", "checkpoint"), JOB, "org", 3) as telling:
            found.go(telling)
        return found, {each.revision: len(list(tmp_path.glob(f"score {each.revision} *"))) for each in checkpoints}

    return sweep


JOB = "a" * 32


Sweep = Callable[[type[Ordinary], int], tuple[Driver, dict[str, int]]]


def test_the_next_checkpoint_is_scored_while_a_column_is_committed(swept: Sweep, folder_store: Store) -> None:
    found, scored = swept(Overlapping, 1)
    assert (found.dispatch.tally.scored, found.failures, found.dispatch.tally.tokens) == (3, [], 3 * 84)
    assert scored == {"1": 1, "2": 1, "3": 1} and len(folder_store.commits()) == 3
    assert {commit.facts["job"] for commit in folder_store.commits()} == {JOB}
    (heard,) = folder_store.heard_jobs()
    assert (heard.job.job, heard.job.state, heard.job.done, heard.job.tokens) == (JOB, "done", 3, 3 * 84)


def test_a_column_is_not_blamed_for_what_was_scored_beside_its_commit(swept: Sweep, folder_store: Store) -> None:
    found, scored = swept(DyingBeside, 1)
    assert [(each.revision, each.reason) for each in found.failures] == [("2", "worker_died")]
    assert found.dispatch.tally.scored == len(folder_store.commits()) == 2
    assert scored == {"1": 2, "2": 1, "3": 1}


def test_a_commit_whose_worker_died_afterwards_counts(swept: Sweep, folder_store: Store) -> None:
    found, scored = swept(DyingAfter, 2)
    assert (found.dispatch.tally.scored, found.failures) == (3, []) and len(folder_store.commits()) == 3
    assert scored["1"] == 1


def test_a_commit_is_awaited_where_the_next_model_dies(swept: Sweep, folder_store: Store) -> None:
    found, scored = swept(ModelDying, 1)
    assert [(each.revision, each.reason) for each in found.failures] == [("2", "worker_died")]
    assert found.dispatch.tally.scored == len(folder_store.commits()) == 2
    assert scored == {"1": 1, "2": 1, "3": 1}


def test_checkpoints_are_not_blamed_where_no_worker_can_be_started_again(swept: Sweep, folder_store: Store) -> None:
    with pytest.raises(KlrayError, match=r"no scoring worker .*: .*the disk is gone"):
        swept(StartingOnce, 2)
    assert folder_store.failures() == []


class Silent:
    """Holds pauses and does not answer, as on a node that is no more."""

    def __init__(self) -> None:
        self.asked = 0

    def left(self) -> None:
        self.asked += 1
        time.sleep(3600)

    def count(self) -> int:
        return self.asked


def test_who_holds_the_pauses_and_is_silent_is_not_asked_before_each_file(
    shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor, "ANSWER_SECONDS", 1.0)
    silent = ray.remote(Silent).options(num_cpus=0, max_concurrency=2).remote()
    assert ray.get(silent.count.remote()) == 0
    patience = SharedPatience(silent)
    assert [patience.left() for _ in range(5)] == [0.0] * 5
    assert ray.get(silent.count.remote()) == 1
    ray.kill(silent)
