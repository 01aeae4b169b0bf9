"""Log-likelihood of texts under a causal language model, in nats per text. Shape suffixes: N texts, T tokens."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from klray.checkpoints.causes import is_out_of_memory
from klray.errors import CheckpointError
from klray.likelihood.causality import check_causal
from klray.likelihood.forward import LayerReader, Reader, on_device
from klray.likelihood.head import find_head, text_config
from klray.likelihood.steady import randomness, unchanged
from klray.likelihood.streams import copies, in_streams
from klray.likelihood.tokens import Tokens, encode, plan
from klray.words.numbers import counted

logger = logging.getLogger("klray")

Result = TypeVar("Result")

# Tokens that compare klray's head with the model's own logits: enough to see a wrong scale, nothing beside a text set.
_PROBE_TOKENS = 32


@dataclass(frozen=True, eq=False)
class LogLikelihoods:
    """One model's log-likelihoods of N texts, and how they were computed.

    ``head`` is "tiled" for klray's head, "model" for the model's own logits, one text per forward pass, and ``why``;
    ``tokens_per_batch`` the budget that the computation ended with, halved each time that memory ran out.
    """

    values: np.ndarray  # (N,) float64, nats: sum of log p(token | tokens before it) over a text's tokens but the first
    n_tokens: np.ndarray  # (N,) int64, the tokens counted in each text
    head: Literal["tiled", "model"]
    tokens_per_batch: int
    why: str = ""  # it was not "tiled"
    layers: np.ndarray | None = None  # (L + 1, N) float64, nats: the same after each layer, ``values`` last


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

    Raises CheckpointError: text_lost, text_too_long, not_causal, non_finite, out_of_memory, or load_failed if tokenizer
    and model do not fit.
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


def score(
    model: Any, tokens: Tokens, *, tokens_per_batch: int | None = None, lens: LayerReader | None = None
) -> LogLikelihoods:
    """Log-likelihoods of ``tokens`` under ``model``; parameters and errors are those of :func:`log_likelihood`.

    Token log-probabilities are computed in fp32 and put back in the order of the texts; each text's are then summed
    in float64 from first to last. The same model, tokens, budget and thread count give the same bits, whatever was
    scored before. On a CPU several batches are computed at once, each on its share of the threads
    (``streams``). When memory runs out, the texts that remain are planned again, with half the budget and one
    batch at a time, down to one text per batch. With a ``lens`` every layer is scored in the same forward passes; the
    model's own values stay the same.
    """
    model = getattr(model, "_orig_mod", model)  # a compiled one would be compiled anew for every shape of a batch
    with readable(model, tokens) as device:
        budget = tokens_per_batch if tokens_per_batch is not None else default_tokens_per_batch(device)
        scored = _score(model, tokens, budget, device, lens)
    check_finite(model, scored.values)
    for layer, values in enumerate(() if scored.layers is None else scored.layers):
        check_finite(model, values, f" after layer {layer}")
    return scored


@contextmanager
def readable(model: Any, tokens: Tokens) -> Iterator[torch.device]:
    """The device of a model that can read ``tokens``, ``undisturbed`` inside: whatever takes numbers from a model does.

    Raises CheckpointError: the texts do not fit the model (text_too_long, load_failed), it sees what follows a token
    (not_causal), it changes when it is run, it drew random numbers and gives others when it is run again (load_failed),
    or the device has too little memory (out_of_memory).
    """
    tokens.check_context(context_length(model))
    tokens.check_vocabulary(_vocabulary_size(model))
    device = next(model.parameters()).device
    try:
        with undisturbed(model, device):
            before = randomness(device)
            try:
                if tokens.counted.any():
                    with unchanged(model):
                        check_causal(model, probe(tokens, device), _vocabulary_size(model))
                yield device
            except CheckpointError:  # whatever was found may have been chance
                _check_steady(model, tokens, device, before)
                raise
            _check_steady(model, tokens, device, before)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{type(model).__name__} ran out of memory on {device} with the smallest batch, one text: use a device "
            "with more memory, several devices for this model, or a 16-bit dtype",
            "out_of_memory",
        ) from error


def probe(tokens: Tokens, device: torch.device) -> torch.Tensor:
    """The beginning (T,) of the longest text, with which a model is looked at before all texts go through it."""
    longest = tokens[int(np.argmax(tokens.lengths))]
    return on_device(longest[:_PROBE_TOKENS].astype(np.int64), device)


def _check_steady(model: Any, tokens: Tokens, device: torch.device, before: torch.Tensor) -> None:
    """Raise CheckpointError (load_failed) for a model that gives texts other numbers the second time, if random ones
    were drawn since the generator was as ``before``.
    """
    if torch.equal(randomness(device), before):
        return
    budget = default_tokens_per_batch(device)
    values, again = (_score(model, tokens, budget, device, None).values for _ in range(2))
    if not np.array_equal(values, again, equal_nan=True):
        raise CheckpointError(
            f"{type(model).__name__} draws random numbers when it is run, and gives texts other log-likelihoods each "
            f"time, up to {np.nanmax(np.abs(values - again)):.2g} nats apart: leave this model out",
            "load_failed",
        )


def check_finite(model: Any, values: np.ndarray, where: str = "") -> None:
    """Raise CheckpointError (non_finite) for log-likelihoods (N,) of which one is not finite."""
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        dtype = next(model.parameters()).dtype
        wider = {torch.float16: "try dtype float32 or bfloat16, or ", torch.bfloat16: "try dtype float32, or "}
        raise CheckpointError(
            f"{type(model).__name__} gives text {bad[0]} a log-likelihood of {values[bad[0]]}{where}, and {len(bad):,} "
            f"of {counted(len(values), 'text')} one that is not finite: its weights or its arithmetic overflow; "
            f"{wider.get(dtype, '')}leave this checkpoint out",
            "non_finite",
        )


def _score(model: Any, tokens: Tokens, budget: int, device: torch.device, lens: LayerReader | None) -> LogLikelihoods:
    ids = on_device(tokens.ids.astype(np.int64), device)
    batches = plan(tokens.lengths, budget)
    if not batches:
        rows = np.zeros((1, len(tokens)))
        return LogLikelihoods(rows[0], tokens.counted, "tiled", budget)
    readers, why = make_readers(model, tokens, ids, batches, lens)
    tiled = readers[0].head is not None
    if not tiled:  # one text per forward pass: the definition of the log-likelihood, and free of padding
        batches = plan(tokens.lengths, 1)
    done, budget = in_batches([reader.predict for reader in readers], tokens, batches, budget, device)
    positions = np.concatenate([part.positions for _, part in done])
    by_layer = torch.cat([part.log_probabilities for _, part in done], dim=1).cpu()
    rows = text_sums(tokens, positions, by_layer)
    return LogLikelihoods(
        values=rows[-1],
        n_tokens=tokens.counted,
        head="tiled" if tiled else "model",
        tokens_per_batch=budget,
        why=why,
        layers=rows if lens is not None else None,
    )


def text_sums(tokens: Tokens, positions: np.ndarray, values_RM: torch.Tensor) -> np.ndarray:
    """(R, N) float64 sums over each text, from its first token to its last, of values of tokens at ``positions``."""
    text_of_token = np.repeat(np.arange(len(tokens)), tokens.lengths)
    per_token = np.zeros(len(tokens.ids))
    rows = np.zeros((len(values_RM), len(tokens)))
    for row, values in zip(rows, values_RM, strict=True):
        per_token[positions] = values.double().numpy()
        row[:] = np.bincount(text_of_token, weights=per_token, minlength=len(tokens))
    return rows


def in_batches(
    predict: Sequence[Callable[[np.ndarray], Result]],
    tokens: Tokens,
    batches: list[np.ndarray],
    budget: int,
    device: torch.device,
) -> tuple[list[tuple[np.ndarray, Result]], int]:
    """Each batch with what ``predict`` gives for it, a function for each stream; and the budget at the end.

    When memory runs out, the texts that remain are planned again with half the budget, and one batch at a time.
    """
    done: list[tuple[np.ndarray, Result]] = []
    while batches:
        parts = _try_batches(predict, batches)
        done += [(batch, part) for batch, part in zip(batches, parts, strict=True) if part is not None]
        batches = [batch for batch, part in zip(batches, parts, strict=True) if part is None]
        if batches:
            slots = tokens.rows(batches[0])[0].size  # positions that a batch computes, padding included
            budget = max(1, min(budget, slots) // 2)
            logger.warning("out of memory with %d tokens per batch on %s: going on with %d", slots, device, budget)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            predict = predict[:1]  # more than one forward pass at a time may be what memory does not hold
            remaining = np.concatenate(batches)
            batches = [remaining[rows] for rows in plan(tokens.lengths[remaining], budget)]
    return done, budget


def make_readers(
    model: Any, tokens: Tokens, ids: torch.Tensor, batches: Sequence[np.ndarray], lens: LayerReader | None
) -> tuple[list[Reader], str]:
    """A reader for each stream; only one where the model computes its own logits, and why it does."""
    modules = copies(model, len(batches))
    probe_T = probe(tokens, ids.device)
    head, why = find_head(modules[0], probe_T, int(tokens.lengths.max()))
    if head is None:
        if lens is not None:
            raise CheckpointError(
                f"{type(model).__name__} has no output head that klray can use ({why}), and a lens reads every layer "
                "through it: score this model with scoring.lens=none",
                "load_failed",
            )
        return [Reader(model, None, None, tokens, ids)], why
    readers = [
        Reader(each, head, lens.reader(each, probe_T) if lens is not None else None, tokens, ids) for each in modules
    ]
    return readers, ""


def _try_batches(
    predict: Sequence[Callable[[np.ndarray], Result]], batches: Sequence[np.ndarray]
) -> list[Result | None]:
    """What each batch gives; None for those that memory ran out with and that came after.

    It is an error where one text did not fit that had the memory to itself.
    """
    short = threading.Event()

    def attempt(predict_one: Callable[[np.ndarray], Result], batch: np.ndarray) -> Result | None:
        if short.is_set():
            return None
        try:
            return predict_one(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or (len(batch) == 1 and len(predict) == 1):
                raise
            short.set()
            return None

    return in_streams([partial(attempt, each) for each in predict], batches)


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


def _vocabulary_size(model: Any) -> int | None:
    """Token ids that both the input and the output embedding know."""
    getters = [getattr(model, name, None) for name in ("get_input_embeddings", "get_output_embeddings")]
    layers = [getter() for getter in getters if getter is not None]
    sizes = [getattr(layer, "num_embeddings", None) or getattr(layer, "out_features", None) for layer in layers]
    return min((size for size in sizes if size is not None), default=None)
