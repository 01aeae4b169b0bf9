"""Which hidden units of a model can be permuted without changing its outputs: GPT-NeoX and models of Llama's kind."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from klray.errors import KlrayError

Kind = Literal["units", "residual"]


@dataclass(frozen=True)
class Axis:
    """A part of a tensor's axis that carries units: ``length`` entries from ``start`` on, length / units for each."""

    tensor: str
    axis: int
    start: int
    length: int


@dataclass(frozen=True)
class Symmetry:
    """``units`` that one permutation may reorder on all ``axes`` at once without changing the model's outputs."""

    name: str
    units: int
    axes: tuple[Axis, ...]


def symmetries(named: Mapping[str, torch.Tensor], config: Mapping[str, Any], kind: Kind = "units") -> list[Symmetry]:
    """The symmetries of a checkpoint: for each layer the MLP's hidden units and the attention heads.

    Parameters
    ----------
    named : parameters by their stored names
    config : config.json of the checkpoint
    kind : "units", or "residual" for the residual stream as well

    Where several query heads share a key and value head, these groups are permuted, and the query heads in each. A
    permutation of the residual stream goes through embedding, norms, every layer and the output head.

    Raises
    ------
    KlrayError
        An architecture other than GPT-NeoX and Llama's kind, or parameters that do not have its shapes.
    """
    model_type = str(config.get("model_type"))
    makers = {"gpt_neox": _gpt_neox, **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "olmo2"), _llama)}
    if model_type not in makers:
        raise KlrayError(
            f"model_type {model_type}: alignment knows the hidden units of {', '.join(makers)}; measure raw distances "
            "(weights.align=none)"
        )
    pattern = re.compile(r"(.*layers\.\d+\.)mlp\.")
    layers = list(dict.fromkeys(match[1] for name in named if (match := pattern.match(name))))
    found = [each for layer in layers for each in makers[model_type](layer, named, config)]
    if kind == "residual":
        found.append(_residual(named, config))
    return found


def permute(named: Mapping[str, torch.Tensor], symmetry: Symmetry, order: np.ndarray) -> dict[str, torch.Tensor]:
    """Parameters with unit i of the result being unit ``order[i]`` of ``named``: a model with the same outputs."""
    result = dict(named)
    index = torch.from_numpy(np.ascontiguousarray(order))
    for axis in symmetry.axes:
        tensor = result[axis.tensor]
        inner = axis.length // symmetry.units
        part = tensor.narrow(axis.axis, axis.start, axis.length)
        places = (index[:, None] * inner + torch.arange(inner)).reshape(-1)
        moved = part.index_select(axis.axis, places)
        if axis.length == tensor.shape[axis.axis]:
            result[axis.tensor] = moved
        else:
            result[axis.tensor] = tensor.clone()
            result[axis.tensor].narrow(axis.axis, axis.start, axis.length).copy_(moved)
    return result


def _gpt_neox(layer: str, named: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> list[Symmetry]:
    heads = int(config["num_attention_heads"])
    # The rows of query_key_value are (head, query key value, entry): a head's three parts stand together.
    attention = _whole(
        named,
        [(f"{layer}attention.query_key_value.weight", 0), (f"{layer}attention.query_key_value.bias", 0)],
        [(f"{layer}attention.dense.weight", 1)],
    )
    mlp = _whole(
        named,
        [(f"{layer}mlp.dense_h_to_4h.weight", 0), (f"{layer}mlp.dense_h_to_4h.bias", 0)],
        [(f"{layer}mlp.dense_4h_to_h.weight", 1)],
    )
    return [_checked(f"{layer}attention", heads, attention, named), _checked(f"{layer}mlp", mlp[0].length, mlp, named)]


def _llama(layer: str, named: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> list[Symmetry]:
    heads = int(config["num_attention_heads"])
    groups = int(config.get("num_key_value_heads") or heads)
    names = [f"{layer}self_attn.{part}_proj.{what}" for part in "qkv" for what in ("weight", "bias")]
    attention = _whole(named, [(name, 0) for name in names], [(f"{layer}self_attn.o_proj.weight", 1)])
    # Norms over all heads at once have a scale for each entry; those of one head are shared by all and stay.
    for part in "qk":
        norm = f"{layer}self_attn.{part}_norm.weight"
        if norm in named and named[norm].shape[0] == named[f"{layer}self_attn.{part}_proj.weight"].shape[0]:
            attention += _whole(named, [(norm, 0)], [])
    found = [_checked(f"{layer}attention", groups, attention, named)]
    shared = heads // groups
    queries = [axis for axis in attention if ".q_" in axis.tensor or ".o_" in axis.tensor]
    for group in range(groups if shared > 1 else 0):
        of_group = tuple(
            Axis(axis.tensor, axis.axis, group * (axis.length // groups), axis.length // groups) for axis in queries
        )
        found.append(_checked(f"{layer}attention group {group}", shared, of_group, named))
    inner = [(f"{layer}mlp.{part}_proj.{what}", 0) for part in ("gate", "up") for what in ("weight", "bias")]
    mlp = _whole(named, inner, [(f"{layer}mlp.down_proj.weight", 1)])
    return [*found, _checked(f"{layer}mlp", mlp[0].length, mlp, named)]


_WRITERS = (  # rows are the residual stream's
    "attention.dense.weight",
    "attention.dense.bias",
    "dense_4h_to_h.weight",
    "dense_4h_to_h.bias",
    "o_proj.weight",
    "o_proj.bias",
    "down_proj.weight",
    "down_proj.bias",
)
_READERS = (  # columns are
    "query_key_value.weight",
    "dense_h_to_4h.weight",
    "q_proj.weight",
    "k_proj.weight",
    "v_proj.weight",
    "gate_proj.weight",
    "up_proj.weight",
    "embed_in.weight",
    "embed_tokens.weight",
    "embed_out.weight",
    "lm_head.weight",
)


def _residual(named: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Symmetry:
    width = int(config["hidden_size"])
    axes = []
    for name in named:
        if name.endswith(_READERS):
            axes.append(Axis(name, 1, 0, width))
        elif name.endswith(_WRITERS) or ("norm" in name and not re.search(r"[qk]_norm", name)):
            axes.append(Axis(name, 0, 0, width))
    return _checked("residual stream", width, tuple(axes), named)


def _whole(
    named: Mapping[str, torch.Tensor], rows: Sequence[tuple[str, int]], columns: Sequence[tuple[str, int]]
) -> tuple[Axis, ...]:
    """Whole axes of those tensors that the checkpoint has; biases are often not there."""
    return tuple(Axis(name, axis, 0, named[name].shape[axis]) for name, axis in [*rows, *columns] if name in named)


def _checked(name: str, units: int, axes: tuple[Axis, ...], named: Mapping[str, torch.Tensor]) -> Symmetry:
    for axis in axes:
        have = named[axis.tensor].shape[axis.axis]
        if axis.start + axis.length > have or axis.length % units:
            raise KlrayError(
                f"{axis.tensor} has {have} entries on axis {axis.axis}, which do not hold the {units} units of {name}: "
                "the config does not belong to these weights"
            )
    return Symmetry(name, units, axes)
