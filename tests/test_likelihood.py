from __future__ import annotations

import copy
import itertools
import logging
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

import klray
from klray.errors import CheckpointError
from klray.likelihood.score import context_length, default_tokens_per_batch, log_likelihood, score
from klray.likelihood.tokens import Tokens, encode
from tests import tiny_models

TEXTS = ["", *tiny_models.texts()]
ARCHITECTURES = [
    "gpt_neox",
    "llama",
    "gpt2",
    "qwen2",
    "gemma2",
    "mistral",
    "opt",
    "mamba",
    "cohere",
    "granite",
    "bloom",
]
BUDGET = 200  # several batches, some of several rows


pytestmark = pytest.mark.usefixtures("one_thread")


def truth(model: Any, tokens: Tokens) -> np.ndarray:
    """Log-likelihoods by the definition: one text per forward pass, model and full log-softmax in float64."""
    exact = copy.deepcopy(model).double()
    return np.array([float(ordinary(exact, ids)) for ids in tokens])


def ordinary(model: Any, ids: np.ndarray) -> torch.Tensor:
    """Log-likelihood of one text by the log-softmax of all the model's logits, in the dtype that they come in."""
    if len(ids) < 2:
        return torch.zeros(())
    with torch.no_grad():
        logits = model(torch.tensor(ids[None], dtype=torch.int64), use_cache=False).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:, None], dtype=torch.int64)).double().sum()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_one_text_per_forward_with_a_float64_log_softmax(architecture: str) -> None:
    model, tokenizer = tiny_models.tiny_model(architecture), tiny_models.tokenizer_for(architecture)
    tokens = encode(tokenizer, TEXTS)
    expected = truth(model, tokens)
    scored = score(model, tokens, tokens_per_batch=BUDGET)
    assert scored.head == "tiled"
    assert scored.values.dtype == np.float64
    np.testing.assert_allclose(scored.values, expected, rtol=0, atol=1e-3)
    one_by_one = score(model, tokens, tokens_per_batch=1)
    np.testing.assert_allclose(one_by_one.values, expected, rtol=0, atol=1e-3)
    np.testing.assert_allclose(scored.values, one_by_one.values, rtol=0, atol=1e-3)
    assert scored.values[0] == 0.0
    assert scored.n_tokens.tolist() == [max(len(ids) - 1, 0) for ids in tokens]
    assert (scored.values < 0).tolist() == (scored.n_tokens > 0).tolist()
    assert np.array_equal(klray.log_likelihood(model, tokenizer, TEXTS, tokens_per_batch=BUDGET), scored.values)


def test_a_text_of_one_token_counts_only_behind_a_bos() -> None:
    without, with_bos = (log_likelihood(tiny_models.tiny_model(name), tiny_models.tokenizer_for(name), ["a", ""])
                         for name in ("gpt2", "llama"))  # fmt: skip
    assert without.tolist() == [0.0, 0.0]
    assert with_bos[0] < 0
    assert with_bos[1] == 0.0


