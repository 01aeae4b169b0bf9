"""Exact KL of next-token distributions, tile by tile of the vocabulary: no logits of all tokens and entries at once.

KL(p || q) = E_p[z_p - z_q] - lse(z_p) + lse(z_q) for logits z. Each tile is reduced to a few numbers a token: its
logsumexp, and E_p[z_p - z_q] within it; tiles are put together by their shares. Logits are those that klray scores
with; from there all is float64, because what is left of a small KL is a difference of large numbers.

Heads may have more entries than the tokenizer has words, filled up to a round number, and two models of one tokenizer
may differ in how many. What one of them lacks has no probability there, so that a KL to it is not defined. Compared are
then the distributions given that the next token is one that both have; how much that leaves out is looked at.

Shape suffixes: M tokens, E entries of a tile of the vocabulary, D width of the hidden states, S distributions compared
in a chain (two models; or the L + 1 layers of one), each with the next.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from klray.analysis.exact_kl import TokenKL, text_bytes
from klray.errors import CheckpointError
from klray.likelihood.forward import LayerReader, Reader, on_device
from klray.likelihood.head import GivenLogits, OutputHead, exponentials, shift_of
from klray.likelihood.score import (
    check_finite,
    default_tokens_per_batch,
    in_batches,
    make_readers,
    readable,
    text_sums,
)
from klray.likelihood.tokens import Tokens, encode, plan
from klray.units import NATS_PER_BIT
from klray.words.numbers import counted, significant

# (tokens, entries) of a tile: 256 x 1,024 has 2 MiB in float64, of which there are half a dozen; more where launches
# cost. Its size changes values by rounding in float64 alone.
_TILES = {"cpu": (256, 1024)}
_LARGE_TILE = (1024, 4096)
# Share of a model's probability, mean over tokens, that entries which the other lacks may have: those of filling have
# next to none.
_MOST_OUTSIDE = 1e-3

logger = logging.getLogger("klray")

Head = OutputHead | GivenLogits


def token_kl(
    model: Any,
    other: Any,
    tokenizer: Callable[..., Any],
    texts: Sequence[str],
    *,
    tokens_per_batch: int | None = None,
) -> TokenKL:
    """Exact KL of the next-token distributions of two causal models in memory with one tokenizer, for each text.

    Both directions, top-1 agreement and both log-likelihoods come from one forward pass of each model; ``summary()``
    has them in bits per byte and nats per token, with standard errors over texts, beside the estimate from the
    log-likelihoods alone. Models, tokenizer and ``tokens_per_batch`` are as for :func:`klray.log_likelihood`, whose
    errors are raised; CheckpointError (non_finite) if one model gives no probability to a token to which the other
    gives some. Where their heads differ in size, it is of the entries that both have; a warning says how much
    probability the others have, and more than a thousandth is refused (load_failed).
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    return compare([model, other], encode(tokenizer, texts), text_bytes(texts), tokens_per_batch=tokens_per_batch)[0]


