"""Texts as token ids under one tokenizer, and the plan by which a model reads them in batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from klray.errors import CheckpointError, KlrayError
from klray.likelihood.tokenizing import TokenizerFacts, check_lacking, facts, token_ids
from klray.words.numbers import counted


@dataclass(frozen=True, eq=False)
class Tokens:
    """The token ids of N texts, end to end."""

    ids: np.ndarray  # (total,) int32, in the order of the texts
    offsets: np.ndarray  # (N + 1,) int64: text n is ids[offsets[n]:offsets[n + 1]]
    tokenizer: TokenizerFacts | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, text: int) -> np.ndarray:
        """Token ids of one text, (its tokens,) int32."""
        if not -len(self) <= text < len(self):
            raise IndexError(f"text {text} of {len(self)}")
        text %= len(self)
        return self.ids[self.offsets[text] : self.offsets[text + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[text] for text in range(len(self)))

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) int64 tokens of each text."""
        return np.diff(self.offsets)

    @cached_property
    def counted(self) -> np.ndarray:
        """(N,) int64 tokens that have a prediction: all but the first of each text."""
        return np.maximum(self.lengths - 1, 0)

    def rows(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of ``texts`` (N,) as rows of a batch: positions in ``ids`` (N, T), and which of them have a prediction.

        A row is padded with its text's own last token: an id that every model knows, after everything that counts.
        """
        lengths_N1 = self.lengths[texts][:, None]
        column_T = np.arange(lengths_N1.max())
        return self.offsets[texts][:, None] + np.minimum(column_T, lengths_N1 - 1), column_T < lengths_N1 - 1

    def check_context(self, context: int | None) -> None:
        """Raise CheckpointError (text_too_long) if a text has more tokens than ``context``; None is no limit."""
        if context is None or not len(self) or self.lengths.max() <= context:
            return
        too_long = np.flatnonzero(self.lengths > context)
        first = int(too_long[0])
        raise CheckpointError(
            f"text {first} has {counted(self.lengths[first], 'token')} and the model's context holds {context:,}; "
            f"{len(too_long):,} of {counted(len(self), 'text')} are too long and klray never truncates: leave this "
            "model out, or make the text set from shorter chunks (another text set, to be scored with every model)",
            "text_too_long",
        )

    def check_vocabulary(self, size: int | None) -> None:
        """Raise CheckpointError (load_failed) if a token id is not below ``size``, the model's vocabulary.

        On a GPU such an id would not raise but end the process.
        """
        if size is None or not len(self.ids) or self.ids.max() < size:
            return
        position = int(np.argmax(self.ids >= size))
        text = int(np.searchsorted(self.offsets, position, side="right")) - 1
        raise CheckpointError(
            f"text {text} has token id {self.ids[position]:,} and the model's vocabulary has {size:,} entries: "
            "tokenizer and model do not belong together; take both from the same checkpoint",
            "load_failed",
        )


def encode(tokenizer: Callable[..., Any], texts: Sequence[str], *, allow_lost: int = 0) -> Tokens:
    """Token ids of ``texts`` by the tokenizer's defaults: its own special tokens, no truncation, no padding.

    ``tokenizer`` is called as those of transformers are: ``tokenizer([str, ...])["input_ids"]`` are lists of ids.
    Texts go through batch calls; the text with the most bytes is encoded a second time alone.

    Raises KlrayError for what is no text, CheckpointError: the two disagree (a tokenizer that pads or cuts in batches),
    or it fails (load_failed); it takes too long (timed_out); or more than ``allow_lost`` texts are not in their tokens
    (text_lost), if it decodes as those of transformers do.
    """
    if isinstance(texts, str):
        raise KlrayError("texts is one str: pass a list of texts, [text] for a single one")
    texts = list(texts)
    odd = next((n for n, text in enumerate(texts) if not isinstance(text, str)), None)
    if odd is not None:
        raise KlrayError(f"text {odd} is no str but {type(texts[odd]).__name__}: pass a list of str, in Unicode")
    if not texts:
        return Tokens(ids=np.zeros(0, np.int32), offsets=np.zeros(1, np.int64))
    check_lacking(tokenizer, texts)
    encoded = token_ids(tokenizer, texts)
    most = max((max(ids) for ids in encoded if ids), default=0)
    if most > np.iinfo(np.int32).max:
        raise CheckpointError(
            f"the tokenizer gives the id {most:,}, and no model has as many: take the one that belongs to the model",
            "load_failed",
        )
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(ids) for ids in encoded], out=offsets[1:])
    return Tokens(
        ids=np.concatenate([np.asarray(ids, np.int32) for ids in encoded]),
        offsets=offsets,
        tokenizer=facts(tokenizer, texts, encoded, allow_lost),
    )


def plan(lengths: np.ndarray, tokens_per_batch: int) -> list[np.ndarray]:
    """Which texts of ``lengths`` (N,) tokens go through a model together: index arrays (rows,) int64, one a batch.

    Equal arguments give equal plans. Each batch holds texts of about equal length as rows, every row as long as the
    longest; rows x longest row are at most ``tokens_per_batch``, but a text longer than that is a batch of its own.
    Padding comes after a row's own tokens, where a causal model cannot see it: no mask is needed, attention never
    crosses texts, and every causal architecture (recurrent ones too) can follow the plan. Rows packed with several
    texts behind a block mask would save that padding, below 1 %, but are slower on a CPU (docs/measurements.md).

    The longest text comes first, so that a budget too large for the memory shows itself at once. Texts of fewer than
    two tokens have nothing to predict and are in no batch.
    """
    if tokens_per_batch < 1:
        raise KlrayError(f"tokens_per_batch is {tokens_per_batch}: it must be at least 1")
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] >= 2]
    batches = []
    while len(order):
        rows = max(1, tokens_per_batch // int(lengths[order[0]]))
        batches.append(order[:rows])
        order = order[rows:]
    return batches