def test_a_mixture_of_experts() -> None:
    model = tiny_models.tiny_model("olmoe")
    tokens = encode(tiny_models.tokenizer_for("olmoe"), TEXTS)
    expected = [float(ordinary(model, ids)) for ids in tokens]
    scored = score(model, tokens, tokens_per_batch=BUDGET)
    assert scored.head == "tiled"
    np.testing.assert_allclose(scored.values, expected, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_a_compiled_model_is_scored_as_the_one_that_it_was_made_of() -> None:
    model = tiny_models.tiny_model("gpt_neox")
    tokens = encode(tiny_models.tokenizer_for("gpt_neox"), TEXTS)
    assert score(torch.compile(model), tokens).values.tobytes() == score(model, tokens).values.tobytes()


def test_a_model_without_an_output_head_is_refused_in_words() -> None:
    model, tokenizer = tiny_models.tiny_model("gpt_neox").base_model, tiny_models.tokenizer_for("gpt_neox")
    with pytest.raises(CheckpointError, match=r"GPTNeoXModel gives no logits"):
        log_likelihood(model, tokenizer, TEXTS)


def test_the_probabilities_of_all_next_tokens_sum_to_one() -> None:
    model = tiny_models.tiny_model("gpt_neox")
    prefix = tiny_models.byte_level_tokenizer()("The quick brown")["input_ids"]
    rows = [prefix, *([*prefix, token] for token in range(tiny_models.VOCABULARY))]
    offsets = np.cumsum([0, *map(len, rows)])
    values = score(model, Tokens(np.array(list(itertools.chain(*rows)), np.int32), offsets)).values
    assert np.exp(values[1:] - values[0]).sum() == pytest.approx(1, abs=1e-5)


def test_values_do_not_depend_on_budget_order_or_company_but_by_rounding() -> None:
    model, tokenizer = tiny_models.tiny_model("llama"), tiny_models.tokenizer_for("llama")
    reference = log_likelihood(model, tokenizer, TEXTS, tokens_per_batch=1)
    for budget in (64, 500, 10_000):
        np.testing.assert_allclose(
            log_likelihood(model, tokenizer, TEXTS, tokens_per_batch=budget), reference, rtol=0, atol=1e-4
        )
    np.testing.assert_allclose(log_likelihood(model, tokenizer, TEXTS[::-1])[::-1], reference, rtol=0, atol=1e-4)
    np.testing.assert_allclose(log_likelihood(model, tokenizer, TEXTS[2:3]), reference[2:3], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["gpt_neox", "gemma2"])
def test_16_bit_models_are_scored_no_worse_than_by_the_ordinary_way(architecture: str, dtype: torch.dtype) -> None:
    model = tiny_models.tiny_model(architecture, dtype=dtype)
    tokens = encode(tiny_models.tokenizer_for(architecture), TEXTS)
    expected = truth(model, tokens)  # of the rounded weights
    per_text = np.array([float(ordinary(model, ids)) for ids in tokens])
    scored = score(model, tokens, tokens_per_batch=BUDGET)
    assert scored.head == "tiled"

    def error(values: np.ndarray) -> float:
        return float(np.sqrt(np.mean((values - expected) ** 2)))

    assert error(scored.values) <= error(per_text) + 1e-3


def test_the_same_bits_whatever_was_scored_before() -> None:
    model, tokenizer = tiny_models.tiny_model("gpt_neox"), tiny_models.tokenizer_for("gpt_neox")
    first = log_likelihood(model, tokenizer, TEXTS)
    log_likelihood(model, tokenizer, TEXTS[3:6], tokens_per_batch=7)
    log_likelihood(tiny_models.tiny_model("gpt2"), tokenizer, TEXTS)
    assert log_likelihood(model, tokenizer, TEXTS).tobytes() == first.tobytes()
    assert log_likelihood(copy.deepcopy(model), tokenizer, TEXTS).tobytes() == first.tobytes()


def test_the_model_and_the_random_state_are_left_as_they_were() -> None:
    model = tiny_models.tiny_model("gpt2")
    tokenizer = tiny_models.tokenizer_for("gpt2")
    quiet = log_likelihood(model, tokenizer, TEXTS)
    model.train()  # dropout 0.1
    model.transformer.h[0].eval()
    next(model.parameters()).requires_grad_(False)
    modes = [module.training for module in model.modules()]
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    with torch.autocast("cpu", torch.bfloat16):
        assert log_likelihood(model, tokenizer, TEXTS).tobytes() == quiet.tobytes()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_state, strict=True))
    assert random.getstate() == python_state
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == gradients
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_the_mode_is_restored_after_an_error() -> None:
    model = tiny_models.tiny_model("gpt2").train()
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError):
        log_likelihood(model, tiny_models.tokenizer_for("gpt2"), TEXTS)
    assert all(module.training for module in model.modules())


class Wrapped(torch.nn.Module):
    """A model that offers nothing but its logits."""

    def __init__(self, inner: Any):
        super().__init__()
        self.inner = inner
        self.shapes: list[torch.Size] = []

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        self.shapes.append(input_ids.shape)
        return self.inner(input_ids, use_cache=use_cache)


def test_a_model_without_a_known_head_is_scored_text_by_text_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = Wrapped(tiny_models.tiny_model("gemma2"))
    tokens = encode(tiny_models.tokenizer_for("gemma2"), TEXTS)
    with caplog.at_level(logging.WARNING, "klray"):
        scored = score(model, tokens, tokens_per_batch=10_000)
    assert scored.head == "model"
    assert "Wrapped: it has no plain linear head" in caplog.text
    probes = [(1, 32)] * 2  # is it causal?
    assert sorted(model.shapes) == sorted([*probes, *((1, n) for n in tokens.lengths if n >= 2)])
    np.testing.assert_allclose(scored.values, truth(model.inner, tokens), rtol=0, atol=1e-3)


def test_positions_that_depend_on_the_longest_text_of_a_batch() -> None:
    model = tiny_models.tiny_model("phi3")  # other rotary frequencies beyond 64 tokens
    tokens = encode(tiny_models.tokenizer_for("phi3"), TEXTS)
    assert tokens.lengths.max() > 64 > np.median(tokens.lengths)
    scored = score(model, tokens, tokens_per_batch=10_000)
    assert scored.head == "model"
    np.testing.assert_allclose(scored.values, truth(model, tokens), rtol=0, atol=1e-3)


