"""GGUF files of tiny models, written with the package gguf as llama.cpp converts them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

from tests.tiny_models import CONTEXT, VOCABULARY, tokenizer_for

F32, F16, Q4_0, Q8_0 = (gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "Q4_0", "Q8_0"))
# How the classes of transformers are made so that GGUF can say all of them.
MADE: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    },
    "qwen2": {},
    "qwen3": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT},
    "phi3": {"original_max_position_embeddings": CONTEXT, "sliding_window": 24},
    "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 24},
    "gemma3": {"query_pre_attn_scalar": 8, "sliding_window": 24, "model_type": "gemma3_text"},
    "starcoder2": {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
    "stablelm": {
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        "hidden_size": 64,
        "head_dim": None,
    },
    "bloom": {"max_position_embeddings": None, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {"multi_query": True, "new_decoder_architecture": False, "alibi": False, "bias": False, "head_dim": None},
    "mamba": {
        "state_size": 4,
        "time_step_rank": 4,
        "max_position_embeddings": None,
        "intermediate_size": 64,
        "expand": 2,
    },
    "nemotron": {},
}


def named(architecture: str) -> str:
    """What llama.cpp calls an architecture: two kinds of Llama have one name."""
    return "llama" if architecture == "llama3" else architecture


def model_of(architecture: str, seed: int = 0) -> Any:
    """A tiny model of an architecture as llama.cpp calls it, its matrices rounded to fp16."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 1,
        "eos_token_id": 0,
        "pad_token_id": 0,
        **MADE[architecture],
    }
    kind = sizes.pop("model_type", named(architecture))
    config = transformers.AutoConfig.for_model(kind, **{key: each for key, each in sizes.items() if each is not None})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.copy_((parameter * 5).half())
                elif parameter.ndim == 1:
                    parameter.add_(0.1 * torch.rand_like(parameter))
    return model.eval()


def save_both(folder: Path, architecture: str, kind: Any = F16) -> tuple[Path, Path]:
    """A model's folder with safetensors, and its GGUF file elsewhere."""
    model, tokenizer = model_of(architecture), tokenizer_for("llama")
    plain = folder / "plain"
    model.save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    (folder / "gguf").mkdir()
    return plain, write(folder / "gguf" / f"tiny-{kind.name}.gguf", model, tokenizer, named(architecture), kind)


def write(path: Path, model: Any, tokenizer: Any, architecture: str, kind: Any = F16, **more: Any) -> Path:
    """Write a model and its tokenizer; ``more`` are metadata instead of these, None for none."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**metadata(model.config, architecture), **vocabulary(tokenizer), **more}.items():
        add(writer, key, value)
    for name, values in tensors(model, architecture):
        if values.ndim < 2 or kind is F32:
            writer.add_tensor(name, values.astype(np.float32))
        elif kind is F16:
            writer.add_tensor(name, values.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quantize(values.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: Any, key: str, value: Any) -> None:
    """Add an entry of the metadata by its type in Python."""
    if value is None or key == "general.architecture":
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def metadata(config: Any, architecture: str) -> dict[str, Any]:
    """What llama.cpp's conversion says of a model."""
    found: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "context_length": CONTEXT,
    }
    epsilon = next(
        getattr(config, name)
        for name in ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")
        if hasattr(config, name)
    )
    rms = hasattr(config, "rms_norm_eps") or architecture == "mamba"
    found[f"attention.layer_norm{'_rms' if rms else ''}_epsilon"] = epsilon
    if architecture == "mamba":
        ssm = {"conv_kernel": config.conv_kernel, "inner_size": 64, "state_size": 4, "time_step_rank": 4}
        found |= {
            "feed_forward_length": 0,
            "attention.head_count": 0,
            **{f"ssm.{key}": each for key, each in ssm.items()},
        }
    else:
        found |= {
            "feed_forward_length": 4 * 32 if architecture in ("gpt2", "bloom", "falcon") else 64,
            "attention.head_count": 4,
        }
        found["vocab_size"] = VOCABULARY
    if architecture not in ("mamba", "gpt2", "bloom"):
        found["attention.head_count_kv"] = 1 if architecture == "falcon" else getattr(config, "num_key_value_heads", 4)
        rope = config.rope_parameters
        rope = rope.get("full_attention", rope)
        head = config.hidden_size // 4 if architecture == "stablelm" else 8
        found["rope.freq_base"] = float(rope["rope_theta"])
        found["rope.dimension_count"] = int(head * rope.get("partial_rotary_factor", 1.0))
    if architecture in ("gemma2", "gemma3", "qwen3"):
        found |= {"attention.key_length": 8, "attention.value_length": 8}
    if architecture in ("gemma2", "gemma3", "phi3"):
        found["attention.sliding_window"] = config.sliding_window
    if architecture == "gemma2":
        found |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    return {
        "general.name": "tiny",
        "general.type": "model",
        **{f"{architecture}.{key}": each for key, each in found.items()},
    }


def vocabulary(tokenizer: Any) -> dict[str, Any]:
    """What llama.cpp's conversion says of a byte-level tokenizer."""
    pipeline = tokenizer.backend_tokenizer
    model = json.loads(pipeline.to_str())["model"]
    tokens = [pipeline.id_to_token(number) for number in range(pipeline.get_vocab_size())]
    merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if each in ("<s>", "<|endoftext|>") else 1 for each in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": tokenizer("a")["input_ids"][0] == 1,
    }


def tensors(model: Any, architecture: str) -> Iterator[tuple[str, np.ndarray]]:
    """A model's tensors as llama.cpp's conversion names and changes them."""
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, model.config.num_hidden_layers)
    config, tied = model.config, {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        if name == "model.norm.weight" and getattr(config, "rope_parameters", {}).get("rope_type") == "llama3":
            plain = 500000.0 ** (-np.arange(0, 8, 2) / 8)
            yield "rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
        found = names.get_name(name, try_suffixes=(".weight", ".bias")) or names.get_name(
            name.removeprefix("transformer."), try_suffixes=(".weight", ".bias")
        )
        assert found, name
        values = tensor.float().numpy()
        if architecture == "llama" and found.endswith(("attn_q.weight", "attn_k.weight")):
            heads = 4 if "attn_q" in found else 2
            values = values.reshape(heads, 2, len(values) // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)
        elif architecture == "gpt2" and found.startswith("blk.") and values.ndim == 2:
            values = values.T
        elif architecture in ("gemma2", "gemma3", "nemotron") and found.endswith("norm.weight"):
            values = values + 1
        elif architecture == "bloom" and "attn_qkv" in found:
            parts = values.reshape(config.n_head, 3, 8, *values.shape[1:])
            values = np.concatenate([parts[:, each].reshape(32, *values.shape[1:]) for each in range(3)])
        elif architecture == "mamba" and found.endswith("ssm_conv1d.weight"):
            values = values[:, 0]
        elif architecture == "mamba" and found.endswith("ssm_a"):
            values = -np.exp(values)
        yield found, np.ascontiguousarray(values)
