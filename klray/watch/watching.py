"""A run under watch: what of it is in the store, what waits to be written, and how far it moved since the last step."""

import dataclasses
import logging
import time
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from klray.analysis.kl.all_pairs import paired_divergence, paired_standard_error
from klray.errors import CheckpointError, StoreError
from klray.likelihood import tokens
from klray.likelihood.choices import NONE
from klray.likelihood.score import context_length
from klray.store import Column, Store
from klray.texts import TextSet
from klray.watch.fingerprint import check_whole, dtype_of, weights_sha256
from klray.watch.recording import Run, identity_of, make_column
from klray.words.numbers import counted

log = logging.getLogger("klray")

# A store that is silent may take half a minute to say so. Trying again after ten times as long as the last try took
# costs a training at most a tenth of its time.
PAUSE_FACTOR = 10.0


@dataclasses.dataclass(frozen=True)
class Movement:
    """How far a run moved between two recorded steps: KL and its standard error in bits per byte."""

    since: int
    step: int
    kl: float
    kl_standard_error: float


class Watch:
    """Records steps of one run. A step that the store has is not scored again; an unwritable store is waited for.

    ``tokenizer`` is the models'; ``store_url``, ``storage_options`` and ``single_writer`` are as for ``Store.create``,
    ``tokens_per_batch`` as for ``klray.log_likelihood``. Raises StoreError if the store cannot be opened or created
    now, or is for other texts.
    """

    def __init__(
        self,
        store_url: str,
        text_set: TextSet,
        tokenizer: Any,
        run: Run,
        *,
        storage_options: Mapping[str, Any] | None = None,
        single_writer: bool = False,
        tokens_per_batch: int | None = None,
    ):
        self.store = Store.create(store_url, text_set, storage_options, single_writer)
        self.text_set, self.run, self.tokens_per_batch = text_set, run, tokens_per_batch
        self.encoded = tokens.encode(tokenizer, text_set.texts)
        self.pending: list[Column] = []
        rows = self.store.catalog().rows
        names = ("repository", "quantization", "lens", "step", "dtype", "key")
        facts = zip(*(rows[name].tolist() for name in names), strict=True)
        self._there = {  # keys of the run's columns by step and dtype
            (int(step), str(dtype)): str(key)
            for *column, step, dtype, key in facts
            if column == [self.run.name, NONE, NONE]
        }
        self._next_try = 0.0
        self._previous: tuple[int, np.ndarray] | None = None
        self._branched = False

    def record(self, model: Any, step: int) -> Movement | None:
        """Record ``model`` as ``step``; the movement since the step that was recorded before, if there is one.

        Nothing but a misuse is raised: what goes wrong with this step, or with the store, is logged.
        """
        key = self._there.get((step, dtype_of(model)))
        if key is not None:
            return self._moved(step, self._read(model, step, key))
        identity = identity_of(model, self.run, self.text_set)
        try:
            column = make_column(model, self.encoded, identity, self.run, step, self.tokens_per_batch)
        except CheckpointError as error:
            log.error("step %d of %s is not recorded: %s", step, self.run.name, error)
            try:
                self.store.record_failure(identity, f"step{step}", error.reason, error.message, uuid.uuid4().hex)
            except (StoreError, OSError) as refusal:
                log.error("store %s cannot be written: %s", self.store.url, refusal)
            return None
        self._there[step, identity.dtype] = identity.key
        self.pending.append(column)
        self.flush()
        return self._moved(step, np.asarray(column.log_likelihood[0]))

    def check(self, model: Any) -> None:
        """Raise the CheckpointError of a model that could not be recorded at any step."""
        check_whole(model)
        self.encoded.check_context(context_length(model))

    def flush(self, last: bool = False) -> None:
        """Write the columns that wait; if the store refuses, keep them and say so. ``last``: there is no later try."""
        if not self.pending or (time.monotonic() < self._next_try and not last):
            return
        start = time.monotonic()
        try:
            while self.pending:
                self.store.add_column(self.pending[0])
                self.pending.pop(0)
        except (StoreError, OSError) as error:
            self._next_try = time.monotonic() + PAUSE_FACTOR * (time.monotonic() - start)
            one = len(self.pending) == 1
            lost = f" {'is' if one else 'are'} lost: score the run's saved checkpoints"
            log.error(
                "store %s cannot be written: %s; %s of %s%s (%s %s)",
                self.store.url,
                error,
                counted(len(self.pending), "column"),
                self.run.name,
                lost if last else ": kept in memory and tried again later",
                "step" if one else "steps",
                ", ".join(str(column.facts["step"]) for column in self.pending),
            )

    def _moved(self, step: int, row: np.ndarray | None) -> Movement | None:
        """The movement since the previous row, which ``row`` (text,) becomes."""
        before = self._previous
        self._previous = None if row is None else (step, row)
        if before is None or row is None or before[0] == step:
            return None
        pair = before[1][None], row[None], self.text_set.n_bytes
        return Movement(before[0], step, float(paired_divergence(*pair)[0]), float(paired_standard_error(*pair)[0]))

    def _read(self, model: Any, step: int, key: str) -> np.ndarray | None:
        """The row of a step that is there; says once if the run has taken another way since."""
        try:
            (commit,) = self.store.commits([key])
            row = self.store.read_column(commit)[-1].astype(np.float64)
        except (StoreError, OSError) as error:
            log.warning("step %d of %s is in the store and cannot be read now: %s", step, self.run.name, error)
            return None
        if not self._branched and commit.identity.commit != weights_sha256(model):
            self._branched = True
            log.warning(
                "step %d of %s is in the store with other parameters: this run took another way since the checkpoint "
                "that it was resumed from; recorded steps stay as they are; give the run another name to keep both",
                step,
                self.run.name,
            )
        return row
