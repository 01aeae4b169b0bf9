"""Scorer: one checkpoint in, one committed column out. The same object in a Ray actor, on a laptop or in a test."""

import dataclasses
import errno
import os
import platform
import time
from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from klray.checkpoints import Cache, Checkpoint, Fetcher, Hub, Patience
from klray.errors import CheckpointError, StoreError
from klray.store import Column, Store
from klray.store.twins import take_over
from klray.sweep.replies import Outcome
from klray.sweep.settings import Computing, ScoringSettings
from klray.texts import TextSet
from klray.words.outside import fit


class Scorer:
    """Scores checkpoints of a hub one after another, fetching the next ones while the present one is scored.

    ``text_set`` are the store's texts; ``compute`` loads and scores models, in a process of their own or in this one;
    ``patience`` has the pauses that a hub asked for, if they are shared with other scorers. Raises StoreError if the
    store cannot be opened.
    """

    def __init__(
        self,
        hub: Hub,
        store_url: str,
        storage_options: Mapping[str, Any],
        text_set: TextSet,
        settings: ScoringSettings,
        compute: Computing,
        patience: Patience | None = None,
    ):
        self.store = Store.open(store_url, storage_options)
        self.text_set = text_set
        self.settings = settings
        self.cache = Cache(Path(settings.cache_dir), settings.cache_bytes, patience)
        self.fetcher = Fetcher(hub, self.cache)
        self.compute = compute
        self._loaded: Checkpoint | None = None

    def key(self, checkpoint: Checkpoint) -> str:
        """Of the column of ``checkpoint``."""
        return self.settings.identity(checkpoint, self.text_set.fingerprint).key

    def score(self, checkpoint: Checkpoint, upcoming: Sequence[Checkpoint] = ()) -> Outcome:
        """Score ``checkpoint`` and commit its column: ``column`` and ``commit`` in one. Raises as they do."""
        return self.commit(self.column(checkpoint, upcoming))

    def column(self, checkpoint: Checkpoint, upcoming: Sequence[Checkpoint] = ()) -> Column:
        """Score ``checkpoint``; meanwhile fetch those that are ``upcoming``, in their order.

        Raises CheckpointError if this checkpoint cannot be scored; the scorer can go on with others.
        """
        start = time.monotonic()
        directory = self.fetcher.take(checkpoint, upcoming)
        fetch_seconds = time.monotonic() - start
        try:
            computed = self.compute.score(checkpoint, directory, partial(self._give_back, checkpoint))
        except CheckpointError as error:  # where this worker keeps its files says nothing to whoever reads the record
            raise CheckpointError(error.message.replace(str(directory), checkpoint.label), error.reason) from error
        finally:
            if not upcoming:  # nothing will be copied from it
                self.cache.discard(checkpoint)
        settings = self.settings
        return Column(
            identity=settings.identity(checkpoint, self.text_set.fingerprint),
            log_likelihood=computed.log_likelihood,
            layers=computed.layers,
            n_tokens=computed.n_tokens,
            facts=fit(
                {
                    **_told(checkpoint),
                    "bytes": checkpoint.bytes,
                    "device": settings.device,
                    "threads": settings.threads,
                    **computed.facts,
                }
            ),
            versions=dict(versions()),
            timings={"fetch_seconds": fetch_seconds, **computed.timings},
            weight_sketch=computed.weight_sketch,
        )

    def commit(self, column: Column) -> Outcome:
        """Commit a column. It may be called while the next checkpoint is scored, from another thread.

        Raises StoreError if the store refused the column; no other column can be written either.
        """
        start = time.monotonic()
        try:
            commit, first = self.store.add_column(column)
        except OSError as error:
            raise _store_refused(self.store.url, error) from error
        seconds = {**_stages(column.timings), "committing": time.monotonic() - start}
        return Outcome(column.identity.key, first, commit.facts["tokens"], seconds=seconds)

    def take_over(self, checkpoint: Checkpoint, source: str) -> Outcome | None:
        """Commit for ``checkpoint`` the values of the column with the key ``source``, whose checkpoint holds the same
        files; None when that column is not there, or not whole. Raises StoreError if the store refused the column.
        """
        identity = self.settings.identity(checkpoint, self.text_set.fingerprint)
        facts = _told(checkpoint)
        try:
            taken = take_over(self.store.objects, source, identity, facts)
        except OSError as error:
            raise _store_refused(self.store.url, error) from error
        return None if taken is None else Outcome(identity.key, taken[1], 0, taken_over=True)

    def _give_back(self, checkpoint: Checkpoint) -> None:
        """The model owns its memory: make room for the next ones while this one is scored. Its files stay until then,
        or until the room is needed, because config and tokenizer of the next one are copied from them.
        """
        self.cache.release(checkpoint)
        if self._loaded is not None and self._loaded != checkpoint:
            self.cache.discard(self._loaded)
        self._loaded = checkpoint


def _stages(timings: Mapping[str, float]) -> dict[str, float]:
    """Where the time of one checkpoint went, of its column's timings."""
    of = {"waiting": ("fetch",), "loading": ("start", "load"), "scoring": ("score", "sketch")}
    return {stage: sum(timings.get(f"{each}_seconds", 0.0) for each in parts) for stage, parts in of.items()}


def _told(checkpoint: Checkpoint) -> dict[str, Any]:
    """Facts that are known before a checkpoint is scored."""
    named = {"revision": checkpoint.revision, "weight_files": checkpoint.weight_files}
    elsewhere = {"files_elsewhere": list(checkpoint.elsewhere)} if checkpoint.elsewhere else {}
    return {**dataclasses.asdict(checkpoint.facts), **named, **elsewhere}


@cache  # 15 ms
def versions() -> Mapping[str, str]:
    """Versions of what decides the numbers, for a commit."""
    found = {name: version(name) for name in ("klray", "torch", "transformers", "tokenizers", "numpy")}
    found |= {name: version(name) for name in ("bitsandbytes", "gguf") if find_spec(name) is not None}
    return {**found, "python": platform.python_version(), "machine": platform.machine(), "cpus": str(os.cpu_count())}


def _store_refused(url: str, error: OSError) -> StoreError:
    reason = "it is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
    return StoreError(
        f"store {url} cannot be written: {reason}; columns committed so far are safe: "
        "make room or mend the store, and run the same command again to score what is missing"
    )
