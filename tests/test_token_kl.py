"""Exact token-level KL: equal to the definition on whole logits in float64, and what is said beside it."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

import klray
from klray.analysis.exact_kl import TokenKL
from klray.errors import CheckpointError, KlrayError
from klray.likelihood.lens import Lens
from klray.likelihood.tokens import encode
from klray.measure.token_kl import compare, token_kl
from tests import tiny_models
from tests.architectures.tiny import ARCHITECTURES
from tests.benchmarks.token_kl import memory

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = tiny_models.texts()
BYTES = np.array([len(text.encode()) for text in TEXTS])
TOKENIZER = tiny_models.byte_level_tokenizer()
SIX = ("llama", "gpt_neox", "gemma2", "cohere", "phi3", "mamba")  # phi3: one text at a time, by its own logits


def logits(model: Any, text: str) -> torch.Tensor:
    ids = torch.tensor([TOKENIZER(text)["input_ids"]])
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0, :-1].double()
    return found


def definition(first: torch.Tensor, second: torch.Tensor) -> float:
    """Sum over tokens of KL(first || second), from whole logits (T, V) in float64."""
    log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum())


def defined(model: Any, other: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pairs = [(logits(model, text), logits(other, text)) for text in TEXTS]
    agreed = np.array([float((p.argmax(-1) == q.argmax(-1)).sum()) for p, q in pairs])
    return np.array([definition(p, q) for p, q in pairs]), np.array([definition(q, p) for p, q in pairs]), agreed


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SIX)
def test_it_equals_the_definition(name: str) -> None:
    architecture = next(each for each in ARCHITECTURES if each.name == name)
    model, other = architecture.model(1), architecture.model(2)
    found = token_kl(model, other, TOKENIZER, TEXTS, tokens_per_batch=200)
    forward, reverse, agreed = defined(model, other)
    np.testing.assert_allclose(found.forward, forward, rtol=1e-6)
    np.testing.assert_allclose(found.reverse, reverse, rtol=1e-6)
    np.testing.assert_array_equal(found.agreed, agreed)
    for row, each in zip(found.log_likelihood, (model, other), strict=True):
        np.testing.assert_allclose(row, klray.log_likelihood(each, TOKENIZER, TEXTS), atol=2e-4)


@pytest.fixture(scope="module")
def near() -> tuple[Any, Any]:
    """Two models a thousandth apart, in float64, with a vocabulary of three tiles."""
    model = tiny_models.tiny_model("llama", vocabulary=2500).double()
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1e-3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model, other


def test_a_small_kl_loses_no_digits(near: tuple[Any, Any]) -> None:
    found = token_kl(*near, TOKENIZER, TEXTS)
    forward, reverse, agreed = defined(*near)
    assert 0 < found.summary()["exact_per_token"] < 1e-3
    np.testing.assert_allclose(found.forward, forward, rtol=1e-8)
    np.testing.assert_allclose(found.reverse, reverse, rtol=1e-8)
    np.testing.assert_array_equal(found.agreed, agreed)
    assert np.abs(token_kl(near[0], near[0], TOKENIZER, TEXTS).forward).max() < 1e-12


def test_layers_are_compared_each_with_the_next(near: tuple[Any, Any]) -> None:
    model, _ = near
    tokens = encode(TOKENIZER, TEXTS)
    found = compare([model], tokens, BYTES, lens=Lens())
    assert len(found) == 2
    states: list[torch.Tensor] = []
    with torch.no_grad():
        for text in TEXTS:
            ids = torch.tensor([TOKENIZER(text)["input_ids"]])
            given = model.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
            layers = [*(model.model.norm(each) for each in given[:-1]), given[-1]]
            states.append(torch.stack([model.lm_head(each)[0, :-1] for each in layers]))
    for layer, each in enumerate(found):
        np.testing.assert_allclose(each.forward, [definition(z[layer], z[layer + 1]) for z in states], rtol=1e-6)
        np.testing.assert_allclose(each.reverse, [definition(z[layer + 1], z[layer]) for z in states], rtol=1e-6)


def test_what_is_said_of_all_texts(near: tuple[Any, Any]) -> None:
    found = token_kl(*near, TOKENIZER, TEXTS)
    said = found.summary()
    assert said["forward"] == pytest.approx(found.forward.sum() / (BYTES.sum() * math.log(2)), rel=1e-12)
    assert said["reverse_per_token"] == pytest.approx(found.reverse.sum() / found.n_tokens.sum(), rel=1e-12)
    assert said["exact"] == pytest.approx((said["forward"] + said["reverse"]) / 2, rel=1e-12)
    assert said["agreement"] == found.agreed.sum() / found.n_tokens.sum()
    assert said["estimate"] == klray.kl_divergence(found.log_likelihood, BYTES)[0, 1]
    assert said["estimate_standard_error"] == klray.kl_standard_error(found.log_likelihood, BYTES)[0, 1]
    difference = found.log_likelihood[0] - found.log_likelihood[1]
    left = difference - np.polyval(np.polyfit(found.n_tokens, difference, 1), found.n_tokens)
    assert said["estimate_without_tokens"] == pytest.approx(np.var(left) / (2 * BYTES.mean() * math.log(2)), rel=1e-9)
    # the standard error is that of a ratio: as the jackknife has it
    parts = [(np.delete(found.forward, n).sum() / np.delete(BYTES, n).sum()) / math.log(2) for n in range(len(TEXTS))]
    jackknife = math.sqrt((len(TEXTS) - 1) * np.var(parts))
    assert said["forward_standard_error"] == pytest.approx(jackknife, rel=0.5)
    assert f"{len(TEXTS)} texts" in repr(found)


def test_what_shifts_a_text_in_proportion_to_its_length_is_no_kl_of_tokens() -> None:
    """The estimate counts it, the exact KL does not, and a line through tokens takes it away."""
    n_tokens = np.arange(100, 300)
    zero = np.zeros(len(n_tokens))
    shifted = TokenKL(zero, zero, n_tokens, np.stack([-0.1 * n_tokens, zero]), n_tokens, 4 * n_tokens)
    said = shifted.summary()
    assert said["exact"] == 0 and said["agreement"] == 1
    assert said["estimate"] == pytest.approx(0.01 * np.var(n_tokens) / (8 * n_tokens.mean() * math.log(2)))
    assert abs(said["estimate_without_tokens"]) < 1e-20 and abs(said["estimate_without_bytes"]) < 1e-20


def test_models_that_cannot_be_compared_are_refused() -> None:
    small, large = tiny_models.tiny_model("gpt2"), tiny_models.tiny_model("llama", vocabulary=400)
    words = r"LlamaForCausalLM gives 0\.\d+ of its probability to entries of its vocabulary that GPT2LMHeadModel lacks"
    with pytest.raises(CheckpointError, match=words) as caught:
        token_kl(small, large, TOKENIZER, TEXTS)
    assert caught.value.reason == "load_failed"
    broken = copy.deepcopy(small)
    with torch.no_grad():
        broken.transformer.ln_f.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        token_kl(small, broken, TOKENIZER, TEXTS)
    with pytest.raises(KlrayError, match="there are no texts"):
        token_kl(small, small, TOKENIZER, [])


def test_entries_that_fill_a_head_up_are_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    model, other = (tiny_models.tiny_model("phi", seed=seed, vocabulary=size) for seed, size in ((1, 320), (2, 1400)))
    with torch.no_grad():
        other.lm_head.bias[320:] = -20.0
        other.lm_head.weight[320:] *= 0.1
    with caplog.at_level("WARNING", "klray"):
        found = token_kl(model, other, TOKENIZER, TEXTS, tokens_per_batch=200)
    pairs = [(logits(model, text), logits(other, text)[:, :320]) for text in TEXTS]
    np.testing.assert_allclose(found.forward, [definition(p, q) for p, q in pairs], rtol=1e-6)
    np.testing.assert_allclose(found.reverse, [definition(q, p) for p, q in pairs], rtol=1e-6)
    np.testing.assert_allclose(found.log_likelihood[1], klray.log_likelihood(other, TOKENIZER, TEXTS), atol=2e-4)
    whole = torch.cat([logits(other, text).softmax(-1)[:, 320:].sum(-1) for text in TEXTS])
    (words,) = (each.getMessage() for each in caplog.records)
    assert float(words.split()[2]) == pytest.approx(float(whole.mean()), rel=0.01) and 0 < float(whole.mean()) < 1e-3


def test_a_token_that_one_model_excludes_is_no_number() -> None:
    model = tiny_models.tiny_model("phi")
    other = copy.deepcopy(model)
    assert other.lm_head.bias is not None
    with torch.no_grad():
        other.lm_head.bias[7] = float("-inf")
    with pytest.raises(CheckpointError, match="no probability at all to a token"):
        token_kl(model, other, TOKENIZER, [text for text in TEXTS if 7 not in TOKENIZER(text)["input_ids"]])


@pytest.mark.slow
def test_a_large_vocabulary_takes_no_memory() -> None:
    assert memory(lengths=[250] * 4) < 300e6
