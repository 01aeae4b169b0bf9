"""Tiny models with random weights and tokenizers to go with them, for tests: nothing is downloaded."""

from __future__ import annotations

import json
import pydoc_data.topics
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from klray.tiny.family_recipe import FamilyRecipe, Size

VOCABULARY = 320
CONTEXT = 256

# Trained until it has something to lose, for `klray.tiny.family.train_family`: ten seconds on one core, then it is in
# the user's cache.
TRAINED = FamilyRecipe(
    sizes=(Size("0.2m", hidden=64, layers=2, learning_rate=2e-3),),
    seeds=(1,),
    steps=120,
    save_every=60,
    vocabulary=1024,
    bytes_per_domain=200_000,
)


@cache
def byte_level_tokenizer(*, bos: bool = False) -> Any:
    """A byte-level BPE tokenizer of ``VOCABULARY`` entries; with ``bos`` it puts <s> before a text, as Llama's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(pydoc_data.topics.topics.values())[:20], trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<s>" if bos else None
    )


def tokenizer_for(architecture: str) -> Any:
    """The tokenizer that a model of :func:`tiny_model` is used with: those of Llama's kind begin with <s>."""
    return byte_level_tokenizer(bos=architecture in {"llama", "mistral", "gemma2"})


def texts() -> list[str]:
    """Texts of mixed lengths: one token, multi-byte characters, prose, code; never more than ``CONTEXT`` tokens."""
    topics = pydoc_data.topics.topics
    prose = [
        topics[name].strip()[:size] for name, size in (("assert", 300), ("async", 220), ("binary", 90), ("if", 33))
    ]
    return [
        "a",
        *prose,
        "Größe, naïveté, 東京タワー, здравствуй, 🙂🚀",
        "def f(x):\n    return x ** 2  # quadrat\n",
        "東京",
        "x y",
    ]


def tiny_config(architecture: str, *, vocabulary: int = VOCABULARY, width: int = 32, layers: int = 2) -> Any:
    """Config of a tiny model of ``architecture``, a ``model_type`` of transformers."""
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": width // 4,
        "intermediate_size": 2 * width,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 1,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    special: dict[str, dict[str, Any]] = {
        "gpt2": {"n_embd": width, "n_layer": layers, "n_head": 4, "n_positions": CONTEXT},
        "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 24, "final_logit_softcapping": 1.5},
        "mistral": {"sliding_window": 24},
        "cohere": {"logit_scale": 0.25},
        "granite": {"logits_scaling": 3.0},
        "hyperclovax": {"logits_scaling": 3.0},
        "mpt": {
            "max_position_embeddings": None,
            "max_seq_len": CONTEXT,
            "d_model": width,
            "n_layers": layers,
            "n_heads": 4,
        },
        "bloom": {"max_position_embeddings": None},
        "opt": {"ffn_dim": 2 * width, "word_embed_proj_dim": width // 2},
        "mamba": {"state_size": 4, "time_step_rank": 4, "max_position_embeddings": None},
        "recurrent_gemma": {"logits_soft_cap": 1.5, "attention_window_size": 24, "lru_width": width},
        "phi3": {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 64,
                "short_factor": [1.0] * (width // 8),
                "long_factor": [4.0] * (width // 8),
            },
        },
        "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
        "bert": {"is_decoder": False},
    }
    given = {**sizes, **special.get(architecture, {})}
    return transformers.AutoConfig.for_model(architecture, **{k: v for k, v in given.items() if v is not None})


def tiny_model(architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: int) -> Any:
    """A model of ``architecture`` with random weights, in eval mode; the global random state is left as it was.

    Weights are five times the usual initial ones, so that its predictions are far from uniform.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(tiny_config(architecture, **sizes))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(5)
    return model.to(dtype).eval()


def save_checkpoint(directory: Path, architecture: str = "gpt_neox", *, seed: int = 0, **sizes: int) -> Path:
    """Save a tiny model and its tokenizer as a checkpoint's folder, and return it."""
    tiny_model(architecture, seed=seed, dtype=torch.float32, **sizes).save_pretrained(directory)
    tokenizer_for(architecture).save_pretrained(directory)
    return directory


def as_pickle(folder: Path) -> Path:
    """A checkpoint with its weights in a pickle."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def with_other_config(folder: Path, **entries: Any) -> Path:
    """A checkpoint whose config has other entries."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))
    return folder


def parameters(model: Any) -> dict[str, bytes]:
    """Bytes of all that a model saves, in fp32, by name."""
    return {name: tensor.float().numpy().tobytes() for name, tensor in model.state_dict().items()}


def shard(folder: Path, model: Any) -> Path:
    """Store a folder's weights in shards."""
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder
