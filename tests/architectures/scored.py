"""What klray gives for a checkpoint of an architecture, against the definition."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from klray.errors import CheckpointError
from klray.likelihood import loading
from klray.likelihood.score import score
from klray.likelihood.tokenizer import load_tokenizer
from klray.likelihood.tokens import Tokens, encode
from tests import tiny_models
from tests.architectures.tiny import Architecture

NATS = 1e-3
BUDGET = 200  # tokens: several batches, some of several rows


@dataclass(frozen=True)
class Scored:
    """Of two checkpoints that differ in numbers alone, one after the other."""

    error: float | None  # nats, the largest of both; None where one was refused
    head: str = ""
    in_place: bool = False  # the other's numbers went into the first one's model
    refusal: str = ""

    @property
    def is_right(self) -> bool:
        """Equal to the definition, or refused."""
        return bool(self.refusal) if self.error is None else self.error < NATS


def definition(model: Any, tokens: Tokens, dtype: torch.dtype) -> np.ndarray:
    """One text per forward pass, log-softmax in float64, model in ``dtype``."""
    exact = model.to(dtype)
    if hasattr(exact, "set_experts_implementation"):
        exact.set_experts_implementation("eager")  # grouped products have no float64
    values = []
    for ids in tokens:
        if len(ids) < 2:
            values.append(0.0)
            continue
        row = torch.tensor(ids[None], dtype=torch.int64)
        with torch.no_grad():
            logits = exact(input_ids=row, use_cache=False).logits[0, :-1].double()
        values.append(logits.log_softmax(-1).gather(1, row[0, 1:, None]).sum().item())
    return np.array(values)


def scored(architecture: Architecture, folder: Path) -> Scored:
    """Save two checkpoints, load and score both as a worker does, and compare."""
    texts = tiny_models.texts()
    loaded, first, error = None, None, 0.0
    for seed in (1, 2):
        directory = folder / str(seed)
        architecture.model(seed).save_pretrained(directory)
        tiny_models.byte_level_tokenizer().save_pretrained(directory)
        try:
            loaded = loading.load(directory, reuse=loaded)
            tokens = encode(load_tokenizer(directory), texts)
            found = score(loaded.model, tokens, tokens_per_batch=BUDGET)
        except CheckpointError as refusal:
            return Scored(None, refusal=f"{refusal.reason}: {refusal.message.replace(str(directory), 'it')}")
        expected = definition(architecture.model(seed), tokens, architecture.exact)
        error = max(error, float(np.abs(found.values - expected).max()))
        first = first or loaded
    return Scored(error, found.head, loaded is first)
