"""The model in a GGUF file, made by transformers' own loader: only where all that the file says is taken up.

transformers (5.23) passes over metadata and tensors that it does not know, and takes what a file does not say from the
defaults of a class. So each key of the architecture is held against the config that came of it, and each tensor
against the model in memory.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import modeling_gguf_pytorch_utils

from klray.checkpoints.gguf import TYPES, Array, GgufFile, read_gguf
from klray.checkpoints.soundness import fault_of
from klray.errors import CheckpointError, needed
from klray.likelihood import plausible
from klray.likelihood.gguf_header import known
from klray.likelihood.gguf_taken import ROPE_FACTORS, dequantised
from klray.words.outside import printable

# Architectures of llama.cpp that were held against the same weights in safetensors: tests/test_gguf.py.
ARCHITECTURES = (
    "llama",
    "qwen2",
    "qwen3",
    "gpt2",
    "phi3",
    "gemma2",
    "gemma3",
    "starcoder2",
    "stablelm",
    "bloom",
    "falcon",
    "mamba",
    "nemotron",
)
# Keys that begin with these it takes from any file.
_FRONTS = {*modeling_gguf_pytorch_utils.GGUF_SUPPORTED_ARCHITECTURES} - {"general", "tokenizer"}
_CLOSE = 1e-6  # relative, of numbers that a file has in fp32
_ROPE_BASE = 10_000.0  # where a file says none, as in llama.cpp
_NEEDED = ("block_count", "embedding_length", "attention.head_count")
_GEMMA = {"gemma2": 46, "gemma3_text": 62}  # layers of those that scale attention by another width, as in llama.cpp
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")

NAME = "model.gguf"  # in the folder that the loader is given

Told = Callable[[Any], Any]


def lacks_gguf() -> str:
    """What to do about a missing library without which no GGUF file is read; "" if all are there."""
    return needed("a GGUF file", "gguf", "accelerate")


@contextmanager
def alone(file: Path) -> Iterator[Path]:
    """A folder with nothing but the file in it, under another name: transformers looks at what lies beside it."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / NAME).symlink_to(file.resolve())
        yield Path(place)


def open_gguf(place: Path) -> GgufFile:
    """The header of a GGUF file that can be a model here, looked at before a library reads it.

    Raises CheckpointError (load_failed): it is not sound, is no whole model, is of an architecture that klray has not
    held against the same weights in another format, or counts what it does not hold.
    """
    try:
        file = read_gguf(place)
    except ValueError as error:
        raise CheckpointError(f"{place} {fault_of(place) or error}", "load_failed") from error
    if lacking := lacks_gguf():
        raise CheckpointError(f"{place}: {lacking}", "load_failed")
    kind = file.metadata.get("general.type", "model")
    if kind != "model" or file.metadata.get("split.count", 0) not in (0, 1):
        what = printable(str(kind)) if kind != "model" else "one of several parts of a model"
        raise CheckpointError(f"{place} is no whole model but {what}: choose a file that holds one", "load_failed")
    if file.architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{place} is of the architecture {printable(file.architecture)!r}, and of GGUF files klray reads "
            f"{', '.join(ARCHITECTURES)}, which it has held against the same weights in safetensors: score the model's "
            "safetensors",
            "load_failed",
        )
    others = _FRONTS - {file.architecture}
    if foreign := [key for key in file.metadata if key.partition(".")[0] in others]:
        raise CheckpointError(
            f"{place} says {printable(foreign[0])}, and is of the architecture {file.architecture}: take another file",
            "load_failed",
        )
    own = _own(file)
    if unsaid := [key for key in _NEEDED if key not in own and file.architecture != "mamba"]:
        raise CheckpointError(f"{place} does not say {file.architecture}.{unsaid[0]}: convert it anew", "load_failed")
    for key, value in own.items():
        for number in file.items(f"{file.architecture}.{key}") if isinstance(value, Array) else (value,):
            most = len(file.tensors) if key == "block_count" else 1 << 31
            if isinstance(number, int | float) and not 0 <= number <= most:
                raise CheckpointError(
                    f"{place} says {file.architecture}.{printable(key)}={number}, which cannot be: take another file",
                    "load_failed",
                )
    plausible.check_config(place, _counts(own), len(file.tensors))
    return file


def shape_of(place: Path) -> tuple[int, int, int]:
    """Layers, width of the hidden states and vocabulary entries of the model in a GGUF file. CheckpointError."""
    file = open_gguf(place)
    own = _own(file)
    vocabulary = next((each.shape[0] for each in file.tensors if each.name == "token_embd.weight"), 0)
    return int(own["block_count"]), int(own["embedding_length"]), vocabulary


def build(file: GgufFile, dtype: str, device: str | torch.device) -> Any:
    """The model of a file that ``open_gguf`` found sound, its weights dequantised, of ``dtype``; "auto" for the file's.

    Raises CheckpointError (load_failed): the file says of the model what transformers does not take up, or asks for
    more weights than it can hold; a weight is missing or of another shape.
    """
    with alone(file.path) as folder, known(folder / NAME, file):
        config = transformers.AutoConfig.from_pretrained(folder, gguf_file=NAME, local_files_only=True)
        _settle(config, file)
        _check_config(config, file)
        plausible.check_size(file.path, config, file.path.stat().st_size)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=NAME,
            config=config,
            dtype=_dtype_of(file) if dtype == "auto" else getattr(torch, dtype),
            quantization_config=transformers.GgufConfig(dequantize=True),
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **({"device_map": "auto"} if device == "auto" else {}),
        )
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    lost = sorted({each[0] for each in info["mismatched_keys"]} | (parameters & set(info["missing_keys"])))
    if lost:
        raise CheckpointError(
            f"{file.path} lacks {len(lost)} of the weights of {type(model).__name__}, or has them in other shapes: "
            f"{', '.join(lost[:5])}{', ...' if len(lost) > 5 else ''}; they would be random: take another file",
            "load_failed",
        )
    return model if device == "auto" else model.to(device)


def _dtype_of(file: GgufFile) -> torch.dtype:
    """The floats of a file, of its norms apart; fp32 where it is quantised."""
    kinds = {TYPES[each.kind][0] for each in file.tensors if len(each.shape) > 1}
    return torch.bfloat16 if kinds == {"BF16"} else torch.float16 if kinds == {"F16"} else torch.float32


def quantised_again(model: Any, options: Mapping[str, Any], dtype: str | torch.dtype, device: Any) -> Any:
    """The same model quantised by bitsandbytes, with ``options`` of its config."""
    made: Any = type(model).from_pretrained(
        None,
        config=model.config,
        state_dict=model.state_dict(),
        dtype=dtype,
        quantization_config=transformers.BitsAndBytesConfig(**options),
        device_map={"": device},
    )
    return made


def _own(file: GgufFile) -> dict[str, Any]:
    """What the metadata say of the architecture, without its name in front."""
    front = f"{file.architecture}."
    return {key.removeprefix(front): value for key, value in file.metadata.items() if key.startswith(front)}


