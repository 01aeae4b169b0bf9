from __future__ import annotations

import logging
import math
import re
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from klray.likelihood.head import OutputHead, find_head, hidden_states, own_logits
from tests import tiny_models

TOKENS, VOCABULARY, WIDTH = 700, 2500, 24  # more than one tile each way, and multiples of none


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def example(dtype: torch.dtype, *, bias: bool = False) -> tuple[OutputHead, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype)
    offset = torch.randn(VOCABULARY, generator=generator).to(dtype) if bias else None
    hidden = torch.randn(TOKENS, WIDTH, generator=generator).to(dtype)
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    targets[:4] = torch.tensor([0, 1023, 1024, VOCABULARY - 1])
    return OutputHead(weight, offset), hidden, targets


def reference(head: OutputHead, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-softmax of all logits in float64."""
    logits = hidden.double() @ head.weight_VD.double().T
    if head.bias_V is not None:
        logits = logits + head.bias_V.double()
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("bias", "scale", "softcap"), [(False, 1.0, None), (True, 0.25, None), (True, 3.0, 4.0)])
def test_log_probabilities_equal_a_float64_log_softmax(
    dtype: torch.dtype, bias: bool, scale: float, softcap: float | None
) -> None:
    head, hidden, targets = example(dtype, bias=bias)
    head = OutputHead(head.weight_VD, head.bias_V, scale, softcap)
    computed = head.log_probabilities(hidden, targets)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(computed.double(), reference(head, hidden, targets), rtol=0, atol=tolerance)


def test_probabilities_of_all_tokens_sum_to_one() -> None:
    head, hidden, _ = example(torch.float32)
    every = torch.arange(VOCABULARY)
    total = head.log_probabilities(hidden[:1].expand(VOCABULARY, -1), every).double().exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-6)


def test_bfloat16_logits_are_not_rounded() -> None:
    head, hidden, targets = example(torch.bfloat16)
    truth = reference(head, hidden, targets)
    ordinary = (hidden @ head.weight_VD.T).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    ours = (head.log_probabilities(hidden, targets) - truth).abs().max().item()
    assert ours < 2e-5
    assert ours < (ordinary - truth).abs().max().item() / 100


def test_extreme_logits() -> None:
    weight = torch.tensor([[1.0], [1.0], [-1.0]])
    head = OutputHead(weight, torch.tensor([0.0, -math.inf, 0.0]))
    hidden, targets = torch.tensor([[1e4], [1e4], [-1e4], [0.0]]), torch.tensor([0, 1, 2, 0])
    assert head.log_probabilities(hidden, targets).tolist() == pytest.approx([0, -math.inf, 0, math.log(0.5)])


def test_logits_of_hundreds_on_one_side_of_zero() -> None:
    head, hidden, targets = example(torch.float32, bias=True)
    for offset in (-300.0, 300.0):  # GPT-2's logits stand about -100; exp() of these leaves fp32
        shifted = OutputHead(head.weight_VD, head.bias_V + offset)
        computed = shifted.log_probabilities(hidden, targets).double()
        torch.testing.assert_close(computed, reference(shifted, hidden, targets), rtol=0, atol=1e-4)


def test_rows_that_are_infinite_stay_so() -> None:
    head = OutputHead(torch.ones(3, 1), torch.full((3,), -math.inf))
    assert math.isnan(head.log_probabilities(torch.ones(1, 1), torch.tensor([0])).item())
    head = OutputHead(torch.tensor([[1.0], [math.inf]]))
    assert head.log_probabilities(torch.ones(1, 1), torch.tensor([0])).item() == -math.inf


class LargestTensor(TorchDispatchMode):
    """Remembers the elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_logits_of_all_tokens_never_exist_at_once() -> None:
    head, hidden, targets = example(torch.float32)
    with LargestTensor() as largest:
        head.log_probabilities(hidden, targets)
    assert largest.elements == 512 * 1024
    assert 3 * largest.elements < TOKENS * VOCABULARY


@pytest.mark.parametrize(
    ("architecture", "scale", "softcap"),
    [
        ("gpt_neox", 1.0, None),
        ("gpt2", 1.0, None),
        ("phi", 1.0, None),  # its head has a bias
        ("cohere", 0.25, None),
        ("granite", 1 / 3, None),
        ("hyperclovax", 3.0, None),
        ("gemma2", 1.0, 1.5),
        ("recurrent_gemma", 1.0, 1.5),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_of_a_model_gives_the_model_s_own_logits(
    architecture: str, scale: float, softcap: float | None, dtype: torch.dtype
) -> None:
    model = tiny_models.tiny_model(architecture, dtype=dtype)
    ids = torch.arange(40, 72)
    with torch.no_grad():
        head, _ = find_head(model, ids, longest=100)
        assert head is not None
        hidden = hidden_states(model, ids[None])[0]
        own = own_logits(model, ids[None])[0].float()
        tolerance = 2e-5 if dtype == torch.float32 else 2**-7 * own.abs().max().item()
        torch.testing.assert_close(head.logits(hidden), own, rtol=0, atol=tolerance)
    assert head.scale == pytest.approx(scale)
    assert head.softcap == softcap


def test_a_head_of_zeros_still_has_the_scale_of_its_config() -> None:
    model = tiny_models.tiny_model("cohere")
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
        head, _ = find_head(model, torch.arange(9), longest=9)
    assert head is not None
    assert head.scale == 0.25


def wrong_scale() -> Any:
    model = tiny_models.tiny_model("cohere")
    model.logit_scale = 0.7  # not what its config says
    return model


def bidirectional() -> Any:
    model = tiny_models.tiny_model("llama")
    model.config.is_causal = False
    return model


def transformed() -> Any:
    return tiny_models.tiny_model("bert")  # a dense layer and a norm stand before its linear head


def length_dependent() -> Any:
    return tiny_models.tiny_model("phi3")


def masked() -> Any:
    """Entries of its vocabulary are never predicted."""
    model = tiny_models.tiny_model("llama")
    forward = model.forward

    def without(*arguments: Any, **named: Any) -> Any:
        output = forward(*arguments, **named)
        output.logits[..., 300:] = -math.inf
        return output

    model.forward = without
    return model


def only_logits() -> Any:
    class Uniform(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
            return torch.zeros(*input_ids.shape, 320)

    return Uniform()


def wrapped() -> Any:
    """As adapters wrap a model: the base model is a whole causal model itself."""

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_model = tiny_models.tiny_model("llama")
            self.config, self.forward = self.base_model.config, self.base_model.forward
            self.get_output_embeddings = self.base_model.get_output_embeddings

    return Wrapper()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (wrong_scale, r"CohereForCausalLM: its logits are \d.* off"),
        (bidirectional, r"LlamaForCausalLM: its hidden states .* \d"),
        (transformed, r"BertLMHeadModel: its logits are .* off"),
        (length_dependent, r"Phi3ForCausalLM: texts over 64 tokens"),
        (masked, r"LlamaForCausalLM: it gives no probability"),
        (wrapped, r"Wrapper: .* gives no hidden states"),
        (only_logits, r"Uniform: it has no plain linear head"),
    ],
)
def test_models_that_the_head_cannot_stand_for_are_told(
    make: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "klray"), torch.no_grad():
        head, why = find_head(make(), torch.arange(40, 72), longest=65)
    assert head is None
    (record,) = [record for record in caplog.records if record.name == "klray"]
    assert record.levelno == logging.WARNING
    assert re.search(words, record.getMessage())
    assert why and why in record.getMessage()
    assert "one text per forward pass" in record.getMessage()


def test_not_finite_models_are_left_to_the_log_likelihoods_to_report() -> None:
    model = tiny_models.tiny_model("gpt_neox")
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = math.nan
        assert find_head(model, torch.arange(9), longest=9)[0] is not None
