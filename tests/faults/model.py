"""The plain model of a store: which columns were written, which attempt of each stands, what every snapshot held."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import dask
import numpy as np
import numpy.typing as npt
import zarr

from klray.store import Column, Identity, catalog, publishing
from klray.store.columns import values_sha256
from klray.texts import TextSet

N_TEXTS = 8
TEXTS = TextSet("faults", tuple(f"text {i} " * 40 for i in range(N_TEXTS)), tuple("ab"[i % 2] for i in range(N_TEXTS)))
CHUNK_BYTES = 4 * N_TEXTS * 2  # two models a chunk: snapshots of a handful of models have several
LEFT_OUT = {
    *("run", "size", "seed", "base_model", "base_revision", "parents", "relation"),
    *("architecture", "variant", "parameters", "tokens", "sketch"),
}
ZARR_THREADS = 64  # actors that stopped hold some


def make_column(number: int, variant: int) -> Column:
    """Checkpoint ``number`` as one attempt found it: variants of a column differ by their last bits."""
    identity = Identity("org/model", f"{number:040x}", TEXTS.fingerprint)
    values = np.random.default_rng(number).normal(-500, 100, (1, N_TEXTS)) + variant * 2.0**-10
    facts = {"revision": f"step{number}", "step": number, "family": "fam", "run": "org/model", "parameters": 10}
    return Column(identity, values, (-1,), np.full(N_TEXTS, 7), facts, {"klray": "test"}, {"score_seconds": 1.0})


def sha256(column: Column) -> str:
    """SHA-256 of a column's values as they are stored."""
    return values_sha256(column.log_likelihood.astype(np.float32))


class Inline(Executor):
    """Stands in for the store's pools of threads: the order of operations is then the schedule's alone."""

    def __init__(self, *_: int):
        pass

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(*args, **kwargs))
        return future


@contextlib.contextmanager
def small_snapshots() -> Iterator[None]:
    """Snapshots of several chunks, read in one thread, without coordinates that nothing here looks at."""
    few = {name: each for name, each in catalog.COORDINATES.items() if name not in LEFT_OUT}
    with (
        mock.patch.dict(catalog._ALL, {**few, **catalog.PROVENANCE}, clear=True),
        mock.patch.dict(catalog.COORDINATES, few, clear=True),
        mock.patch.object(publishing, "CHUNK_BYTES", CHUNK_BYTES),
        dask.config.set(scheduler="synchronous"),
        zarr.config.set({"threading.max_workers": ZARR_THREADS}),
    ):
        yield


class Clock:
    """Stands in for ``datetime`` in ``klray.store.publishing``: moves when the schedule says so."""

    def __init__(self) -> None:
        self.milliseconds = 0

    strptime = staticmethod(datetime.strptime)

    def now(self, _: Any) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=self.milliseconds)


@dataclasses.dataclass
class Model:
    """What must be true of a store.

    values : values (text,) by SHA-256, of every attempt that was ever begun
    stands : key to the SHA-256 of the commit that is there now
    ever : key to the SHA-256 of every commit that was ever there
    tainted : keys whose commit or column was damaged on purpose and not committed anew since
    spoilt : SHA-256 of attempts whose folder was damaged: a late commit of such a one is damaged from the start
    snapshots : id to key to SHA-256: what each snapshot held when it became visible
    """

    values: dict[str, npt.NDArray[np.float32]] = dataclasses.field(default_factory=dict)
    stands: dict[str, str] = dataclasses.field(default_factory=dict)
    ever: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    tainted: set[str] = dataclasses.field(default_factory=set)
    spoilt: set[str] = dataclasses.field(default_factory=set)
    snapshots: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)

    def begin(self, column: Column) -> Column:
        """An attempt begins."""
        self.values[sha256(column)] = column.log_likelihood[0].astype(np.float32)
        return column

    def see_commits(self, found: dict[str, str], *, repairing: bool) -> None:
        """The commits that are there now, key to SHA-256: none is replaced, none goes but by repair of damage."""
        for key, sha in found.items():
            stood = self.stands.get(key)
            if stood is None:
                assert sha in self.values, f"commit {key[:8]} names values {sha[:8]} that nobody wrote"
                self.ever.setdefault(key, set()).add(sha)
                (self.tainted.add if sha in self.spoilt else self.tainted.discard)(key)
            else:
                assert sha == stood, f"commit {key[:8]} of {stood[:8]} was replaced by {sha[:8]}"
        for key in self.stands.keys() - found.keys():
            assert repairing and key in self.tainted, f"column {key[:8]} is lost: its commit has gone"
        self.stands = dict(found)

    def see_rows(self, keys: list[str], rows: npt.NDArray[np.float32]) -> dict[str, str]:
        """Rows that a reader got: each is one committed attempt's values, whole. Returns key to SHA-256."""
        held = {}
        for key, row in zip(keys, rows, strict=True):
            sha = values_sha256(row[None])
            assert sha in self.ever.get(key, set()), (
                f"the row of {key[:8]} is not what any commit named: {row.tolist()}, committed were "
                f"{[self.values[each].tolist() for each in self.ever.get(key, set())]}"
            )
            held[key] = sha
        assert len(held) == len(keys), "a column is there twice"
        return held

    def see_snapshot(self, snapshot: str, keys: list[str], rows: npt.NDArray[np.float32]) -> None:
        """A snapshot as a reader found it: the same whenever it is opened."""
        held = self.see_rows(keys, rows)
        assert self.snapshots.setdefault(snapshot, held) == held, f"snapshot {snapshot} has changed"
