"""Training a tuned lens: the affine map of every layer that brings its predictions nearest to the model's own.

The loss of a layer is the mean over tokens of KL(final logits || lens logits), arXiv 2303.08112; layers do not meet, so
that one forward pass of the model serves them all and one layer's logits are in memory at a time.

Shape suffixes: N texts (rows of a batch), T tokens, M tokens that have a prediction, V vocabulary entries, D width of
the hidden states; L layers.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from klray.errors import CheckpointError, KlrayError
from klray.likelihood.head import OutputHead, find_head
from klray.likelihood.lens.lens import Lens
from klray.likelihood.lens.structure import Layers, find_layers
from klray.likelihood.lens.translators import Translators
from klray.likelihood.score import probe, readable
from klray.likelihood.tokens import Tokens, plan
from klray.measure.settings import LensTraining
from klray.words.numbers import counted

_TOKENS_PER_PASS = 1024


def train_lens(
    model: Any,
    tokens: Tokens,
    training: LensTraining | None = None,
    *,
    norm: str | None = None,
    facts: dict[str, Any] | None = None,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> Lens:
    """A tuned lens for ``model``, whose weights, modes, gradients and random number generators stay as they are.

    ``tokens`` are the texts to train on, apart from those that will be scored; ``norm`` is a dotted path to the final
    norm, where it cannot be found; ``facts`` are kept with the lens beside how it was trained; ``report`` is told each
    step and its loss, in nats per token, the mean over layers.

    Raises CheckpointError as ``readable``, or if klray cannot read the model's layers; KlrayError if it cannot use the
    model's head, no text has a token to predict, or the loss is not finite.
    """
    training = training or LensTraining()
    _check_any(tokens)
    with readable(model, tokens) as device:
        reading = _reading(model, tokens, norm, device)
        translators = Translators.zeros(reading.n_layers, reading.width).to(device)
        weights = [tensor.requires_grad_() for tensor in (translators.matrices_LDD, translators.biases_LD)]
        optimizer = torch.optim.Adam(weights, lr=training.learning_rate)
        for step, texts in enumerate(_steps(tokens, training)):
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate * (1 - step / training.steps)
            gradients = [torch.zeros_like(weight) for weight in weights]
            loss = 0.0
            for ids_NT, kept in _rows(tokens, texts, device):
                own_MV, states = reading.final(ids_NT, kept)
                share = len(own_MV) / int(tokens.counted[texts].sum())
                for layer, hidden_MD in enumerate(states):
                    with torch.enable_grad():
                        moved_MD = translators.apply(layer, hidden_MD)
                        kl = _kl(own_MV, _logits(reading.head, reading.layers.to_head(moved_MD))).mean() * share
                        # of the translators alone: the model's own parameters get no gradient
                        found = torch.autograd.grad(kl, weights)
                    for total, part in zip(gradients, found, strict=True):
                        total += part
                    loss += float(kl) / len(states)
            if not math.isfinite(loss):
                raise KlrayError(
                    f"the loss of the tuned lens of {type(model).__name__} is {loss} at step {step}: the model's "
                    "predictions are not finite, or lens.learning_rate is too high"
                )
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
            report(step + 1, loss)
    how = {**asdict(training), "training_texts": len(tokens), "training_tokens": int(tokens.counted.sum())}
    matrices_LDD, biases_LD = (weight.detach().cpu() for weight in weights)
    return Lens(Translators(matrices_LDD, biases_LD, {**(facts or {}), **how}), norm)


def prediction_kl(model: Any, tokens: Tokens, lens: Lens) -> np.ndarray:
    """KL(final logits || lens logits) of each layer before the last: (L,) float64, nats per token, mean over tokens.

    What :func:`train_lens` minimises, here on any texts; raises as it does, and CheckpointError (non_finite).
    """
    _check_any(tokens)
    with readable(model, tokens) as device:
        reading = _reading(model, tokens, lens.norm, device)
        translators = (lens.translators or Translators.zeros(reading.n_layers, reading.width)).to(device)
        translators.check(type(model).__name__, reading.n_layers, reading.width)
        sums = np.zeros(translators.n_layers)
        for ids_NT, kept in _rows(tokens, np.flatnonzero(tokens.counted), device):
            own_MV, states = reading.final(ids_NT, kept)
            for layer, hidden_MD in enumerate(states):
                logits_MV = _logits(reading.head, reading.layers.to_head(translators.apply(layer, hidden_MD)))
                sums[layer] += float(_kl(own_MV, logits_MV).double().sum())
    if not np.isfinite(sums).all():
        layer = int(np.argmin(np.isfinite(sums)))
        raise CheckpointError(
            f"the KL from the predictions of {type(model).__name__} to those after layer {layer} is not finite: its "
            "weights or its arithmetic overflow; try dtype float32, or leave this checkpoint out",
            "non_finite",
        )
    return sums / int(tokens.counted.sum())


@dataclass(frozen=True, eq=False)
class _Reading:
    """What reads a model's layers and its head."""

    head: OutputHead
    layers: Layers
    n_layers: int
    width: int
    device: torch.device

    def final(self, ids_NT: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Own log-probabilities (M, V) of the ``kept`` positions, and hidden states (M, D) of the layers before."""
        states = self.layers.states(ids_NT)
        own_MD = states.last.flatten(0, 1)[kept]
        before = [hidden_NTD.to(self.device).flatten(0, 1)[kept] for hidden_NTD in states.before]
        return _logits(self.head, own_MD).log_softmax(-1), before


def _check_any(tokens: Tokens) -> None:
    if not tokens.counted.any():
        raise KlrayError(
            f"there is no token to predict in the {counted(len(tokens), 'text')} of the tuned lens: give longer texts"
        )


def _reading(model: Any, tokens: Tokens, norm: str | None, device: torch.device) -> _Reading:
    probe_T = probe(tokens, device)
    head, why = find_head(model, probe_T, int(tokens.lengths.max()))
    if head is None:
        raise KlrayError(
            f"{type(model).__name__} has no output head that klray can use ({why}): "
            "a tuned lens cannot be trained through it"
        )
    layers = find_layers(model, probe_T, norm)
    before = layers.states(probe_T[None]).before
    return _Reading(head, layers, len(before), before[0].shape[-1], device)


def _steps(tokens: Tokens, training: LensTraining) -> Iterator[np.ndarray]:
    """Positions of the texts of each step: in random order, again and again, until a step's tokens are full."""
    generator = np.random.default_rng(training.seed)
    usable = np.flatnonzero(tokens.counted)
    queue: list[int] = []
    for _ in range(training.steps):
        chosen: list[int] = []
        count = 0
        while not chosen or count < training.tokens_per_step:
            if not queue:
                queue = generator.permutation(usable).tolist()
            if chosen and count + int(tokens.counted[queue[-1]]) > training.tokens_per_step:
                break
            chosen.append(queue.pop())
            count += int(tokens.counted[chosen[-1]])
        yield np.array(chosen)


def _rows(tokens: Tokens, texts: np.ndarray, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of each pass, token ids (N, T) padded with each text's last token, and which flat positions have a prediction."""
    for batch in plan(tokens.lengths[texts], _TOKENS_PER_PASS):
        position_NT, predicts_NT = tokens.rows(texts[batch])
        kept = torch.from_numpy(np.flatnonzero(predicts_NT)).to(device)
        yield torch.from_numpy(tokens.ids[position_NT].astype(np.int64)).to(device), kept


def _logits(head: OutputHead, hidden_MD: torch.Tensor) -> torch.Tensor:
    """The head's logits (M, V) in fp32, as a function that gradients can pass: ``OutputHead`` works in place."""
    hidden_MD = hidden_MD.to(head.weight_VD.device).float()
    bias_V = None if head.bias_V is None else head.bias_V.float()
    logits_MV = nn.functional.linear(hidden_MD, head.weight_VD.float(), bias_V) * head.scale
    return logits_MV if head.softcap is None else head.softcap * torch.tanh(logits_MV / head.softcap)


def _kl(own_MV: torch.Tensor, logits_MV: torch.Tensor) -> torch.Tensor:
    """(M,) KL(own || lens) in nats, from log-probabilities and logits; never negative but for rounding."""
    return (own_MV.exp() * (own_MV - logits_MV.log_softmax(-1))).sum(-1)