def compare(
    models: Sequence[Any],
    tokens: Tokens,
    n_bytes: np.ndarray,
    *,
    tokens_per_batch: int | None = None,
    lens: LayerReader | None = None,
) -> list[TokenKL]:
    """Each of ``models`` with the next one; with a ``lens`` the layers of one model, each with the next one.

    ``n_bytes`` (N,) are those of the texts. Raises as :func:`token_kl`.
    """
    models = [getattr(model, "_orig_mod", model) for model in models]
    with ExitStack() as stack:
        device, *_ = [stack.enter_context(readable(model, tokens)) for model in models]
        budget = tokens_per_batch if tokens_per_batch is not None else default_tokens_per_batch(device)
        ids = on_device(tokens.ids.astype(np.int64), device)
        batches = plan(tokens.lengths, budget)
        if not batches:
            nothing = np.zeros(len(tokens))
            return [TokenKL(nothing, nothing, nothing, np.zeros((2, len(tokens))), tokens.counted, n_bytes)]
        readers = [make_readers(model, tokens, ids, batches, lens)[0] for model in models]
        if any(each[0].head is None for each in readers):  # its own logits are those of one text
            batches = plan(tokens.lengths, 1)
        streams = [_Stream(each) for each in zip(*readers, strict=False)]
        done, _ = in_batches([each.compare for each in streams], tokens, batches, budget, device)
    positions = np.concatenate([part.positions for _, part in done])
    names = ("log_p_SM", "forward_PM", "reverse_PM", "agreed_PM", "outside_SM")
    log_p, forward, reverse, agreed, outside = (
        text_sums(tokens, positions, torch.cat([getattr(part, name) for _, part in done], dim=1).cpu())
        for name in names
    )
    for side, row in enumerate(log_p):
        check_finite(models[min(side, len(models) - 1)], row, f" after layer {side}" if lens else "")
    _check_outside(models, outside.sum(axis=1) / max(1, tokens.counted.sum()))
    found = [
        TokenKL(forward[pair], reverse[pair], agreed[pair], log_p[pair : pair + 2], tokens.counted, n_bytes)
        for pair in range(len(forward))
    ]
    for each in found:
        _check(models, each)
    return found


@dataclass(frozen=True, eq=False)
class _Compared:
    """Of the M tokens of a batch, in float64 nats: S distributions, P = S - 1 pairs."""

    positions: np.ndarray  # (M,) in ``Tokens.ids``
    log_p_SM: torch.Tensor
    forward_PM: torch.Tensor
    reverse_PM: torch.Tensor
    agreed_PM: torch.Tensor  # 1 where the most probable token is the same, else 0
    outside_SM: torch.Tensor  # share of the probability of entries that others lack


@dataclass(frozen=True, eq=False)
class _Stream:
    """Compares one batch at a time."""

    readers: Sequence[Reader]

    def compare(self, batch: np.ndarray) -> _Compared:
        read = [reader.read(batch) for reader in self.readers]
        sides = [
            (reader.head, states.to(reader.head.weight_VD.device)) if reader.head else (GivenLogits(), states)
            for reader, each in zip(self.readers, read, strict=True)
            for states in each.states
        ]
        device = sides[0][1].device
        n_tokens, _ = _TILES.get(device.type, _LARGE_TILE)
        parts = [
            _chain([(head, states[rows]) for head, states in sides], read[0].targets[rows], device)
            for rows in (slice(start, start + n_tokens) for start in range(0, len(read[0].positions), n_tokens))
        ]
        return _Compared(read[0].positions, *(torch.cat(each, dim=1) for each in zip(*parts, strict=True)))


def _chain(
    sides: Sequence[tuple[Head, torch.Tensor]], targets_M: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """Log p (S, M) of the targets; KL forward and reverse, and whether they agree, (S - 1, M) each, of the entries that
    all have; and the probability of those that not all have (S, M).
    """
    sizes = [head.entries(states) for head, states in sides]
    vocabulary = min(sizes)
    _, entries = _TILES.get(device.type, _LARGE_TILE)
    # Taken once: pages of new tensors cost more than what is computed in them.
    scratch = torch.empty(3, len(targets_M) * min(entries, vocabulary), dtype=torch.float64, device=device)
    tiles = [
        _reduced((head.logits(states, first, last).to(device) for head, states in sides), scratch)
        for first, last in _tiles(0, vocabulary, entries)
    ]
    peaks_TSM, parts_TSM, *means, both_TPM = (torch.stack(each) for each in zip(*tiles, strict=True))
    lse_SM = torch.logsumexp(parts_TSM, dim=0)
    share_TSM = (parts_TSM - lse_SM).exp()
    forward_PM, reverse_PM = (
        (share * mean).sum(0) for share, mean in zip((share_TSM[:, :-1], share_TSM[:, 1:]), means, strict=True)
    )
    between_PM = lse_SM[:-1] - lse_SM[1:]
    top_SM = peaks_TSM.argmax(dim=0)
    agreed_PM = (top_SM[:-1] == top_SM[1:]) & both_TPM.gather(0, top_SM[None, :-1])[0]
    target_SM = torch.stack(
        [head.target_logits(states, targets_M.to(states.device)).to(device).double() for head, states in sides]
    )
    rest_SM = torch.full_like(lse_SM, -math.inf)
    for side, (head, states) in enumerate(sides):
        for first, last in _tiles(vocabulary, sizes[side], entries):
            tile_M = head.logits(states, first, last).to(device).double().logsumexp(dim=-1)
            rest_SM[side] = torch.logaddexp(rest_SM[side], tile_M)
    all_SM = torch.logaddexp(lse_SM, rest_SM)
    return (
        target_SM - all_SM,
        forward_PM - between_PM,
        reverse_PM + between_PM,
        agreed_PM.double(),
        (rest_SM - all_SM).exp(),
    )


def _tiles(first: int, last: int, entries: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + entries, last)) for start in range(first, last, entries))


