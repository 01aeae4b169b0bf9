"""A training run as a hub would hold it: checkpoints of Pythia-14m's shape in fp16, of random weights, and a tokenizer.

Sweeps are measured on it: 28 MB a checkpoint (safetensors, one file), 50,304 entries, 1.2 million other parameters.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from klray import texts
from klray.tiny.tokenizer import CONFIG, train_tokenizer

REPOSITORY = "bench/pythia-14m"
VOCABULARY = 50_304
CONTEXT = 2048


def write_run(root: Path, n_checkpoints: int) -> Path:
    """Lay out the run below a hub's folder ``root``, revisions step0, step1, ...; returns ``root``."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=CONTEXT,
    )
    first = root / REPOSITORY / "step0"
    GPTNeoXForCausalLM(config).half().save_pretrained(first)
    tokenizer = train_tokenizer([document.text for document in texts.stdlib_documents("train")][:200], 8192)
    tokenizer.add_tokens([f"<|unused{number}|>" for number in range(VOCABULARY - tokenizer.get_vocab_size() - 27)])
    tokenizer.save(str(first / "tokenizer.json"))
    (first / "tokenizer_config.json").write_text(json.dumps({**CONFIG, "model_max_length": CONTEXT}))
    weights = load_file(first / "model.safetensors")
    for step in range(1, n_checkpoints):
        folder = root / REPOSITORY / f"step{step}"
        shutil.copytree(first, folder)
        moved = {name: value + 1e-3 * torch.randn(value.shape).half() for name, value in weights.items()}
        save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return root
