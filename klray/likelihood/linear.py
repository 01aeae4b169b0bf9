"""Linear layers on a CPU: in fp32 through oneDNN where that is faster, in fp16 through fp32 where a CPU has no fp16.

PyTorch gives fp32 products on x86 to Intel's MKL and only 16-bit ones to oneDNN. On AMD's EPYC (Zen 4) oneDNN is 5 to
10 % faster (1,024 tokens, width 512 to 768), and as exact; on Intel's Xeon (Sapphire Rapids) it is 4 to 14 % slower.

Products of fp16 numbers are exact in fp32. Summed there and rounded once they are as exact as PyTorch's fp16 products,
which took four times as long on Zen 4 (1,024 tokens, width 576 to 1,536).
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

_PLAIN = (torch.Tensor, nn.Parameter)  # a subclass may be quantised, or spread over devices
_ROWS = 2048  # of an fp16 weight that are widened at a time


def linear(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As ``torch.nn.functional.linear``, without gradients; equal up to rounding."""
    if (
        weight.device.type == values.device.type == "cpu"
        and type(weight) in _PLAIN
        and values.numel()
        and not torch.is_grad_enabled()
    ):
        if weight.dtype == values.dtype == torch.float16 and _lacks_fp16():
            return _widened(values, weight, bias)
        if weight.dtype == values.dtype == torch.float32 and not _is_intel() and (product := _onednn()) is not None:
            return product(values, weight, bias, "none", [], "")
    return F.linear(values, weight, bias)


def _widened(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    wide = values.float()
    found = values.new_empty(*values.shape[:-1], len(weight))
    for first in range(0, len(weight), _ROWS):
        rows = slice(first, first + _ROWS)
        found[..., rows] = linear(wide, weight[rows].float(), None if bias is None else bias[rows].float())
    return found


@cache
def _lacks_fp16() -> bool:
    """Whether this is an x86 without instructions for fp16 numbers."""
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:  # not on Linux: PyTorch's own way
        return False
    return "avx2" in flags and "avx512_fp16" not in flags and "amx_fp16" not in flags


@cache
def _is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:  # not on Linux: Macs have no MKL, and most others are Intel's
        return True


@cache
def _onednn() -> Any:
    """PyTorch's operator, the one that its compiler calls; None where it is not, or where MKL is not the other way."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return None
    return getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)
