"""What of a model is quantised once it is loaded: counted, and refused where the name would be a false one."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from klray.checkpoints.causes import first_line, is_out_of_memory
from klray.errors import CheckpointError
from klray.likelihood.quantization import Dequantized
from klray.likelihood.taken import shown
from klray.words.outside import printable

logger = logging.getLogger("klray")

_BITS_4 = 4 + 32 / 64  # a scale in fp32 for 64 weights
_LEAST_SHARE = 0.5
_USUALLY_LEFT = re.compile(r"(^|[._])(gate|router|conv\w*)\.(\w+\.)?weight$")  # of experts, and before state spaces
_PROBE_TOKENS = 8


@dataclass(frozen=True)
class Counted:
    """How a model's parameters are kept."""

    bits_per_parameter: float  # scales included
    share: float  # of the weights of layers, embeddings and output head apart, that are quantised
    left: tuple[str, ...]  # names of those that are not, the largest first


def count(model: Any) -> Counted:
    """Bits and share of what is quantised by bitsandbytes."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    bits = parameters = quantised = 0.0
    left: dict[str, int] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, tensor in module._parameters.items():
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            entries, bits_each = _entries(module, name, tensor)
            parameters += entries
            bits += entries * bits_each
            if name == "weight" and _is_quantised(module):
                quantised += entries
            elif tensor.ndim >= 2 and module is not head and not isinstance(module, nn.Embedding):
                left[f"{path}.{name}"] = entries
    layers = quantised + sum(left.values())
    return Counted(
        bits_per_parameter=bits / max(1.0, parameters),
        share=quantised / max(1.0, layers),
        left=tuple(sorted(left, key=lambda each: (-left[each], each))),
    )


def refuse_mostly_left(model: Any, name: str, counted: Counted) -> None:
    """Raise CheckpointError (load_failed) for a model of which most weights stayed as they were; warn of fewer."""
    if counted.share < _LEAST_SHARE:
        raise CheckpointError(
            f"{type(model).__name__} keeps {1 - counted.share:.0%} of the weights of its layers as they were "
            f"({shown(counted.left)}): bitsandbytes quantises linear layers alone, no experts that are one parameter "
            f"and no state-space layers, so that it would be called {name} and be none; score it with "
            "scoring.quantization=none",
            "load_failed",
        )
    if left := [each for each in counted.left if not _USUALLY_LEFT.search(each)]:
        words = "%s is %s in %.0f%% of the weights of its layers; %d parameters stay as they were: %s"
        logger.warning(words, type(model).__name__, name, 100 * counted.share, len(left), shown(left))


def refuse_read(model: Any) -> None:
    """Raise CheckpointError (load_failed) for a model whose own code reads a weight that was quantised.

    It would take its codes for numbers. One short forward pass tells; to be called in eval mode.
    """
    try:
        with _watched(model) as read, torch.no_grad():
            model(input_ids=torch.arange(_PROBE_TOKENS, device=next(model.parameters()).device)[None], use_cache=False)
        what = f"reads {shown(sorted(read))}" if read else ""
    except Exception as error:
        if is_out_of_memory(error):
            raise
        what = f"fails ({type(error).__name__}: {printable(first_line(error))})"
    if what:
        raise CheckpointError(
            f"{type(model).__name__} cannot be scored quantised: its own code {what}, where the weights of its layers "
            "are no longer what it takes them for; score its unquantised original with scoring.quantization=none",
            "load_failed",
        )


def _is_quantised(module: nn.Module) -> bool:
    return isinstance(module, Dequantized) or type(module).__name__ in ("Linear8bitLt", "Linear4bit")


def _entries(module: nn.Module, name: str, tensor: torch.Tensor) -> tuple[int, float]:
    """Numbers that a parameter holds, and bits of each."""
    if name == "weight" and isinstance(module, Dequantized):
        return tensor.numel(), _BITS_4
    if name == "weight" and type(module).__name__ == "Linear4bit":
        entries = module.in_features * module.out_features  # type: ignore[operator]
        return int(entries), _BITS_4
    if name == "weight" and type(module).__name__ == "Linear8bitLt":
        return tensor.numel(), 8 + 32 / tensor.shape[-1]  # a scale in fp32 for a row
    return tensor.numel(), 8.0 * tensor.element_size()


@contextmanager
def _watched(model: Any) -> Iterator[set[str]]:
    """Names of the quantised weights that something reads inside, but their own layers."""
    read: set[str] = set()
    running: set[int] = set()
    hooks, classes = [], {}

    def watching(kind: type[nn.Module], path: str) -> type[nn.Module]:
        def getattr_(module: nn.Module, name: str) -> Any:
            if name == "weight" and id(module) not in running:
                read.add(f"{path}.weight")
            return kind.__getattr__(module, name)

        return type(kind.__name__, (kind,), {"__getattr__": getattr_})

    for path, module in model.named_modules():
        if _is_quantised(module):
            classes[module] = type(module)
            hooks.append(module.register_forward_pre_hook(lambda each, _: running.add(id(each))))
            hooks.append(module.register_forward_hook(lambda each, *_: running.discard(id(each))))
            module.__class__ = watching(type(module), path)
    try:
        yield read
    finally:
        for module, kind in classes.items():
            module.__class__ = kind
        for hook in hooks:
            hook.remove()
