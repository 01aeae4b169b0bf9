"""Lenses: what a model's head would say after each of its layers.

The logit lens sends every layer's hidden state through the model's own way to the head (arXiv 2505.15353: hidden state
0 is the embedding output, the last one uses the model's own logits, the others pass the final norm and the
unembedding). The tuned lens (arXiv 2303.08112) first moves it by an affine map of its layer: h + A h + b.

Shape suffixes: N texts (rows of a batch), T tokens, D width of the hidden states; L layers of the model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from klray.errors import CheckpointError
from klray.likelihood.choices import LOGIT
from klray.likelihood.lens.structure import find_layers
from klray.likelihood.lens.translators import Translators
from klray.likelihood.score import score
from klray.likelihood.tokens import encode


@dataclass(frozen=True, eq=False)
class Lens:
    """A logit lens, or with ``translators`` a tuned one."""

    translators: Translators | None = None  # affine maps of the L layers before the last; None: the logit lens
    norm: str | None = None  # path to the model's final norm, where it cannot be found: see ``find_layers``

    @property
    def name(self) -> str:
        """What a column's identity says of it: "logit", or "tuned-" and 8 hex digits of the fingerprint."""
        return LOGIT if self.translators is None else f"tuned-{self.translators.fingerprint[:8]}"

    def reader(self, model: Any, probe_T: torch.Tensor) -> Callable[[torch.Tensor], Iterator[torch.Tensor]]:
        """A function from rows of token ids (N, T) to what the head reads for layers 0 to L, each (N, T, D).

        All layers come from one forward pass; each is moved and normed when it is asked for, so that of what the lens
        adds one layer is in memory at a time. The last is the model's own. To be called without gradients.

        Raises CheckpointError (load_failed) if the model's layers or final norm were not found, or the translators are
        those of a model with another number of layers or another width.
        """
        layers = find_layers(model, probe_T, self.norm)
        translators = self.translators
        if translators is not None:
            before = layers.states(probe_T[None]).before
            translators.check(type(model).__name__, len(before), before[0].shape[-1])
            translators = translators.to(before[0].device)

        def read(ids_NT: torch.Tensor) -> Iterator[torch.Tensor]:
            states = layers.states(ids_NT)
            for layer, hidden_NTD in enumerate(states.before):
                yield layers.to_head(hidden_NTD if translators is None else translators.apply(layer, hidden_NTD))
            yield states.last

        return read


def layer_log_likelihood(
    model: Any,
    tokenizer: Callable[..., Any],
    texts: Sequence[str],
    *,
    lens: Lens | None = None,
    tokens_per_batch: int | None = None,
) -> np.ndarray:
    """Log-likelihood of each text after each layer, (L + 1, N) float64 in nats, in the forward passes of a plain score.

    Row 0 is the embedding output, row L what :func:`klray.log_likelihood` gives, whose arguments these are; ``lens``
    None is the logit lens. The model must be one of transformers.

    Raises CheckpointError as :func:`klray.log_likelihood`, and load_failed for a model that no lens can read.
    """
    scored = score(model, encode(tokenizer, texts), tokens_per_batch=tokens_per_batch, lens=lens or Lens())
    if scored.layers is None:
        raise CheckpointError("there is no text of two tokens or more: a lens has nothing to read", "load_failed")
    return scored.layers
