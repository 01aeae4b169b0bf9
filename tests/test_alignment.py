"""Alignment: permuted models give the same outputs, and are found back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from klray.errors import KlrayError
from klray.weights.alignment.matching import align, aligned_squared_distance
from klray.weights.alignment.symmetry import Kind, permute, symmetries
from klray.weights.parameters import parameters
from klray.weights.windows import squared_distance
from tests.tiny_models import VOCABULARY, tiny_model

ARCHITECTURES = ["gpt_neox", "llama", "qwen2", "mistral"]


def shuffled(model: torch.nn.Module, kind: Kind, seed: int) -> dict[str, torch.Tensor]:
    """The model's parameters with every symmetry permuted at random."""
    rng = np.random.default_rng(seed)
    named = parameters(model.state_dict())
    for symmetry in symmetries(named, model.config.to_dict(), kind):
        named = permute(named, symmetry, rng.permutation(symmetry.units))
    return named


@pytest.mark.parametrize("kind", ["units", "residual"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_permuted_model_gives_the_same_outputs_and_is_aligned_back(architecture: str, kind: Kind) -> None:
    model = tiny_model(architecture)
    tokens = torch.randint(0, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # biases and norms start equal, and would hide a mistake
            generator = torch.Generator().manual_seed(len(name))
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
        before = model(tokens).logits.clone()
        original = {name: tensor.clone() for name, tensor in parameters(model.state_dict()).items()}
        named = shuffled(model, kind, seed=1)
        model.load_state_dict(named, strict=False)
        model.tie_weights()
        assert (model(tokens).logits - before).abs().max() < 1e-5
    assert squared_distance(original, named) > 1
    found = symmetries(original, model.config.to_dict(), kind)
    assert aligned_squared_distance(original, named, found) == 0
    back = align(original, named, found)
    assert all(torch.equal(back[name], original[name]) for name in original)


def test_what_is_not_permuted_alike_changes_the_outputs() -> None:
    model = tiny_model("gpt_neox")
    named = parameters(model.state_dict())
    mlp = next(each for each in symmetries(named, model.config.to_dict()) if each.name.endswith("mlp"))
    tokens = torch.randint(0, VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(tokens).logits.clone()
        half = type(mlp)(mlp.name, mlp.units, mlp.axes[:1])
        model.load_state_dict(permute(named, half, np.arange(mlp.units)[::-1]), strict=False)
        assert (model(tokens).logits - before).abs().max() > 1e-3


def test_alignment_of_a_moved_copy_finds_the_move_and_never_takes_away() -> None:
    """A copy that drifted a little and was permuted is as far as the drift; without a permutation nothing moves."""
    model = tiny_model("gpt_neox")
    named = parameters(model.state_dict())
    found = symmetries(named, model.config.to_dict())
    rng = torch.Generator().manual_seed(3)
    moved = {name: tensor + 0.001 * torch.randn(tensor.shape, generator=rng) for name, tensor in named.items()}
    drift = squared_distance(named, moved)
    permuted = moved
    for symmetry in found:
        permuted = permute(permuted, symmetry, np.random.default_rng(4).permutation(symmetry.units))
    assert squared_distance(named, permuted) > 10 * drift
    assert aligned_squared_distance(named, permuted, found) == pytest.approx(drift, rel=1e-12)
    assert aligned_squared_distance(named, moved, found) == drift
    other = parameters(tiny_model("gpt_neox").state_dict())
    strangers = {name: tensor.flip(0) for name, tensor in other.items()}
    assert aligned_squared_distance(named, strangers, found) <= squared_distance(named, strangers)


def test_unknown_architectures_are_named() -> None:
    with pytest.raises(KlrayError, match=r"gpt2: .* gpt_neox, llama.*weights\.align=none"):
        symmetries({}, {"model_type": "gpt2"})
    model = tiny_model("gpt_neox")
    wrong = {**model.config.to_dict(), "num_attention_heads": 7}
    with pytest.raises(KlrayError, match=r"query_key_value.* 7 units .*config"):
        symmetries(parameters(model.state_dict()), wrong)
