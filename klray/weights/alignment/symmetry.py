"""Which hidden units of a model can be permuted without changing its outputs: GPT-NeoX and models of Llama's kind."""

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

    ``named`` are parameters by their stored names, ``config`` is the checkpoint's config.json. Where several query
    heads share a key and value head, these groups are permuted, and the query heads in each. With ``kind`` "residual"
    so is the residual stream, through embedding, norms, every layer and the output head.

    Raises KlrayError for an architecture other than GPT-NeoX and Llama's kind, or parameters without its shapes.
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
    attention = _whole(named, f"{layer}attention", ["query_key_value.weight", "query_key_value.bias"], "dense.weight")
    mlp = _whole(named, f"{layer}mlp", ["dense_h_to_4h.weight", "dense_h_to_4h.bias"], "dense_4h_to_h.weight")
    return [_checked(f"{layer}attention", heads, attention, named), _checked(f"{layer}mlp", mlp[0].length, mlp, named)]


def _llama(layer: str, named: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> list[Symmetry]:
    heads = int(config["num_attention_heads"])
    groups = int(config.get("num_key_value_heads") or heads)
    names = [f"{part}_proj.{what}" for part in "qkv" for what in ("weight", "bias")]
    attention = _whole(named, f"{layer}self_attn", names, "o_proj.weight")
    # Norms over all heads at once have a scale for each entry; those of one head are shared by all and stay.
    for part in "qk":
        norm = f"{layer}self_attn.{part}_norm.weight"
        if norm in named and named[norm].shape[0] == named[f"{layer}self_attn.{part}_proj.weight"].shape[0]:
            attention += (Axis(norm, 0, 0, named[norm].shape[0]),)
    found = [_checked(f"{layer}attention", groups, attention, named)]
    shared = heads // groups
    queries = [axis for axis in attention if ".q_" in axis.tensor or ".o_" in axis.tensor]
    for group in range(groups if shared > 1 else 0):
        of_group = tuple(
            Axis(axis.tensor, axis.axis, group * (axis.length // groups), axis.length // groups) for axis in queries
        )
        found.append(_checked(f"{layer}attention group {group}", shared, of_group, named))
    inner = [f"{part}_proj.{what}" for part in ("gate", "up") for what in ("weight", "bias")]
    mlp = _whole(named, f"{layer}mlp", inner, "down_proj.weight")
    return [*found, _checked(f"{layer}mlp", mlp[0].length, mlp, named)]


_WRITERS = tuple(  # rows are the residual stream's
    f"{layer}.{what}"
    for layer in ("attention.dense", "dense_4h_to_h", "o_proj", "down_proj")
    for what in ("weight", "bias")
)
_READERS = (  # columns are
    *("query_key_value.weight", "dense_h_to_4h.weight"),
    *(f"{part}_proj.weight" for part in ("q", "k", "v", "gate", "up")),
    *("embed_in.weight", "embed_tokens.weight", "embed_out.weight", "lm_head.weight"),
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


def _whole(named: Mapping[str, torch.Tensor], part: str, rows: Sequence[str], columns: str) -> tuple[Axis, ...]:
    """Rows and columns, whole, of those tensors that the checkpoint has; biases are often not there."""
    places = [(f"{part}.{name}", axis) for name, axis in [*((name, 0) for name in rows), (columns, 1)]]
    return tuple(Axis(name, axis, 0, named[name].shape[axis]) for name, axis in places if name in named)


def _checked(name: str, units: int, axes: tuple[Axis, ...], named: Mapping[str, torch.Tensor]) -> Symmetry:
    for axis in axes:
        have = named[axis.tensor].shape[axis.axis]
        if axis.start + axis.length > have or axis.length % units:
            raise KlrayError(
                f"{axis.tensor} has {have} entries on axis {axis.axis}, which do not hold the {units} units of {name}: "
                "the config does not belong to these weights"
            )
    return Symmetry(name, units, axes)
