"""Which tensors of a GGUF file are in memory as they are stored, once they are dequantised."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from klray.checkpoints.gguf import TYPES, GgufFile, Stored

ROPE_FACTORS = "rope_freqs.weight"  # by which Llama 3.1 and later divide their rotary frequencies


def left_out(model: Any, file: GgufFile) -> list[str]:
    """Names of the tensors of a file that are not in memory as they are stored, once they are dequantised.

    A tensor is looked for under the name that the package gguf gives the model's, and must be equal to it, but for what
    llama.cpp is known to change when it converts a model: rows of queries and keys, norms that count from 1, the sign
    and logarithm of a state space's decay, transposed and joined weights.
    """
    gguf = library()
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == file.architecture)
    names = gguf.get_tensor_name_map(architecture, model.config.get_text_config().num_hidden_layers)
    slots: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        for part in _shorter(name):
            stem, dot, suffix = part.rpartition(".")
            found = names.get_name(stem) if suffix in ("weight", "bias") else names.get_name(part)
            if found is not None:
                slots.setdefault(f"{found}{dot}{suffix}" if suffix in ("weight", "bias") else found, tensor)
                break
    body = np.memmap(file.path, mode="r", dtype=np.uint8)
    return [
        each.name
        for each in file.tensors
        if not (
            _are_its_factors(each, body, model)
            if each.name == ROPE_FACTORS
            else _holds(slots.get(each.name), each, body, model.config)
        )
    ]


def _are_its_factors(stored: Stored, body: np.ndarray, model: Any) -> bool:
    """Whether a model's rotary frequencies are those of its base, each divided by what is stored."""
    factors = dequantised(stored, body).astype(np.float64)
    width = 2 * len(factors)
    plain = model.config.rope_parameters["rope_theta"] ** (-np.arange(0, width, 2) / width)
    own = [each.double().cpu().numpy() for name, each in model.named_buffers() if name.endswith("rotary_emb.inv_freq")]
    return bool(own) and all(each.shape == plain.shape and np.allclose(each * factors, plain, 1e-4, 0) for each in own)


def _holds(slot: torch.Tensor | None, stored: Stored, body: np.ndarray, config: Any) -> bool:
    if slot is None:
        return False
    values = dequantised(stored, body)
    for candidate in _changed(values, stored.name, config):
        if candidate.shape != slot.shape:
            continue
        expected = torch.from_numpy(np.array(candidate)).to(slot.device, slot.dtype)
        if torch.equal(slot, expected):
            return True
    return False


def dequantised(stored: Stored, body: np.ndarray) -> np.ndarray:
    """The numbers of a tensor, fp32, by the package gguf."""
    gguf = library()
    kind = gguf.GGMLQuantizationType(stored.kind)
    values: np.ndarray = gguf.dequantize(byte_rows(stored, body), kind).astype(np.float32, copy=False)
    return values.reshape(stored.shape)


def byte_rows(stored: Stored, body: np.ndarray) -> np.ndarray:
    """A tensor of a file of which ``body`` has the bytes: the bytes of a row side by side."""
    _, block, block_bytes = TYPES[stored.kind]
    raw = body[stored.start : stored.start + stored.size_bytes]
    return raw.reshape(*stored.shape[:-1], stored.shape[-1] // block * block_bytes)


def _changed(values: np.ndarray, name: str, config: Any) -> Iterator[np.ndarray]:
    """A stored tensor as it may be in memory, by its architecture."""
    kind = config.model_type
    if kind == "gpt2" and values.ndim == 2 and name.startswith("blk."):
        yield values.T
    elif kind in ("gemma2", "gemma3", "gemma3_text", "nemotron") and name.endswith("norm.weight"):
        yield values - 1
    elif kind in ("llama", "mistral") and re.search(r"\.attn_[qk]\.(weight|bias)$", name):
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        paired = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
        yield paired.swapaxes(1, 2).reshape(values.shape)
    elif kind == "bloom" and "attn_qkv" in name:
        heads = config.n_head
        parts = [each.reshape(heads, each.shape[0] // heads, *each.shape[1:]) for each in np.split(values, 3)]
        yield np.stack(parts, axis=1).reshape(values.shape)
    elif kind == "mamba" and "ssm_conv1d.weight" in name:
        yield values[:, None]
    elif kind == "mamba" and "ssm_a" in name:
        yield np.log(-values)
    else:
        yield values


def _shorter(name: str) -> Iterator[str]:
    """A name in memory, and without the modules that are around it: ``transformer.h.0.ln_1.weight``, ``h.0. ...``."""
    while name:
        yield name
        name = name.partition(".")[2]


def library() -> Any:
    """The package gguf."""
    import gguf  # noqa: PLC0415 - an extra

    return gguf