def _reduced(sides: Iterator[torch.Tensor], scratch: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of the logits (M, E) of a tile: the largest and the logsumexp, (S, M); E_first[difference], E_second[-difference]
    and whether one entry is the largest of both, (S - 1, M). Two sides are in memory at a time.
    """
    peaks, parts, forward, reverse, both = [], [], [], [], []
    before_ME, weights_ME, total_M = None, None, None
    for number, logits_ME in enumerate(sides):
        one_ME, two_ME, between_ME = (each[: logits_ME.numel()].view(logits_ME.shape) for each in scratch)
        peak_M = logits_ME.amax(dim=-1).double()
        shift_M = shift_of(peak_M)
        here_ME = exponentials(logits_ME, shift_M[:, None], out=two_ME if number % 2 else one_ME)
        here_M = here_ME.sum(dim=-1)
        if before_ME is not None:
            # Sums and differences of fp32 numbers are exact in float64.
            between_ME.copy_(before_ME).add_(logits_ME)
            both.append(between_ME.amax(dim=-1) == peaks[-1] + peak_M)
            between_ME.sub_(logits_ME, alpha=2)
            forward.append(torch.linalg.vecdot(weights_ME, between_ME) / total_M)
            reverse.append(torch.linalg.vecdot(here_ME, between_ME).neg_() / here_M)
        peaks.append(peak_M)
        parts.append(here_M.log() - shift_M * NATS_PER_BIT)
        before_ME, weights_ME, total_M = logits_ME, here_ME, here_M
    return tuple(torch.stack(each) for each in (peaks, parts, forward, reverse, both))


def _check_outside(models: Sequence[Any], outside_S: np.ndarray) -> None:
    """Raise CheckpointError where a model gives much probability to entries that the other lacks, and warn of little.

    ``outside_S`` (S,) is the mean over tokens.
    """
    if not outside_S.any():
        return
    side = int(np.argmax(outside_S))
    name, other = type(models[side]).__name__, type(models[1 - side]).__name__
    share = f"{significant(float(outside_S[side]))} of its probability"
    if outside_S[side] > _MOST_OUTSIDE:
        raise CheckpointError(
            f"{name} gives {share} to entries of its vocabulary that {other} lacks ({_MOST_OUTSIDE:g} allowed): these "
            "are no filling, and no KL of one to the other is defined; compare models with one vocabulary",
            "load_failed",
        )
    logger.warning("%s gives %s to entries of its vocabulary that %s lacks: the KL leaves them out", name, share, other)


def _check(models: Sequence[Any], found: TokenKL) -> None:
    bad = np.flatnonzero(~np.isfinite(found.forward + found.reverse))
    if len(bad):
        names = " and ".join(dict.fromkeys(type(model).__name__ for model in models))
        raise CheckpointError(
            f"the KL of {names} is not finite on text {bad[0]} and {len(bad):,} of "
            f"{counted(len(found.forward), 'text')}: one gives no probability at all to a token to which the other "
            "gives some, or its arithmetic overflows; try dtype float32, or leave this pair out",
            "non_finite",
        )
