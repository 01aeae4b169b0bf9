"""Log-likelihood of texts under a causal language model, in nats per text.

Shape suffixes: N texts (rows of a batch), T tokens, M predicted tokens of a batch, V vocabulary entries, D width of the
hidden states.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch.nn import functional as F

from klray.errors import CheckpointError
from klray.head import OutputHead, compute_dtype, find_head, hidden_states, own_logits, text_config
from klray.tokens import Tokens, encode, plan

logger = logging.getLogger("klray")

# Tokens that compare klray's head with the model's own logits: enough to see a wrong scale, nothing beside a text set.
_PROBE_TOKENS = 32
# Where the model computes its own logits, those of this many tokens at a time are brought to fp32.
_TOKENS_PER_CAST = 256


class LayerReader(Protocol):
    """What :class:`klray.lens.Lens` is to this room: how the layers of a model are read for its head."""

    def reader(self, model: Any, probe_T: torch.Tensor) -> Callable[[torch.Tensor], Iterator[torch.Tensor]]:
        """Function from rows of token ids (N, T) to what the head reads for each layer, each (N, T, D), own last."""


@dataclass(frozen=True, eq=False)
class LogLikelihoods:
    """One model's log-likelihoods of N texts, and how they were computed.

    Parameters
    ----------
    values
        (N,) float64, nats: sum of log p(token | tokens before it) over a text's tokens but the first.
    n_tokens
        (N,) int64, the tokens counted in each text.
    padding_share
        Share of the computed positions that were padding, 0 to 1.
    head
        "tiled": klray's head; "model": the model's own logits, one text per forward pass (a warning said why).
    tokens_per_batch
        The budget that the computation ended with: the plan's, halved each time that memory ran out.
    layers
        (L + 1, N) float64, nats: the same after each layer, if a lens was given; the last row is ``values``.
    """

    values: np.ndarray
    n_tokens: np.ndarray
    padding_share: float
    head: Literal["tiled", "model"]
    tokens_per_batch: int
    layers: np.ndarray | None = None


def log_likelihood(
    model: Any, tokenizer: Callable[..., Any], texts: Sequence[str], *, tokens_per_batch: int | None = None
) -> np.ndarray:
    """Log-likelihood of each text, (N,) float64 in nats, under a causal language model in memory.

    l(x) = sum over t of log p(x_t | x_<t) (arXiv 2505.15353): tokens by the model's own tokenizer with its defaults;
    the first token of the sequence has no prediction and is not counted, so a text of one token has 0.0.

    Parameters
    ----------
    model
        A causal language model of transformers, on whatever device and in whatever dtype it is; its modes, gradients
        and random number generators are left as they are. Any module that returns ``.logits`` (N, T, V) for
        ``model(input_ids=ids, use_cache=False)`` is scored too, one text at a time.
    tokenizer
        Its tokenizer; texts longer than the model's context are refused, never truncated.
    texts
        N texts.
    tokens_per_batch
        Tokens in a forward pass; None for 1,024 on a CPU and 16,384 elsewhere. It changes values by rounding only.

    Raises
    ------
    CheckpointError
        With reason text_too_long, non_finite, out_of_memory, or load_failed if tokenizer and model do not fit.
    """
    return score(model, encode(tokenizer, texts), tokens_per_batch=tokens_per_batch).values


def default_tokens_per_batch(device: torch.device | str) -> int:
    """1,024 on a CPU (2,048 is 2 to 5 % slower for models of 14 M to 160 M, 8 % faster at 0.4 M), 16,384 elsewhere."""
    return 1_024 if torch.device(device).type == "cpu" else 16_384


def context_length(model: Any) -> int | None:
    """The most tokens that ``model`` can read at once; None if nothing bounds it (recurrent, and most ALiBi models)."""
    config = text_config(model)
    if config is None or getattr(config, "alibi", False):
        return None
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    return next((int(getattr(config, name)) for name in names if getattr(config, name, None)), None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; a CPU's allocator raises a plain RuntimeError, known by its words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def score(
    model: Any, tokens: Tokens, *, tokens_per_batch: int | None = None, lens: LayerReader | None = None
) -> LogLikelihoods:
    """Log-likelihoods of ``tokens`` under ``model``; parameters and errors are those of :func:`log_likelihood`.

    Token log-probabilities are computed in fp32 and put back in the order of the texts; each text's are then summed
    in float64 from first to last. The same model, tokens, budget and thread count give the same bits, whatever was
    scored before. When memory runs out, the texts that remain are planned again with half the budget, down to one text
    per batch. With a ``lens`` every layer is scored in the same forward passes; the model's own values stay the same.
    """
    tokens.check_context(context_length(model))
    tokens.check_vocabulary(_vocabulary_size(model))
    device = _device(model)
    budget = tokens_per_batch if tokens_per_batch is not None else default_tokens_per_batch(device)
    try:
        with undisturbed(model, device):
            scored = _score(model, tokens, budget, device, lens)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{type(model).__name__} ran out of memory on {device} with the smallest batch, one text: use a device "
            "with more memory, several devices for this model, or a 16-bit dtype",
            "out_of_memory",
        ) from error
    _check_finite(model, scored.values)
    if scored.layers is not None:
        for layer, values in enumerate(scored.layers):
            _check_finite(model, values, f" after layer {layer}")
    return scored


def _check_finite(model: Any, values: np.ndarray, where: str = "") -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise CheckpointError(
            f"{type(model).__name__} gives text {bad[0]} a log-likelihood of {values[bad[0]]}{where}, and {len(bad):,} "
            f"of {len(values):,} texts one that is not finite: its weights or its arithmetic overflow; "
            "try dtype float32 or bfloat16, or leave this checkpoint out",
            "non_finite",
        )


def _score(
    model: Any, tokens: Tokens, budget: int, device: torch.device, lens: LayerReader | None = None
) -> LogLikelihoods:
    ids = _to(tokens.ids.astype(np.int64), device)
    batches = plan(tokens.lengths, budget).batches
    head, read = None, None
    if batches:
        longest = int(batches[0][0])
        start, length = int(tokens.offsets[longest]), int(tokens.lengths[longest])
        probe_T = ids[start : start + min(length, _PROBE_TOKENS)]
        head = find_head(model, probe_T, length)
        if lens is not None:
            if head is None:
                raise CheckpointError(
                    f"{type(model).__name__} has no output head that klray can use (a warning says why), and a lens "
                    "reads every layer through it: score this model with scoring.lens=none",
                    "load_failed",
                )
            read = lens.reader(model, probe_T)
        if head is None:  # one text per forward pass: the definition of the log-likelihood, and free of padding
            batches = plan(tokens.lengths, 1).batches
    todo = deque(batches)
    positions: list[np.ndarray] = []
    log_probabilities: list[torch.Tensor] = []
    computed = 0
    while todo:
        slots = len(todo[0]) * int(tokens.lengths[todo[0]].max())
        part = _try_batch(model, head, read, ids, tokens, todo[0])
        if part is None:
            budget = max(1, min(budget, slots) // 2)
            logger.warning("out of memory with %d tokens per batch on %s: going on with %d", slots, device, budget)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            remaining = np.concatenate(todo)
            todo = deque(remaining[rows] for rows in plan(tokens.lengths[remaining], budget).batches)
        else:
            todo.popleft()
            positions.append(part[0])
            log_probabilities.append(part[1])
            computed += slots
    rows = np.zeros((1, len(tokens)))
    if batches:
        by_layer = torch.cat(log_probabilities, dim=1).cpu()
        rows = np.stack([_sums(tokens, np.concatenate(positions), row.double().numpy()) for row in by_layer])
    return LogLikelihoods(
        values=rows[-1],
        n_tokens=tokens.counted,
        padding_share=1.0 - int(tokens.lengths[tokens.lengths >= 2].sum()) / computed if computed else 0.0,
        head="model" if batches and head is None else "tiled",
        tokens_per_batch=budget,
        layers=rows if read is not None else None,
    )


def _sums(tokens: Tokens, positions: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(N,) float64: of each text, the sum of the ``values`` of its tokens at ``positions``, first to last."""
    per_token = np.zeros(len(tokens.ids))
    per_token[positions] = values
    text_of_token = np.repeat(np.arange(len(tokens)), tokens.lengths)
    return np.bincount(text_of_token, weights=per_token, minlength=len(tokens)).astype(np.float64)


