"""Tuned lenses on a really trained model: nearer to its own predictions than the logit lens, on texts it never saw."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import klray
from klray.config import (
    LensConfig,
    TextsConfig,
    TextSource,
    TextSplit,
    lens_texts,
    lens_training,
    text_set,
)
from klray.config.measure import lens_folder
from klray.errors import KlrayError
from klray.likelihood import loading as models
from klray.likelihood.lens import Lens, Translators, layer_log_likelihood, load_translators
from klray.likelihood.tokenizer import load_tokenizer
from klray.likelihood.tokens import Tokens, encode
from klray.measure.lens_training import prediction_kl, train_lens
from klray.measure.settings import LensTraining
from klray.texts import TextSet, python_stdlib
from klray.tiny.family import train_family
from tests import tiny_models
from tests.tiny_models import TRAINED

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

TRAINING = LensTraining(steps=30, tokens_per_step=512, learning_rate=1e-2)
QUICK = LensTraining(steps=2, tokens_per_step=256)


class Trained(NamedTuple):
    model: Any
    tokenizer: Any
    held_out: TextSet
    training: Tokens
    lens: Lens
    losses: list[float]


@pytest.fixture(scope="module")
def trained() -> Trained:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = train_family(TRAINED) / TRAINED.runs[0].repository / "step120"
    model, tokenizer = models.load(folder).model, load_tokenizer(folder)
    training = encode(tokenizer, python_stdlib("train", n=50).texts)
    losses: list[float] = []
    lens = train_lens(model, training, TRAINING, report=lambda step, loss: losses.append(loss))
    torch.set_num_threads(threads)
    return Trained(model, tokenizer, python_stdlib("heldout", n=12), training, lens, losses)


def test_the_layers_are_nearer_to_the_model_than_by_the_logit_lens(trained: Trained) -> None:
    held_out = encode(trained.tokenizer, trained.held_out.texts)
    logit, tuned = (prediction_kl(trained.model, held_out, lens) for lens in (Lens(), trained.lens))
    assert (tuned < logit).all()
    assert tuned[0] < 0.5 * logit[0]
    rows = [
        layer_log_likelihood(trained.model, trained.tokenizer, trained.held_out.texts, lens=lens)
        for lens in (Lens(), trained.lens)
    ]
    to_final = [klray.kl_divergence(each, trained.held_out.n_bytes)[:, -1] for each in rows]
    assert to_final[1][0] < 0.5 * to_final[0][0]
    np.testing.assert_array_equal(rows[0][-1], rows[1][-1])


def test_the_loss_falls_and_is_the_kl_to_the_own_predictions(trained: Trained) -> None:
    assert len(trained.losses) == TRAINING.steps
    assert np.mean(trained.losses[-5:]) < 0.5 * trained.losses[0]
    text = trained.held_out.texts[0]
    ids = torch.tensor(trained.tokenizer(text)["input_ids"])
    with torch.no_grad():
        output = trained.model(ids[None], output_hidden_states=True)
        own = output.logits[0, :-1].double().log_softmax(-1)
        norm, head = trained.model.gpt_neox.final_layer_norm, trained.model.get_output_embeddings()
        expected = []
        for hidden in output.hidden_states[:-1]:
            seen = head(norm(hidden[0, :-1])).double().log_softmax(-1)
            expected.append(float((own.exp() * (own - seen)).sum(-1).mean()))
    found = prediction_kl(trained.model, encode(trained.tokenizer, [text]), Lens())
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_same_seed_gives_the_same_lens_and_the_model_stays_as_it_was(trained: Trained) -> None:
    model = trained.model
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    state = torch.random.get_rng_state()
    model.train()
    first, second = (train_lens(model, trained.training, QUICK) for _ in range(2))
    assert model.training
    model.eval()
    assert first.name == second.name
    assert first.name != train_lens(model, trained.training, dataclasses.replace(QUICK, seed=1)).name
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_soft_capped_and_projected_model_can_have_a_lens_too() -> None:
    for architecture in ("gemma2", "opt", "cohere"):
        model, tokenizer = tiny_models.tiny_model(architecture), tiny_models.tokenizer_for(architecture)
        tokens = encode(tokenizer, tiny_models.texts())
        lens = train_lens(model, tokens, LensTraining(steps=15, tokens_per_step=300, learning_rate=1e-2))
        assert (prediction_kl(model, tokens, lens) < prediction_kl(model, tokens, Lens())).all()


def test_a_lens_keeps_what_it_was_trained_on(trained: Trained, tmp_path: Path) -> None:
    lens = train_lens(trained.model, trained.training, QUICK, facts={"repository": "org/name"})
    assert lens.translators is not None
    lens.translators.save(tmp_path)
    facts = load_translators(tmp_path).facts
    assert (facts["repository"], facts["steps"], facts["training_texts"]) == ("org/name", 2, 50)


def test_what_cannot_be_trained_is_refused(trained: Trained) -> None:
    with pytest.raises(KlrayError, match=r"lens\.steps=0: must be above 0"):
        LensTraining(steps=0)
    with pytest.raises(KlrayError, match="no token to predict in the 1 text of"):
        train_lens(trained.model, encode(trained.tokenizer, ["a"]))
    with pytest.raises(KlrayError, match="is for 9 layers of width 64"):
        prediction_kl(trained.model, trained.training, Lens(Translators.zeros(9, 64)))


def test_training_texts_are_set_apart_from_those_that_are_scored(tmp_path: Path) -> None:
    scored = text_set(TextsConfig(n=20))
    found = lens_texts(LensConfig(n=30), TextsConfig(n=20), scored)
    assert len(found) == 30 and not set(found.texts) & set(scored.texts)
    assert "stdlib-train" in found.name
    with pytest.raises(KlrayError, match=r"texts\.split=train"):
        lens_texts(LensConfig(), TextsConfig(split=TextSplit.train), scored)
    for name, word in (("a.txt", "one "), ("b.txt", "two ")):
        (tmp_path / name[0]).mkdir()
        (tmp_path / name[0] / name).write_text(word * 100)
    asked = TextsConfig(source=TextSource.folder, path=str(tmp_path / "a"))
    with pytest.raises(KlrayError, match=r"beside texts=folder: set lens\.texts_path="):
        lens_texts(LensConfig(), asked, text_set(asked))
    assert len(lens_texts(LensConfig(texts_path=str(tmp_path / "b")), asked, text_set(asked))) == 1
    with pytest.raises(KlrayError, match=r"1 of the 1 text of .* are also scored"):
        lens_texts(LensConfig(texts_path=str(tmp_path / "a")), asked, text_set(asked))


def test_the_folder_of_a_lens_is_looked_at_first(tmp_path: Path) -> None:
    with pytest.raises(KlrayError, match=r"set lens\.path="):
        lens_folder(LensConfig())
    assert lens_folder(LensConfig(path=str(tmp_path / "new"))) == tmp_path / "new"
    (tmp_path / "file").write_text("something")
    with pytest.raises(KlrayError, match="there is something already"):
        lens_folder(LensConfig(path=str(tmp_path)))
    assert lens_training(LensConfig(steps=7)).steps == 7
