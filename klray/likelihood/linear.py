"""Linear layers in fp32 on a CPU that is not Intel's through oneDNN, which comes with PyTorch.

PyTorch gives fp32 products on x86 to Intel's MKL and only 16-bit ones to oneDNN. On AMD's EPYC (Zen 4) oneDNN is 5 to
10 % faster (1,024 tokens, width 512 to 768), and as exact; on Intel's Xeon (Sapphire Rapids) it is 4 to 14 % slower.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

_PLAIN = (torch.Tensor, nn.Parameter)  # a subclass may be quantised, or spread over devices


def linear(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As ``torch.nn.functional.linear``, without gradients; equal up to rounding."""
    if (
        weight.dtype == values.dtype == torch.float32
        and weight.device.type == values.device.type == "cpu"
        and type(weight) in _PLAIN
        and values.numel()
        and not torch.is_grad_enabled()
        and not _is_intel()
        and (product := _onednn()) is not None
    ):
        return product(values, weight, bias, "none", [], "")
    return F.linear(values, weight, bias)


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
