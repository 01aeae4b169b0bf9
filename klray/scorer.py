"""Scorer: one checkpoint in, one committed column out. The same object in a Ray actor, on a laptop or in a test."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from klray import likelihood, models, tokens
from klray.checkpoints import Cache, Checkpoint, Fetcher, Hub, Patience
from klray.errors import CheckpointError, KlrayError, StoreError
from klray.lens import LOGIT, Lens, load_translators
from klray.store import Column, Identity, Store
from klray.store.twins import take_over
from klray.texts import TextSet
from klray.weights import Sketch, sketch

log = logging.getLogger("klray")


@dataclasses.dataclass(frozen=True)
class ScoringSettings:
    """How checkpoints are scored; ``dtype``, ``quantization`` and ``lens`` are part of a column's identity."""

    dtype: models.Dtype = "float32"
    quantization: str = "none"
    device: str = "cpu"
    threads: int = 1  # CPU threads of one worker: fixed, because they decide the last bits
    tokens_per_batch: int | None = None  # None: what suits the device
    cache_dir: str = ""
    cache_bytes: int = 20 * 2**30  # of one worker
    lens: str = "none"  # "logit" or the name of a tuned lens: a row for every layer
    lens_folder: str = ""  # of a tuned lens, where every worker can read it
    lens_norm: str | None = None  # path to the final norm, where it cannot be found
    sketch: int = 65_536  # buckets of the weight sketch, 0 for none; no part of a column's identity

    def identity(self, checkpoint: Checkpoint, text_set: str) -> Identity:
        """Identity of the column that these settings give for ``checkpoint``."""
        return Identity(
            repository=checkpoint.repository,
            commit=checkpoint.commit,
            text_set=text_set,
            dtype=self.dtype,
            quantization=self.quantization,
            lens=self.lens,
        )

    def load_lens(self) -> Lens | None:
        """The lens; None for scoring without one.

        Raises
        ------
        KlrayError
            The folder does not hold the tuned lens that is asked for.
        """
        if self.lens == "none":
            return None
        if self.lens == LOGIT:
            return Lens(norm=self.lens_norm)
        lens = Lens(load_translators(self.lens_folder), self.lens_norm)
        if lens.name != self.lens:
            raise KlrayError(
                f"{self.lens_folder} holds {lens.name} on this machine, {self.lens} was asked for: give every worker "
                "the same folder"
            )
        return lens


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one checkpoint: a column (this worker's, or another's that stood first)."""

    key: str
    first: bool  # False: another job had committed the same column meanwhile
    seconds: float
    tokens: int
    taken_over: bool = False  # the values were there, of a checkpoint with the same files


class Scorer:
    """Scores checkpoints one after another, fetching the next ones while the present one is scored.

    Parameters
    ----------
    hub : where checkpoints come from, with its token
    store_url, storage_options : where columns go
    text_set : the texts, the same as the store's
    settings : how to score
    patience : the pauses that a hub asked for, if they are shared with other scorers

    Raises
    ------
    StoreError
        The store cannot be opened, or is for other texts.
    """

    def __init__(
        self,
        hub: Hub,
        store_url: str,
        storage_options: Mapping[str, Any],
        text_set: TextSet,
        settings: ScoringSettings,
        patience: Patience | None = None,
    ):
        torch.set_num_threads(settings.threads)
        self.store = Store.open(store_url, storage_options)
        self.text_set = text_set
        self.settings = settings
        self.cache = Cache(Path(settings.cache_dir), settings.cache_bytes, patience)
        self.fetcher = Fetcher(hub, self.cache)
        self.lens = settings.load_lens()
        self._tokens: dict[str, tokens.Tokens] = {}
        self._tokens_of: list[tuple[str, str]] = []
        self._model: models.Loaded | None = None
        self._loaded: Checkpoint | None = None
        self._tokens_per_batch: int | None = None
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="sketch")

    def score(self, checkpoint: Checkpoint, upcoming: Sequence[Checkpoint] = ()) -> Outcome:
        """Score ``checkpoint`` and commit its column; meanwhile fetch those that are ``upcoming``, in their order.

        Raises
        ------
        CheckpointError
            This checkpoint cannot be scored; the scorer can go on with others.
        StoreError
            The store refused the column; no other column can be written either.
        """
        start = time.monotonic()
        timings: dict[str, float] = {}
        directory = self.fetcher.take(checkpoint, upcoming)
        timings["fetch_seconds"] = time.monotonic() - start
        try:
            column = self._column(checkpoint, directory, timings)
        except CheckpointError as error:  # where this worker keeps its files says nothing to whoever reads the record
            raise CheckpointError(error.message.replace(str(directory), checkpoint.label), error.reason) from error
        finally:
            if not upcoming:  # nothing will be copied from it
                self.cache.discard(checkpoint)
        try:
            _, first = self.store.add_column(column)
        except OSError as error:
            raise _store_refused(self.store.url, error) from error
        return Outcome(column.identity.key, first, time.monotonic() - start, int(column.n_tokens.sum()))

    def take_over(self, checkpoint: Checkpoint, source: str) -> Outcome | None:
        """Commit for ``checkpoint`` the values of the column with the key ``source``, whose checkpoint holds the same
        files; None when that column is not there, or not whole.

        Raises
        ------
        StoreError
            The store refused the column.
        """
        start = time.monotonic()
        identity = self.settings.identity(checkpoint, self.text_set.fingerprint)
        facts = {**dataclasses.asdict(checkpoint.facts), "revision": checkpoint.revision}
        try:
            taken = take_over(self.store.objects, source, identity, facts)
        except OSError as error:
            raise _store_refused(self.store.url, error) from error
        return None if taken is None else Outcome(identity.key, taken[1], time.monotonic() - start, 0, taken_over=True)

    def _column(self, checkpoint: Checkpoint, directory: Path, timings: dict[str, float]) -> Column:
        start = time.monotonic()
        settings, before = self.settings, self._model
        sketching: list[Future[Sketch | None]] = []
        try:
            self._model = models.load(
                directory,
                dtype=settings.dtype,
                device=settings.device,
                quantization=settings.quantization,
                reuse=self._model,
                look=self._sketch_into(sketching, checkpoint, timings) if settings.sketch else None,
            )
            encoded = self._encode(checkpoint, directory)
        finally:
            if sketching:  # it reads the files
                sketching[0].add_done_callback(lambda _: self._give_back(checkpoint))
            else:
                self._give_back(checkpoint)
        timings["load_seconds"] = time.monotonic() - start
        start = time.monotonic()
        if self._model is not before:
            self._tokens_per_batch = settings.tokens_per_batch
        scores = likelihood.score(self._model.model, encoded, tokens_per_batch=self._tokens_per_batch, lens=self.lens)
        self._tokens_per_batch = scores.tokens_per_batch  # halved where memory ran out: the next one is no smaller
        rows = scores.values[None, :] if scores.layers is None else scores.layers
        timings["score_seconds"] = time.monotonic() - start
        sketched = sketching[0].result() if sketching else None
        facts = {
            **dataclasses.asdict(checkpoint.facts),
            "revision": checkpoint.revision,
            "architecture": self._model.architecture,
            "parameters": self._model.parameters,
            "stored_quantization": self._model.stored_quantization,
            "bytes": checkpoint.bytes,
            "device": settings.device,
            "head": scores.head,
            "tokens_per_batch": scores.tokens_per_batch,
            "threads": settings.threads,
            "sketch": sketched.label if sketched else "",
        }
        if self.lens is not None and self.lens.translators is not None:
            facts["tuned_lens"] = self.lens.translators.facts
        return Column(
            identity=settings.identity(checkpoint, self.text_set.fingerprint),
            log_likelihood=rows,
            layers=(-1,) if scores.layers is None else tuple(range(len(rows))),
            n_tokens=scores.n_tokens,
            facts=facts,
            versions=dict(versions()),
            timings=timings,
            weight_sketch=sketched.buckets if sketched else None,
        )

    def _sketch_into(
        self, sketching: list[Future[Sketch | None]], checkpoint: Checkpoint, timings: dict[str, float]
    ) -> Callable[[Mapping[str, torch.Tensor]], None]:
        """Begin the sketch of the stored tensors once they are read for the model, beside what else is done with them;
        a checkpoint that has none is scored, too.
        """

        def take(stored: Mapping[str, torch.Tensor]) -> Sketch | None:
            start = time.monotonic()
            try:
                return sketch(stored, self.settings.sketch)
            except KlrayError as error:
                log.warning("%s has no weight sketch: %s", checkpoint.label, error)
                return None
            finally:
                timings["sketch_seconds"] = time.monotonic() - start

        return lambda stored: sketching.append(self._beside.submit(take, stored))

    def _give_back(self, checkpoint: Checkpoint) -> None:
        """The model owns its memory: make room for the next ones while this one is scored. Its files stay until then,
        or until the room is needed, because config and tokenizer of the next one are copied from them.
        """
        self.cache.release(checkpoint)
        if self._loaded is not None and self._loaded != checkpoint:
            self.cache.discard(self._loaded)
        self._loaded = checkpoint

    def _encode(self, checkpoint: Checkpoint, directory: Path) -> tokens.Tokens:
        """The texts under the checkpoint's tokenizer, tokenised once per tokenizer."""
        # By the verified hashes, when config and tokenizer are the last one's: reading them again takes 5 to 20 ms.
        described = [(file.path, file.content) for file in checkpoint.files if not file.is_weight]
        if described != self._tokens_of or not all(content for _, content in described):
            fingerprint = models.tokenizer_fingerprint(directory)
            if fingerprint not in self._tokens:
                self._tokens = {fingerprint: tokens.encode(models.load_tokenizer(directory), self.text_set.texts)}
            self._tokens_of = described
        return next(iter(self._tokens.values()))


@cache  # 15 ms
def versions() -> Mapping[str, str]:
    """Versions of what decides the numbers, for a commit."""
    found = {name: version(name) for name in ("klray", "torch", "transformers", "tokenizers", "numpy")}
    if find_spec("bitsandbytes") is not None:
        found["bitsandbytes"] = version("bitsandbytes")
    return {**found, "python": platform.python_version(), "machine": platform.machine(), "cpus": str(os.cpu_count())}


def _store_refused(url: str, error: OSError) -> StoreError:
    reason = "it is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
    return StoreError(
        f"store {url} cannot be written: {reason}; columns committed so far are safe: "
        "make room or mend the store, and run the same command again to score what is missing"
    )
