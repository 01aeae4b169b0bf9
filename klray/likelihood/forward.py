"""One batch in, the log-probabilities of its tokens out.

Shape suffixes: N texts (rows of a batch), T tokens, M predicted tokens of a batch, V vocabulary entries, D width of the
hidden states.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional as F

from klray.likelihood.head import OutputHead, compute_dtype, hidden_states, own_logits
from klray.likelihood.tokens import Tokens

# Where the model computes its own logits, those of this many tokens at a time are brought to fp32.
_TOKENS_PER_CAST = 256


class LayerReader(Protocol):
    """What :class:`klray.likelihood.lens.Lens` is to this room: how the layers of a model are read for its head."""

    def reader(self, model: Any, probe_T: torch.Tensor) -> Callable[[torch.Tensor], Iterator[torch.Tensor]]:
        """Function from rows of token ids (N, T) to what the head reads for each layer, each (N, T, D), own last."""


@dataclass(frozen=True, eq=False)
class Read:
    """What a model gives for a batch, before the vocabulary comes in."""

    positions: np.ndarray  # (M,) in ``Tokens.ids``, of the tokens that have a prediction
    targets: torch.Tensor  # (M,) their ids
    states: Iterator[torch.Tensor]  # (M, D) for each layer: one, what the head reads, without a lens


@dataclass(frozen=True, eq=False)
class Predicted:
    """Log p of all tokens of a batch that have a prediction, for each layer: one, the model's own, without a lens."""

    positions: np.ndarray  # (M,) in ``Tokens.ids``
    log_probabilities: torch.Tensor  # (layers, M) nats


@dataclass(frozen=True, eq=False)
class Reader:
    """What computes one batch at a time: a model, its head (None: its own logits), and how a lens reads its layers."""

    model: Any
    head: OutputHead | None
    layers: Callable[[torch.Tensor], Iterator[torch.Tensor]] | None
    tokens: Tokens
    ids: torch.Tensor

    def read(self, batch: np.ndarray) -> Read:
        """What a head reads of a batch (N,) of texts, or the model's own logits where there is no head."""
        position_NT, predicts_NT = self.tokens.rows(batch)
        predicted_M = position_NT[predicts_NT] + 1
        ids_NT = self.ids[on_device(position_NT, self.ids.device)]
        targets_M = self.ids[on_device(predicted_M, self.ids.device)]
        if self.head is None:
            return Read(predicted_M, targets_M, iter([own_logits(self.model, ids_NT)[0, :-1]]))
        kept = np.flatnonzero(predicts_NT)
        layers = self.layers(ids_NT) if self.layers is not None else (hidden_states(self.model, ids_NT),)
        flat = (each.flatten(0, 1)[on_device(kept, each.device)] for each in layers)
        return Read(predicted_M, targets_M, flat)

    def predict(self, batch: np.ndarray) -> Predicted:
        """Log-probabilities of the tokens of a batch (N,) of texts, on the device of the head."""
        read = self.read(batch)
        if self.head is None:
            return Predicted(read.positions, _own_log_probabilities(next(read.states), read.targets)[None])
        parts = [self.head.log_probabilities(hidden_MD, read.targets) for hidden_MD in read.states]
        return Predicted(read.positions, torch.stack(parts))


def _own_log_probabilities(logits_MV: torch.Tensor, targets_M: torch.Tensor) -> torch.Tensor:
    """(M,) log p by the model's own logits for one text."""
    pairs = zip(logits_MV.split(_TOKENS_PER_CAST), targets_M.to(logits_MV.device).split(_TOKENS_PER_CAST), strict=True)
    return torch.cat(
        [-F.cross_entropy(logits.to(compute_dtype(logits)), targets, reduction="none") for logits, targets in pairs]
    )


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array as a tensor on ``device``."""
    tensor = torch.from_numpy(array)
    # From pinned memory the copy does not wait for the work queued on the GPU.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