def _counts(own: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of layers and heads under the names that configs have for them."""
    names = {"block_count": "num_hidden_layers", "attention.head_count": "num_attention_heads"}
    names |= {"attention.head_count_kv": "num_key_value_heads", "expert_count": "num_experts"}
    return {names[key]: value for key, value in own.items() if key in names}


def _settle(config: Any, file: GgufFile) -> None:
    """What a file says and transformers' loader leaves at the default of a class."""
    own = _own(file)
    plausible.keep_built_in(config)
    if config.model_type == "gpt2":
        config.n_positions = own.get("context_length", config.n_positions)
        if own.get("feed_forward_length") not in (None, 4 * config.n_embd):
            config.n_inner = own["feed_forward_length"]
    if config.model_type in ("mistral", "phi3"):
        config.sliding_window = own.get("attention.sliding_window") or None
    if "attention.key_length" in own and getattr(config, "head_dim", None):
        config.head_dim = own["attention.key_length"]
    if config.model_type == "starcoder2" and "rope.freq_base" in own:
        config.rope_parameters["rope_theta"] = own["rope.freq_base"]
    if config.model_type == "llama" and (scaled := [each for each in file.tensors if each.name == ROPE_FACTORS]):
        # Llama 3.1 and later; whether the rest of its scaling is Llama's own is seen when the factors are compared
        values = dequantised(scaled[0], np.memmap(file.path, mode="r", dtype=np.uint8))
        config.rope_parameters |= {"rope_type": "llama3", "factor": float(values.max()), **_LLAMA3}
    if config.model_type in _GEMMA:
        large = own.get("block_count") == _GEMMA[config.model_type]
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if large else _head(config)


def _check_config(config: Any, file: GgufFile) -> None:
    """Raise CheckpointError (load_failed) where the config is not what the file says."""
    own = _own(file)
    for key, value in own.items():
        value = file.items(f"{file.architecture}.{key}") if isinstance(value, Array) else value
        told = _TOLD.get(key)
        if key == "rope.scaling.type" and value == "none":
            continue
        taken = told(config) if told else None
        if taken is _ANYTHING:
            continue
        if told is None or not any(_is(value, each) for each in (taken if isinstance(taken, tuple) else (taken,))):
            became = f"makes of it {taken}" if told else "does not take it up"
            raise CheckpointError(
                f"{file.path} says {file.architecture}.{printable(key)}={printable(str(value))}, and transformers "
                f"{transformers.__version__} {became}: another model would be scored; score the model's safetensors",
                "load_failed",
            )
    rope = getattr(config, "rope_parameters", None)
    base = _rope_base(config)
    if rope and "rope.dimension_count" not in own and _rotary(config) != _head(config):
        raise CheckpointError(
            f"{file.path} does not say {file.architecture}.rope.dimension_count, which is {_head(config)} then, and "
            f"transformers takes {_rotary(config)}: score the model's safetensors",
            "load_failed",
        )
    if rope and "rope.freq_base" not in own and not any(_is(_ROPE_BASE, each) for each in base):
        raise CheckpointError(
            f"{file.path} does not say {file.architecture}.rope.freq_base, which is {_ROPE_BASE:g} then, and "
            f"transformers takes {base[0]}: score the model's safetensors",
            "load_failed",
        )
    if not any(key in own for key in _EPSILONS):
        raise CheckpointError(f"{file.path} does not say the epsilon of its norms: convert it anew", "load_failed")


def _is(said: Any, taken: Any) -> bool:
    if isinstance(said, list | tuple) and said and not isinstance(taken, list | tuple):
        return all(_is(each, taken) for each in said)
    if isinstance(said, bool) or isinstance(taken, bool):
        return bool(said) == taken
    if isinstance(said, int | float) and isinstance(taken, int | float):
        return math.isclose(said, taken, rel_tol=_CLOSE)
    return bool(said == taken)


def _first(*names: str) -> Told:
    """The first of these that a config has."""
    return lambda config: next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def _head(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rotary(config: Any) -> int:
    """Entries of a head that are rotated."""
    rope = getattr(config, "rope_parameters", None) or {}
    share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    return int(_head(config) * share)


def _rope_base(config: Any) -> tuple[float, ...]:
    """The bases of rotary embeddings, one for each kind of layer: of the full attention first."""
    rope = getattr(config, "rope_parameters", None) or {}
    of_kinds = [rope[kind] for kind in ("full_attention", "sliding_attention") if isinstance(rope.get(kind), dict)]
    return tuple(each.get("rope_theta") for each in (of_kinds or [rope]) if each.get("rope_theta") is not None)


def _inner(config: Any) -> Any:
    found = _first("n_inner", "intermediate_size", "ffn_hidden_size")(config)
    return found if found is not None else 4 * config.hidden_size


def _key_heads(config: Any) -> Any:
    if config.model_type == "falcon" and not config.new_decoder_architecture:
        return 1 if config.multi_query else config.num_attention_heads
    return _first("num_key_value_heads", "num_kv_heads", "num_attention_heads")(config)


_ANYTHING: Any = object()
_WITHOUT_POSITIONS = ("bloom", "mamba", "falcon")
_POSITIONS = _first("max_position_embeddings", "n_positions")
_EPSILON = _first("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")
# What a file says of its architecture, and where a config of transformers has it.
_TOLD: Mapping[str, Told] = {
    "block_count": lambda config: config.num_hidden_layers,
    "context_length": lambda config: _ANYTHING if config.model_type in _WITHOUT_POSITIONS else _POSITIONS(config),
    "embedding_length": lambda config: config.hidden_size,
    "feed_forward_length": lambda config: 0 if config.model_type == "mamba" else _inner(config),
    "vocab_size": lambda config: config.vocab_size,
    "attention.head_count": lambda config: getattr(config, "num_attention_heads", 0),
    "attention.head_count_kv": _key_heads,
    "attention.key_length": _head,
    "attention.value_length": _head,
    "attention.layer_norm_rms_epsilon": _EPSILON,
    "attention.layer_norm_epsilon": _EPSILON,
    "attention.causal": lambda config: True,
    "attention.sliding_window": _first("sliding_window"),
    "attn_logit_softcapping": _first("attn_logit_softcapping"),
    "final_logit_softcapping": _first("final_logit_softcapping"),
    "use_parallel_residual": _first("use_parallel_residual", "parallel_attn"),
    "rope.dimension_count": _rotary,
    "rope.freq_base": lambda config: _rope_base(config)[:1],
    "rope.freq_base_swa": lambda config: _rope_base(config)[1:],
    # Of no scaling at all; another one is not taken up
    "rope.scaling.factor": lambda config: 1.0,
    "rope.scaling.attn_factor": lambda config: 1.0,
    "rope.scaling.original_context_length": lambda config: _POSITIONS(config),
    "tensor_data_layout": lambda config: ("Meta AI original pth", "jploski"),
    "ssm.dt_b_c_rms": lambda config: False,
    "ssm.conv_kernel": _first("conv_kernel"),
    "ssm.inner_size": _first("intermediate_size"),
    "ssm.state_size": _first("state_size"),
    "ssm.time_step_rank": _first("time_step_rank"),
}
