"""One scorer, in this process: fetching ahead, evicting, and what it records."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch

import klray
from klray import texts
from klray.checkpoints import Checkpoint, Hub, RepositorySpec, Selection, resolve
from klray.errors import StoreError
from klray.likelihood.loading import load
from klray.likelihood.tokenizer import load_tokenizer
from klray.store import Store
from klray.sweep.scorer import Scorer
from klray.sweep.settings import ScoringSettings
from klray.tiny.family import train_family
from klray.tiny.family_recipe import SMALLEST
from tests.scorers import scorer_here

pytestmark = pytest.mark.slow

TEXTS = texts.python_stdlib(n=8)
REPOSITORY = "klray/tiny-46k-seed1"


@pytest.fixture
def checkpoints(hub: Hub) -> list[Checkpoint]:
    found, unavailable = resolve(hub, Selection("tiny", (RepositorySpec(REPOSITORY, ["step4", "step8", "step12"]),)))
    assert not unavailable
    return found


@pytest.fixture
def scorer(hub: Hub, tmp_path: Path) -> Iterator[Scorer]:
    threads = torch.get_num_threads()
    store = Store.create(str(tmp_path / "store"), TEXTS)
    yield scorer_here(hub, store.url, TEXTS, ScoringSettings(cache_dir=str(tmp_path / "cache")))
    torch.set_num_threads(threads)


def test_column_is_the_log_likelihood_of_the_checkpoint(scorer: Scorer, checkpoints: list[Checkpoint]) -> None:
    outcome = scorer.score(checkpoints[0])
    (commit,) = scorer.store.commits()
    directory = train_family(SMALLEST) / REPOSITORY / "step4"
    expected = klray.log_likelihood(load(directory).model, load_tokenizer(directory), list(TEXTS.texts))
    assert scorer.store.read_column(commit)[0].tolist() == expected.astype("float32").tolist()
    assert (outcome.first, commit.key) == (True, outcome.key)
    assert commit.facts["step"] == 4 and commit.facts["revision"] == "step4" and commit.facts["tokens"] > 0
    assert commit.versions["torch"] and commit.timings["score_seconds"] > 0


def test_next_checkpoint_is_fetched_while_this_one_is_scored(
    tmp_path: Path, scorer: Scorer, checkpoints: list[Checkpoint]
) -> None:
    scorer.score(checkpoints[0], upcoming=[checkpoints[1]])
    wait(scorer.fetcher._ahead.values())
    scorer.fetcher.hub = Hub("http://127.0.0.1:9", "nobody answers there")
    scorer.score(checkpoints[1])
    assert len(scorer.store.commits()) == 2
    assert scorer.cache.bytes == 0


def test_what_was_fetched_ahead_for_nothing_is_evicted(scorer: Scorer, checkpoints: list[Checkpoint]) -> None:
    scorer.score(checkpoints[0], upcoming=[checkpoints[1]])
    scorer.score(checkpoints[2])
    assert {commit.facts["revision"] for commit in scorer.store.commits()} == {"step4", "step12"}
    assert scorer.cache.bytes == 0


def test_same_checkpoint_twice_is_one_column(scorer: Scorer, checkpoints: list[Checkpoint]) -> None:
    first, second = scorer.score(checkpoints[0]), scorer.score(checkpoints[0])
    assert (first.first, second.first) == (True, False)
    assert len(scorer.store.commits()) == 1


def test_full_store_says_that_it_is_full(
    scorer: Scorer, checkpoints: list[Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scorer.store.objects, "put_many", refuse)
    with pytest.raises(StoreError, match=r"it is full; columns .* are safe"):
        scorer.score(checkpoints[0])
