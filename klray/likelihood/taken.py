"""Which of a checkpoint's stored tensors its model has taken up, and what may be left out."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from transformers.core_model_loading import revert_weight_conversion

from klray.checkpoints.tensors import is_coded
from klray.errors import CheckpointError
from klray.words.numbers import counted

logger = logging.getLogger("klray")

# What older or larger files hold beside the parameters: no probability of a next token depends on it.
HARMLESS = (
    (r"inv_freq$", "rotary frequencies, computed from the config"),
    (r"\.(attn|attention)\.(bias|masked_bias)$", "the causal mask and what it is filled with"),
    (r"(^|\.)position_ids$", "0, 1, 2, ..."),
    (r"\.num_batches_tracked$", "a counter of training"),
    (r"(^|\.)mtp(_layers)?\.", "predicts tokens after the next one"),
)
_SHOWN = 5


def refuse_left_out(
    model: Any, stored: Mapping[str, torch.Tensor], unexpected: Iterable[str], allowed: Sequence[str], folder: Path
) -> tuple[str, ...]:
    """Refuse a model that is not what its checkpoint stores; the names that were left out as ``allowed`` patterns say.

    ``stored`` are the tensors that must be in memory as they are stored, ``unexpected`` what transformers did not take.
    Raises CheckpointError (load_failed) with their names.
    """
    left = sorted({*unexpected, *_not_in_memory(model, stored)})
    later = _layers_of_later_tokens(model.config.get_text_config(), left)
    left = [name for name in left if not name.startswith(later) and not _is_harmless(name, stored.get(name), model)]
    passed = tuple(name for name in left if any(fnmatchcase(name, pattern) for pattern in allowed))
    if refused := [name for name in left if name not in passed]:
        raise CheckpointError(
            f"{folder} holds {counted(len(refused), 'tensor')} that {type(model).__name__} of its config.json does "
            f"not take as they are stored: {shown(refused)}; what would be scored is another model than was saved: "
            "take config and weights from one checkpoint, or, where you know that they change nothing, set "
            f"scoring.allow_unused=['{refused[0]}']",
            "load_failed",
        )
    if passed:
        words = "%d stored tensors are not taken by %s, as scoring.allow_unused says: %s"
        logger.warning(words, len(passed), type(model).__name__, shown(passed))
    return passed


def refuse_codes_as_numbers(model: Any, read: Mapping[str, torch.Tensor], method: str, folder: Path) -> None:
    """Raise CheckpointError (load_failed) for stored codes that became parameters with nothing stored to scale them,
    and where nothing that is stored is a code.
    """
    if not any(_are_codes(tensor) for tensor in read.values()):
        raise CheckpointError(
            f"{folder} is stored quantised ({method}), as its config.json says, but none of its tensors holds codes: "
            "what it was scored as is not known; take quantization_config out of the config if it is the unquantised "
            "model",
            "load_failed",
        )
    scaled = {name.rpartition(".")[0] for name in read if "scale" in name}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    scaling = getattr(model, "hf_quantizer", None) is not None

    def is_bare(name: str, codes: torch.Tensor) -> bool:
        own = parameters[name]
        return not scaling if _are_codes(own) else _equal(own, codes)

    bare = [
        name
        for name, tensor in read.items()
        if name in parameters and _are_codes(tensor) and name.rpartition(".")[0] not in scaled and is_bare(name, tensor)
    ]
    if bare:
        raise CheckpointError(
            f"{folder} is stored quantised ({method}), as its config.json says, but nothing scales the "
            f"codes in {counted(len(bare), 'tensor')}: {shown(bare)}; take the config that they were published with, "
            "or the unquantised original",
            "load_failed",
        )


def _are_codes(tensor: torch.Tensor) -> bool:
    return is_coded(tensor) or not tensor.is_floating_point()


def shown(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def find_slots(model: Any, stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """Where transformers put each stored tensor, told from the values; None unless the whole model is accounted for.

    A tensor of the same name in the model is the slot; a renamed one (``embed_out.weight`` of GPT-NeoX is
    ``lm_head.weight`` in memory) is found by its values. Converted ones (fused, split, transposed) are not found, and
    neither are two stored tensors that went to one place: whether those stay tied depends on the numbers.
    """
    state = model.state_dict()
    slots = {name: state[name] for name in stored if name in state}
    filled = {slot.data_ptr() for slot in slots.values()}
    if len(filled) < len(slots) or not all(_holds(slot, stored[name]) for name, slot in slots.items()):
        return None
    empty = {slot.data_ptr(): slot for slot in state.values() if slot.data_ptr() not in filled}
    for name in stored.keys() - slots.keys():
        found = [address for address, slot in empty.items() if _holds(slot, stored[name])]
        if len(found) > 1:
            return None
        if found:
            slots[name] = empty.pop(found[0])
    return None if empty else slots


def _not_in_memory(model: Any, stored: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the stored tensors that no tensor in memory equals: by name, converted back, or by value."""
    state = model.state_dict()
    left = [name for name in stored if name not in state or not _holds(state[name], stored[name])]
    if left:
        converted = revert_weight_conversion(model, state)
        left = [name for name in left if name not in converted or not _holds(converted[name], stored[name])]
    return [name for name in left if not any(_holds(slot, stored[name]) for slot in state.values())]


def _holds(slot: torch.Tensor, stored: torch.Tensor) -> bool:
    """Equal in shape and, in the slot's dtype, in values; NaN equals itself."""
    if slot.shape != stored.shape or slot.is_floating_point() != stored.is_floating_point():
        return False
    if slot.ndim and not _equal(slot[:1], stored[:1]):
        return False
    return _equal(slot, stored)


def _equal(slot: torch.Tensor, stored: torch.Tensor) -> bool:
    values = stored.to(slot.device, slot.dtype)
    if torch.equal(slot, values):
        return True
    return slot.is_floating_point() and bool(torch.isclose(slot, values, rtol=0, atol=0, equal_nan=True).all())


def _is_harmless(name: str, tensor: torch.Tensor | None, model: Any) -> bool:
    if not any(re.search(pattern, name) for pattern, _ in HARMLESS):
        return False
    if tensor is not None and name.endswith("inv_freq"):
        return _are_its_frequencies(tensor, model)
    # A mask is a square, its filling a number; a bias is neither.
    return tensor is None or not name.endswith("bias") or tensor.ndim in (0, 4)


def _layers_of_later_tokens(config: Any, names: Iterable[str]) -> tuple[str, ...]:
    """Beginnings of the names of the layers that DeepSeek-V3 and GLM-4 store after the last one, to predict tokens
    after the next: told from the layers of another model by what they alone have.
    """
    last = getattr(config, "num_hidden_layers", None) or 0
    numbers = range(last, last + (getattr(config, "num_nextn_predict_layers", None) or 0))
    found = (re.match(r"(.*\blayers\.(\d+)\.)(eh_proj|enorm|hnorm|shared_head)\.", name) for name in names)
    return tuple({match[1] for match in found if match and int(match[2]) in numbers})


def _are_its_frequencies(stored: torch.Tensor, model: Any) -> bool:
    """Whether stored rotary frequencies are those of the model, up to 16 bits; scaled ones are stored as it happens."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    own = [each for name, each in model.named_buffers() if name.endswith("inv_freq")]
    if rope.get("rope_type", "default") != "default" or not own:
        return True
    values = stored.float()
    alike = [each.float().cpu() for each in own if each.shape == stored.shape]
    return any(torch.allclose(values, each, rtol=0.02, atol=1e-6) for each in alike)