def run_out_of_memory_above(model: Any, most: int) -> list[int]:
    """Let forward passes of more than ``most`` tokens ask for a petabyte; the list gets the sizes that were tried."""
    tried: list[int] = []

    def grow(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tried.append((args[0] if args else kwargs["input_ids"]).numel())
        if tried[-1] > most:
            torch.empty(2**50, dtype=torch.uint8)

    model.base_model.register_forward_pre_hook(grow, with_kwargs=True)
    return tried


def test_out_of_memory_halves_the_budget_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_models.tiny_model("gpt_neox")
    tokens = encode(tiny_models.tokenizer_for("gpt_neox"), TEXTS * 3)
    expected = score(model, tokens, tokens_per_batch=200).values
    most = int(tokens.lengths.max()) + 10
    tried = run_out_of_memory_above(model, most)
    with caplog.at_level(logging.WARNING, "klray"):
        scored = score(model, tokens, tokens_per_batch=2_000)
    assert sum(size > most for size in tried) == 3  # ten rows, five, two; then single ones
    assert scored.tokens_per_batch <= most
    assert "out of memory" in caplog.text
    np.testing.assert_allclose(scored.values, expected, rtol=0, atol=1e-4)


def test_out_of_memory_with_one_text_is_an_error() -> None:
    model = tiny_models.tiny_model("gpt_neox")
    tokens = encode(tiny_models.tokenizer_for("gpt_neox"), TEXTS)
    run_out_of_memory_above(model, int(tokens.lengths.max()) - 1)
    with pytest.raises(CheckpointError, match=r"GPTNeoXForCausalLM ran out .* cpu .*use a") as caught:
        score(model, tokens, tokens_per_batch=2_000)
    assert caught.value.reason == "out_of_memory"


def test_other_runtime_errors_are_not_taken_for_a_lack_of_memory() -> None:
    model = tiny_models.tiny_model("gpt_neox")

    def fail(*_: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    model.base_model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        log_likelihood(model, tiny_models.tokenizer_for("gpt_neox"), TEXTS)


def test_values_that_are_not_finite_are_an_error_that_names_the_first_text() -> None:
    model, tokenizer = tiny_models.tiny_model("gpt_neox"), tiny_models.tokenizer_for("gpt_neox")
    word = tokenizer("x")["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[word] = float("inf")
    texts = ["abc", "def", "x y", "ghi", "axb"]
    with pytest.raises(CheckpointError, match=r"text 2 .* nan, and 2 of 5 texts") as caught:
        log_likelihood(model, tokenizer, texts)
    assert caught.value.reason == "non_finite" and "dtype" not in caught.value.message
    with pytest.raises(CheckpointError, match="try dtype float32, or leave"):
        log_likelihood(model.to(torch.bfloat16), tokenizer, texts)


def test_texts_beyond_the_context_and_foreign_tokenizers_are_refused() -> None:
    model, tokenizer = tiny_models.tiny_model("gpt2"), tiny_models.tokenizer_for("gpt2")
    with pytest.raises(CheckpointError, match=r"text 1 has .* context holds 256") as caught:
        log_likelihood(model, tokenizer, ["short", "long " * 400])
    assert caught.value.reason == "text_too_long"
    with pytest.raises(CheckpointError, match="do not belong together"):
        log_likelihood(tiny_models.tiny_model("gpt2", vocabulary=100), tokenizer, TEXTS)


def test_the_context_of_a_model() -> None:
    contexts = {
        name: context_length(tiny_models.tiny_model(name)) for name in ("gpt2", "llama", "mpt", "mamba", "bloom")
    }
    assert contexts == {"gpt2": 256, "llama": 256, "mpt": 256, "mamba": None, "bloom": None}
    assert context_length(torch.nn.Linear(1, 1)) is None


def test_no_texts() -> None:
    scored = score(tiny_models.tiny_model("gpt2"), encode(tiny_models.tokenizer_for("gpt2"), []))
    assert scored.values.shape == scored.n_tokens.shape == (0,)
    assert scored.values.dtype == np.float64


def test_the_default_budget_depends_on_the_kind_of_device_alone() -> None:
    assert default_tokens_per_batch("cpu") < default_tokens_per_batch("cuda:1")


@pytest.mark.slow
def test_log_likelihood_needs_torch_and_numpy_alone() -> None:
    code = (
        "import torch; before = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_rng_state()\n"
        "import sys, klray; klray.log_likelihood\n"
        "assert not {'transformers', 'tokenizers', 'ray', 'zarr', 'dask', 'xarray'} & sys.modules.keys()\n"
        "assert (torch.get_num_threads(), torch.is_grad_enabled()) == before[:2]\n"
        "assert torch.equal(torch.get_rng_state(), before[2])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
