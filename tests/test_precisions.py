"""fp32, bf16 and fp16 on the way from the config to a column, and what a worker does when memory or numbers fail."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import klray
from klray import texts
from klray.checkpoints import Checkpoint, Hub, RepositorySpec, Selection, resolve
from klray.config import Dtype, ScoringConfig
from klray.config.sweep import scoring_settings
from klray.likelihood import loading as models
from klray.likelihood.tokenizer import load_tokenizer
from klray.likelihood.tokens import encode
from klray.measure.exact import exact_log_likelihood
from klray.store import Store
from klray.sweep.actor import ScorerActor
from klray.sweep.replies import Outcome, Pending, Refusal
from klray.tiny.family import train_family
from klray.tiny.family_recipe import SMALLEST
from tests.scorers import scorer_here

pytestmark = pytest.mark.slow

TEXTS = texts.python_stdlib(n=16)
REPOSITORY = "klray/tiny-46k-seed1"


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def checkpoints(hub: Hub) -> list[Checkpoint]:
    found, unavailable = resolve(hub, Selection("tiny", (RepositorySpec(REPOSITORY, ["step36", "step40"]),)))
    assert not unavailable
    return found


class Worker(ScorerActor):
    """What a Ray actor runs, in this process, with a patience of its own."""

    def __init__(self, *arguments: Any):
        self.scorer = scorer_here(*arguments)
        self._scored, self._facts = {}, {"job": "f" * 32}

    def column(self, checkpoint: Checkpoint) -> Outcome | Refusal:
        """Score and commit, one after the other."""
        found = self.score(checkpoint, (), "", 0)
        outcome = self.commit(found.key) if isinstance(found, Pending) else found
        assert not self._scored and not isinstance(outcome, Pending)
        return outcome


def worker(hub: Hub, folder: Path, **scoring: Any) -> Worker:
    store = Store.create(str(folder / "store"), TEXTS)
    settings = scoring_settings(ScoringConfig(cache_dir=str(folder / "cache"), **scoring))
    return Worker(hub, store.url, TEXTS, settings)


def row(store: Store, key: str) -> np.ndarray:
    (commit,) = [each for each in store.commits() if each.key == key]
    return np.asarray(store.read_column(commit)[0])


@pytest.mark.parametrize("dtype", list(Dtype))
def test_a_column_has_the_precision_that_was_asked_for(
    hub: Hub, checkpoints: list[Checkpoint], tmp_path: Path, dtype: Dtype
) -> None:
    actor = worker(hub, tmp_path, dtype=dtype)
    for checkpoint in checkpoints:  # the second goes into the model of the first
        outcome = actor.column(checkpoint)
        assert not isinstance(outcome, Refusal)
        folder = train_family(SMALLEST) / REPOSITORY / checkpoint.revision
        loaded = models.load(folder, dtype.value).model
        assert {parameter.dtype for parameter in loaded.parameters()} == {getattr(torch, dtype.value)}
        expected = klray.log_likelihood(loaded, load_tokenizer(folder), list(TEXTS.texts))
        column = row(actor.scorer.store, outcome.key)
        assert column.tobytes() == expected.astype(np.float32).tobytes()
    (commit, other) = actor.scorer.store.commits()
    assert commit.facts["head"] == other.facts["head"] == "tiled"
    assert commit.identity.dtype == other.identity.dtype == dtype.value
    keys = {scoring_settings(ScoringConfig(dtype=each)).identity(checkpoints[0], "f").key for each in Dtype}
    assert len(keys) == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_logits_and_their_normaliser_are_fp32_whatever_the_precision(dtype: models.Dtype) -> None:
    folder = train_family(SMALLEST) / REPOSITORY / "step40"
    tokenizer = load_tokenizer(folder)
    model = models.load(folder, dtype).model
    ordinary = []
    for text in TEXTS.texts:  # logits and softmax as they come, in 16 bits
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            log_p = model(ids).logits[0, :-1].log_softmax(-1)
        assert log_p.dtype == getattr(torch, dtype)
        ordinary.append(float(log_p.gather(1, ids[0, 1:, None]).double().sum()))
    ours = klray.log_likelihood(model, tokenizer, list(TEXTS.texts))
    exact = exact_log_likelihood(models.load(folder, "float64").model, encode(tokenizer, TEXTS.texts))
    kl = klray.kl_divergence(np.stack([exact, ours, np.array(ordinary)]), TEXTS.n_bytes)
    # 8 times less in bf16 and 5 times in fp16 on 256 texts; what is left comes from the weights and the layers
    assert kl[0, 1] < kl[0, 2] / 3


def test_a_worker_that_runs_out_of_memory_halves_its_batches_and_goes_on(
    hub: Hub, checkpoints: list[Checkpoint], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    actor = worker(hub, tmp_path)
    actor.column(checkpoints[0])
    loaded = actor.scorer.compute.model
    assert loaded is not None
    tokenizer = load_tokenizer(train_family(SMALLEST) / REPOSITORY / "step40")
    longest = int(encode(tokenizer, TEXTS.texts).lengths.max())
    tried: list[int] = []

    def grow(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tried.append((args[0] if args else kwargs["input_ids"]).numel())
        if tried[-1] > longest:
            torch.empty(2**50, dtype=torch.uint8)  # the allocator's own error

    loaded.model.base_model.register_forward_pre_hook(grow, with_kwargs=True)
    with caplog.at_level(logging.WARNING, "klray"):
        outcome = actor.column(checkpoints[1])
    assert not isinstance(outcome, Refusal)
    assert actor.scorer.compute.model is loaded and max(tried) > longest
    assert "out of memory with" in caplog.text and "going on with" in caplog.text
    (commit,) = [each for each in actor.scorer.store.commits() if each.key == outcome.key]
    assert commit.facts["tokens_per_batch"] <= longest
    folder = train_family(SMALLEST) / REPOSITORY / "step40"
    expected = klray.log_likelihood(models.load(folder).model, load_tokenizer(folder), list(TEXTS.texts))
    np.testing.assert_allclose(row(actor.scorer.store, outcome.key), expected, rtol=0, atol=1e-3)
    tried.clear()
    (another,) = resolve(hub, Selection("tiny", (RepositorySpec(REPOSITORY, ["step32"]),)))[0]
    assert not isinstance(actor.column(another), Refusal)
    assert max(tried) <= longest  # what did not fit is not tried again with the next checkpoint of this model


def test_a_gpu_s_own_error_is_a_lack_of_memory_too(hub: Hub, checkpoints: list[Checkpoint], tmp_path: Path) -> None:
    actor = worker(hub, tmp_path)
    actor.column(checkpoints[0])
    loaded = actor.scorer.compute.model
    assert loaded is not None

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    loaded.model.base_model.register_forward_pre_hook(fail)
    refusal = actor.column(checkpoints[1])
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "out_of_memory"
    assert "on cpu with the smallest batch" in refusal.message


def test_a_worker_names_the_first_text_that_is_not_finite_and_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "models"
    folders = [root / name for name in ("broken", "whole")]
    good = train_family(SMALLEST) / REPOSITORY / "step40"
    tokens = encode(load_tokenizer(good), TEXTS.texts)
    # a token that the first texts lack, and a later one has
    first, token = next(
        (text, int(token))
        for text, ids in enumerate(tokens)
        if text >= 3
        for token in ids
        if all(token not in tokens[before] for before in range(text))
    )
    for folder in folders:
        folder.mkdir(parents=True)
        for file in good.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(good / "model.safetensors")
    weights["gpt_neox.embed_in.weight"][token] = float("inf")
    save_file(weights, folders[0] / "model.safetensors", metadata={"format": "pt"})
    hub = Hub("http://127.0.0.1:9", "")
    found, _ = resolve(hub, Selection("local", tuple(RepositorySpec(str(folder), ["main"]) for folder in folders)))
    actor = worker(hub, tmp_path)
    refusal = actor.column(found[0])
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "non_finite"
    assert f"gives text {first} a log-likelihood of nan" in refusal.message
    assert not isinstance(actor.column(found[1]), Refusal)
