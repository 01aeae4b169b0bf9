"""Store: one text set and everything ever scored on it, below one URL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

import numpy as np
import xarray as xr

from klray.errors import Reason, StoreDamagedError, StoreError
from klray.store import audit as audits
from klray.store import columns, failures, layout, plans, publishing, results, snapshots
from klray.store import root as roots
from klray.store.audit import Audit, Leftover
from klray.store.catalog import Catalog, read_catalog
from klray.store.columns import Column, Commit
from klray.store.failures import Failure
from klray.store.identity import Identity
from klray.store.objects import FolderObjects, Objects, open_objects, probe
from klray.store.snapshots import Manifest
from klray.store.text_facts import TextFacts, read_texts, text_facts, write_texts
from klray.texts import TextSet


class Store:
    """A store that is open. Every writer and reader in every process opens its own; nothing is kept in memory."""

    def __init__(self, objects: Objects, texts: TextFacts):
        self.objects = objects
        self.texts = texts

    @property
    def url(self) -> str:
        """Where the store is."""
        return self.objects.url

    @classmethod
    def create(
        cls,
        url: str,
        text_set: TextSet,
        storage_options: Mapping[str, Any] | None = None,
        single_writer: bool = False,
    ) -> Store:
        """Create the store for ``text_set``, or open the one that is there if it is for the same texts.

        On S3 it is found out first whether the server creates objects conditionally, which the store rests on as soon
        as two jobs write to it; ``single_writer`` promises that no two do, and leaves that out.

        Raises
        ------
        StoreError
            The store there is for another text set or of a newer schema, the place is taken by something else, or
            its server would let two jobs overwrite each other's commits.
        """
        objects = open_objects(url, storage_options)
        facts = text_facts(text_set)
        mend = roots.must_be_mended(objects, facts)
        if not single_writer and not isinstance(objects, FolderObjects):
            probe.check_conditional(objects)
        root = roots.claim(objects, facts, mend=mend)
        try:
            return cls(objects, read_texts(objects, root))
        except StoreDamagedError:  # its creation was cut short, or its texts were damaged: they are the ones given
            write_texts(objects, root, facts)
        return cls(objects, read_texts(objects, root))

    @classmethod
    def find(cls, url: str, text_set: TextSet, storage_options: Mapping[str, Any] | None = None) -> Store | None:
        """The store for ``text_set`` if there is one; creates nothing.

        Raises StoreError: the store there is for another text set or of a newer schema.
        """
        objects = open_objects(url, storage_options)
        root = roots.find_root(objects)
        if root is None:
            return None
        return cls(objects, read_texts(objects, roots.check_text_set(objects, root, text_facts(text_set))))

    @classmethod
    def open(cls, url: str, storage_options: Mapping[str, Any] | None = None) -> Store:
        """Open a store that exists.

        Raises StoreError: there is none, it is of a newer schema, or its text set was never written whole.
        """
        objects = open_objects(url, storage_options)
        return cls(objects, read_texts(objects, roots.read_root(objects)))

    # columns

    def committed_keys(self) -> set[str]:
        """Keys of all committed columns."""
        return set(columns.committed(self.objects))

    def is_committed(self, key: str) -> bool:
        """Whether the column of ``key`` is there now, from one request."""
        return self.objects.get(layout.commit_path(key)) is not None

    def commits(self, keys: list[str] | None = None) -> list[Commit]:
        """Commits of ``keys``, or all of them, sorted by key."""
        return columns.read_commits(self.objects, sorted(self.committed_keys()) if keys is None else keys)

    def add_column(self, column: Column) -> tuple[Commit, bool]:
        """Write a column and commit it; (commit, False if another attempt had committed the same column before).

        Raises
        ------
        StoreError
            The column has another number of texts, or another text set, than the store.
        """
        n_texts = column.log_likelihood.shape[1]
        if n_texts != len(self.texts.text_bytes) or column.identity.text_set != self.texts.fingerprint:
            raise StoreError(
                f"column {column.identity.repository}@{column.facts.get('revision', '')} has {n_texts:,} texts "
                f"(text set {column.identity.text_set[:8]}...), the store has {len(self.texts.text_bytes):,} "
                f"(text set {self.texts.fingerprint[:8]}...): it was scored with another text set; set texts= as the "
                "store has it"
            )
        return columns.add_column(self.objects, column)

    def read_column(self, commit: Commit) -> np.ndarray:
        """Log-likelihoods (layer, text) float32 of a committed column, in nats, checked against its SHA-256."""
        return columns.read_column(self.objects, commit)

    def read_sketches(self, keys: Iterable[str]) -> dict[str, np.ndarray]:
        """Weight sketches (bucket,) float32 of those of ``keys`` that have one, by key, checked against their SHA-256.

        Those that a commit's fact ``sketch`` (a snapshot's coordinate) gives the same label can be compared.
        """
        wanted = list(dict.fromkeys(keys))
        return columns.read_sketches(self.objects, columns.find_commits(self.objects, wanted))

    # failures

    def record_failure(self, identity: Identity, revision: str, reason: Reason, message: str, attempt: str) -> Failure:
        """Write why a checkpoint has no column."""
        return failures.record_failure(self.objects, identity, revision, reason, message, attempt)

    def failures(self) -> list[Failure]:
        """The latest failure of every checkpoint that is still without a column."""
        return failures.standing_failures(self.objects)

    def withdraw_failures(self, identities: Iterable[Identity]) -> None:
        """Remove the failures of what could not be resolved before and can be now."""
        failures.withdraw_failures(self.objects, identities)

    # plans

    def record_plan(self, family: str, keys: Iterable[str]) -> None:
        """Write down that the columns of ``keys`` are wanted."""
        plans.record_plan(self.objects, family, keys)

    def wanted_keys(self) -> dict[str, set[str]]:
        """Keys of all columns that were ever asked for, by family."""
        return plans.wanted_keys(self.objects)

    # snapshots

    def publish(self, report: publishing.Report | None = None) -> tuple[Manifest, bool]:
        """Gather all committed columns into a snapshot; (manifest, whether it is new).

        ``report`` is called with what is being done, how much of it is done, and of how much.
        """
        return publishing.publish(self.objects, self.texts, report)

    def catalog(self) -> Catalog:
        """Facts about all committed columns; of what is published no commit is read again."""
        return read_catalog(self.objects, snapshots.last_finished(self.objects)[0])

    def snapshot_ids(self) -> list[str]:
        """Ids of the snapshots, oldest first."""
        return snapshots.snapshot_ids(self.objects)

    def manifests(self, ids: list[str]) -> list[Manifest]:
        """What several snapshots hold."""
        return snapshots.read_manifests(self.objects, ids)

    def manifest(self, snapshot: str = "latest") -> Manifest:
        """What a snapshot holds."""
        return snapshots.read_manifest(self.objects, snapshot)

    def dataset(self, snapshot: str = "latest") -> xr.Dataset:
        """A snapshot as a Dask-backed Dataset, dims (model, text)."""
        return snapshots.open_snapshot(self.objects, snapshot)

    # audit

    def audit(self, report: Callable[[int, int], None] | None = None) -> Audit:
        """What is damaged, and what is left over; ``report`` is told how many of how many columns were checked."""
        return audits.audit(self.objects, report)

    def leftovers(self, catalog: Catalog) -> list[Leftover]:
        """What is left over from work that was cut short, came second or was replaced."""
        return audits.leftovers(self.objects, catalog.rows["path"].tolist(), self.objects.walk(""))

    def repair(self, found: Audit, grace: timedelta) -> list[str]:
        """Take damaged columns out and remove leftovers older than ``grace``; returns what was removed."""
        return audits.repair(self.objects, found, grace)

    # results

    def write_result(self, snapshot: str, name: str, result: xr.Dataset) -> str:
        """Write an analysis of a snapshot; returns its path in the store."""
        return results.write_result(self.objects, snapshot, name, result)

    def result_names(self, snapshot: str) -> list[str]:
        """Names of the finished analyses of a snapshot."""
        return results.result_names(self.objects, snapshot)

    def result(self, snapshot: str, name: str) -> xr.Dataset:
        """A finished analysis of a snapshot, Dask-backed."""
        return results.open_finished(self.objects, snapshot, name)


def open_dataset(url: str, snapshot: str = "latest", storage_options: Mapping[str, Any] | None = None) -> xr.Dataset:
    """Open a published snapshot of a store for reading, without loading it.

    Parameters
    ----------
    url : path of a folder, s3://bucket/prefix, or https://host/path
    snapshot : a snapshot's id, or ``latest``
    storage_options : options for s3fs, such as ``{"anon": True, "endpoint_url": ...}``, with ``"backend": "obstore"``
        for obstore; over https for fsspec's HTTPFileSystem

    Returns
    -------
    Dataset with ``log_likelihood`` (model, text) in nats, and coordinates with every fact about models and texts.

    Raises
    ------
    StoreError
        No store is there, it is of a newer schema, or it has no such snapshot.
    """
    objects = open_objects(url, storage_options)
    roots.read_root(objects)
    return snapshots.open_snapshot(objects, snapshot)


def open_result(
    url: str,
    name: str = "trajectory",
    snapshot: str = "latest",
    storage_options: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Open what ``klray analyze`` computed from a snapshot, without loading it.

    Parameters
    ----------
    url, snapshot, storage_options : as for ``open_dataset``
    name : the analysis, as ``analysis.name`` called it

    Returns
    -------
    Dataset with ``kl`` and ``kl_standard_error`` (model, other) in bits per byte, consecutive KL, exponents and maps;
    attributes hold the recipe that clipped values and removed texts.

    Raises
    ------
    StoreError
        No store is there, or the snapshot has no such result.
    """
    objects = open_objects(url, storage_options)
    roots.read_root(objects)
    return results.open_finished(objects, snapshots.read_manifest(objects, snapshot).id, name)
