"""Quantisation by bitsandbytes: the names, what they mean, and what makes the numbers the same on every machine.

Quantised are the linear layers but the output head; embeddings, norms and head stay in the dtype of the model.

int8
    LLM.int8(): weights and activations in 8 bits, each row with its own scale; columns of activations of which one
    exceeds 6 in the batch are multiplied in fp16.
fp4, nf4
    Weights in 4 bits, 64 of them with one scale, multiplied in fp16 as in arXiv 2505.15353 (which takes fp4); in bf16
    where the model is in bf16, whose range fp16 lacks.
"""

import copy
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers.quantizers import AutoHfQuantizer


def options(name: str, dtype: str) -> dict[str, Any]:
    """Arguments of transformers' BitsAndBytesConfig for one of the names but "none", and a model in ``dtype``."""
    if name == "int8":
        return {"load_in_8bit": True}
    compute = torch.bfloat16 if dtype == "bfloat16" else torch.float16
    return {"load_in_4bit": True, "bnb_4bit_quant_type": name, "bnb_4bit_compute_dtype": compute}


def stored_method(config: Mapping[str, Any]) -> str:
    """How a checkpoint's files are quantised, by its config.json: "bitsandbytes", "gptq", ...; "" if they are not."""
    found = config.get("quantization_config")
    return str(found.get("quant_method") or "unnamed") if isinstance(found, dict) else ""


def is_method_known(config: Mapping[str, Any]) -> bool:
    """Whether a config.json says how its files are quantised, in a way that transformers does not pass over."""
    found = config.get("quantization_config")
    if not isinstance(found, dict):
        return False
    return "quant_method" not in found or AutoHfQuantizer.supports_quant_method(found)


def import_library() -> None:
    """Import bitsandbytes, if it is there, before transformers does: without its remarks, and without foreign code.

    On a CPU with AVX512-BF16 it asks, where the package ``kernels`` is installed, the hub for a compiled kernel and
    loads it. And for each forward pass it says that int8 rounds inputs to fp16, which is what int8 is.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if "bitsandbytes" not in sys.modules:
        with _without("kernels"):
            importlib.import_module("bitsandbytes")


def settle(model: Any) -> None:
    """Let 4-bit layers on a CPU compute what they were told to, on every CPU.

    On one with AVX512-BF16, bitsandbytes (0.50.2) would repack weights, round their scales to bf16 and multiply in bf16
    whatever the compute dtype. And on every CPU it gives weights the scales of others in layers whose input is no
    multiple of 64 wide: there they are dequantised once, right, and kept so.
    """
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "support_avx512bf16_for_cpu") and layer.weight.device.type == "cpu":
            layer.support_avx512bf16_for_cpu = False
            state = layer.weight.quant_state
            if state.shape[-1] % state.blocksize:
                model.set_submodule(name, Dequantized(layer))


class Dequantized(torch.nn.Linear):
    """A 4-bit layer with its weights dequantised, multiplied in the layer's compute dtype as bitsandbytes does."""

    def __init__(self, layer: Any):
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        state = copy.copy(layer.weight.quant_state)
        shape, state.shape = state.shape, torch.Size((1, state.shape.numel()))  # blocks do not stop where rows do
        state.dtype = layer.compute_dtype or state.dtype
        dequantize = importlib.import_module("bitsandbytes.functional").dequantize_4bit
        weight = dequantize(layer.weight.data.reshape(-1, 1), state).reshape(shape)
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        if layer.bias is not None:
            self.bias = torch.nn.Parameter(layer.bias.data.to(weight.dtype), requires_grad=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Product in the compute dtype, in the dtype that it was given."""
        return super().forward(states.to(self.weight.dtype)).to(states.dtype)


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Inside, importing ``package`` fails."""
    there = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        if there is not None:
            sys.modules[package] = there