_Read = Callable[[torch.Tensor], Iterator[torch.Tensor]]


def _try_batch(
    model: Any, head: OutputHead | None, read: _Read | None, ids: torch.Tensor, tokens: Tokens, batch: np.ndarray
) -> tuple[np.ndarray, torch.Tensor] | None:
    """Positions in ``tokens.ids`` and their log-probabilities; None if memory ran out and the batch can be split."""
    try:
        return _log_probabilities(model, head, read, ids, tokens, batch)
    except (RuntimeError, MemoryError) as error:
        if len(batch) == 1 or not is_out_of_memory(error):
            raise
    return None


def _log_probabilities(
    model: Any, head: OutputHead | None, read: _Read | None, ids: torch.Tensor, tokens: Tokens, batch: np.ndarray
) -> tuple[np.ndarray, torch.Tensor]:
    """Positions (M,) in ``tokens.ids`` of all tokens of a batch that have a prediction, and log p of each (layers, M);
    one layer, the model's own output, without ``read``.
    """
    starts_N1, lengths_N1 = tokens.offsets[batch][:, None], tokens.lengths[batch][:, None]
    column_T = np.arange(lengths_N1.max())
    # A row is padded with its text's own last token: an id that every model knows, after everything that counts.
    position_NT = starts_N1 + np.minimum(column_T, lengths_N1 - 1)
    predicts_NT = column_T < lengths_N1 - 1
    predicted_M = position_NT[predicts_NT] + 1
    ids_NT = ids[_to(position_NT, ids.device)]
    targets_M = ids[_to(predicted_M, ids.device)]
    if head is not None:
        kept = np.flatnonzero(predicts_NT)
        parts = []
        for hidden_NTD in read(ids_NT) if read is not None else (hidden_states(model, ids_NT),):
            hidden_MD = hidden_NTD.flatten(0, 1)[_to(kept, hidden_NTD.device)]
            parts.append(head.log_probabilities(hidden_MD, targets_M))
        return predicted_M, torch.stack(parts)
    logits_MV = own_logits(model, ids_NT)[0, :-1]
    pairs = zip(logits_MV.split(_TOKENS_PER_CAST), targets_M.to(logits_MV.device).split(_TOKENS_PER_CAST), strict=True)
    own_M = torch.cat(
        [-F.cross_entropy(logits.to(compute_dtype(logits)), targets, reduction="none") for logits, targets in pairs]
    )
    return predicted_M, own_M[None]


@contextmanager
def undisturbed(model: Any, device: torch.device) -> Iterator[None]:
    """Eval mode, no gradients and no autocast inside; every module's own mode restored after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module, training in modes:
            module.training = training


def _to(array: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    # From pinned memory the copy does not wait for the work queued on the GPU.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device


def _vocabulary_size(model: Any) -> int | None:
    """Token ids that both the input and the output embedding know."""
    getters = [getattr(model, name, None) for name in ("get_input_embeddings", "get_output_embeddings")]
    layers = [getter() for getter in getters if getter is not None]
    sizes = [getattr(layer, "num_embeddings", None) or getattr(layer, "out_features", None) for layer in layers]
    return min((size for size in sizes if size is not None), default=None)
