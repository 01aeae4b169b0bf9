"""Which of a checkpoint's stored tensors are its parameters, each once; and what makes two checkpoints comparable."""

import hashlib
import json
from collections.abc import Mapping

import torch

from klray.checkpoints.tensors import is_coded
from klray.errors import KlrayError

# Constants that older files hold beside the parameters: masks, their fill value, rotary frequencies.
_BUFFERS = (".attention.bias", ".attn.bias", ".masked_bias", ".inv_freq")
_HEADS = ("lm_head.weight", "embed_out.weight")  # what is stored twice where it is tied to the embedding


def parameters(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The floating-point parameters among ``stored`` tensors, sorted by name; tied ones once, constants left out.

    Two names are tied if they share memory, or if one is an output head that equals another tensor of its shape.
    Raises KlrayError for weights stored as integers or float8: their values are known only together with their scales.
    """
    kept: dict[str, torch.Tensor] = {}
    places: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    for name in sorted(stored):
        tensor = stored[name]
        if name.endswith(_BUFFERS) or tensor.dtype == torch.bool or tensor.numel() == 0:
            continue
        if not tensor.is_floating_point() or is_coded(tensor):
            raise KlrayError(
                f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')}: weights that were quantised before "
                "they were stored have no place in weight space; take the checkpoint that they were made from"
            )
        place = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if place not in places:
            places.add(place)
            kept[name] = tensor
    for head in [name for name in kept if name.endswith(_HEADS)]:
        if any(name != head and _equal(tensor, kept[head]) for name, tensor in kept.items()):
            del kept[head]
    return kept


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal in shape, dtype and values; the first row tells most others apart."""
    alike = one.shape == other.shape and one.dtype == other.dtype
    return alike and torch.equal(one[:1], other[:1]) and torch.equal(one, other)


def fingerprint(named: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (64 hex) over names and shapes of parameters: equal for checkpoints that are comparable."""
    shapes = sorted((name, list(tensor.shape)) for name, tensor in named.items())
    return hashlib.sha256(json.dumps(shapes, separators=(",", ":")).encode()).hexdigest()
