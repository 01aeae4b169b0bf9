"""Store: one text set and everything ever scored on it, below one URL."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import xarray as xr

from klray.errors import StoreDamagedError, StoreError
from klray.store import audit as audits
from klray.store import begun, claims, columns, jobs, publishing, records, results, snapshots
from klray.store import root as roots
from klray.store.audit import Audit, Leftover
from klray.store.catalog import Catalog, read_catalog
from klray.store.columns import Column, Commit
from klray.store.objects import FolderObjects, Objects, open_objects, probe
from klray.store.snapshots import Manifest
from klray.store.text_facts import TextFacts, publish_texts, read_texts, text_facts, write_texts
from klray.texts import TextSet
from klray.words.numbers import counted

P = ParamSpec("P")
R = TypeVar("R")


def _of_objects(function: Callable[Concatenate[Objects, P], R]) -> "Callable[Concatenate[Store, P], R]":
    """A function of a store's objects as a method of the store."""

    @functools.wraps(function)
    def method(store: "Store", *args: P.args, **kwargs: P.kwargs) -> R:
        return function(store.objects, *args, **kwargs)

    return method


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
    ) -> "Store":
        """Create the store for ``text_set``, or open the one that is there if it is for the same texts.

        On S3 it is found out first whether the server creates objects conditionally, which the store rests on as soon
        as two jobs write to it; ``single_writer`` promises that no two do, and leaves that out.

        Raises StoreError: the store there is for another text set or of a newer schema, the place is taken by something
        else, or its server would let two jobs overwrite each other's commits.
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
    def find(cls, url: str, text_set: TextSet, storage_options: Mapping[str, Any] | None = None) -> "Store | None":
        """The store for ``text_set`` if there is one; creates nothing.

        Raises StoreError: the store there is for another text set or of a newer schema.
        """
        objects = open_objects(url, storage_options)
        root = roots.find_root(objects)
        if root is None:
            return None
        return cls(objects, read_texts(objects, roots.check_text_set(objects, root, text_facts(text_set))))

    @classmethod
    def open(cls, url: str, storage_options: Mapping[str, Any] | None = None) -> "Store":
        """Open a store that exists.

        Raises StoreError: there is none, it is of a newer schema, or its text set was never written whole.
        """
        objects = open_objects(url, storage_options)
        return cls(objects, read_texts(objects, roots.read_root(objects)))

    def publish_texts(self, text_set: TextSet) -> None:
        """Put the texts themselves into the store, where every reader sees them.

        Raises StoreError: they are not the store's.
        """
        publish_texts(self.objects, self.texts, text_set)

    # columns

    def committed_keys(self) -> set[str]:
        """Keys of all committed columns."""
        return set(columns.committed(self.objects))

    def commits(self, keys: list[str] | None = None) -> list[Commit]:
        """Commits of ``keys``, or all of them, sorted by key."""
        return columns.read_commits(self.objects, sorted(self.committed_keys()) if keys is None else keys)

    def add_column(self, column: Column) -> tuple[Commit, bool]:
        """Write a column and commit it; (commit, False if another attempt had committed the same column before).

        Raises StoreError: the column has another number of texts, or another text set, than the store.
        """
        n_texts = column.log_likelihood.shape[1]
        if n_texts != len(self.texts.text_bytes) or column.identity.text_set != self.texts.fingerprint:
            raise StoreError(
                f"column {column.identity.repository}@{column.facts.get('revision', '')} has "
                f"{counted(n_texts, 'text')} (text set {column.identity.text_set[:8]}...), the store has "
                f"{len(self.texts.text_bytes):,} (text set {self.texts.fingerprint[:8]}...): it was scored with "
                "another text set; set texts= as the store has it"
            )
        return columns.add_column(self.objects, column)

    def read_column(self, commit: Commit) -> npt.NDArray[np.float32]:
        """Log-likelihoods (layer, text) float32 of a committed column, in nats, checked against its SHA-256."""
        return columns.read_column(self.objects, commit, len(self.texts.text_bytes))

    is_committed = _of_objects(columns.is_committed)
    read_sketches = _of_objects(columns.read_sketches)
    record_failure = _of_objects(records.record_failure)
    failures = _of_objects(records.standing_failures)
    withdraw_failures = _of_objects(records.withdraw_failures)
    record_plan = _of_objects(records.record_plan)
    wanted_keys = _of_objects(records.wanted_keys)
    beat = _of_objects(jobs.beat)
    heard_jobs = _of_objects(jobs.heard_jobs)
    job_beats = _of_objects(jobs.job_beats)
    heard_job = _of_objects(jobs.heard_job)
    claim = _of_objects(claims.claim)
    release = _of_objects(claims.release)
    withdraw_claims = _of_objects(claims.withdraw)
    standing_claims = _of_objects(claims.standing_claims)

    # snapshots

    def publish(self, report: publishing.Report | None = None) -> tuple[Manifest, bool]:
        """Gather all committed columns into a snapshot; (manifest, whether it is new).

        ``report`` is called with what is being done, how much of it is done, and of how much. Damaged columns are said
        and left out, or kept as the snapshot before has them.
        """
        return publishing.publish(self.objects, self.texts, report)

    def catalog(self) -> Catalog:
        """Facts about all committed columns; of what is published no commit is read again."""
        return read_catalog(self.objects, snapshots.last_finished(self.objects)[0], self.texts.fingerprint)

    snapshot_ids = _of_objects(snapshots.snapshot_ids)
    manifests = _of_objects(snapshots.read_manifests)
    manifest = _of_objects(snapshots.read_manifest)
    dataset = _of_objects(snapshots.open_snapshot)
    write_result = _of_objects(results.write_result)
    publish_report = _of_objects(results.publish_report)
    result_names = _of_objects(results.result_names)
    result = _of_objects(results.open_finished)
    begun_results = _of_objects(begun.begun_results)

    def audit(self, report: Callable[[int, int], None] | None = None) -> Audit:
        """What is damaged, and what is left over; ``report`` is told how many of how many columns were looked at."""
        return audits.audit(self.objects, len(self.texts.text_bytes), self.texts.fingerprint, report)

    repair = _of_objects(audits.repair)
    superseded = _of_objects(audits.superseded)
    remove_snapshots = _of_objects(audits.remove_snapshots)

    def leftovers(self, catalog: Catalog) -> list[Leftover]:
        """What is left over from work that was cut short, came second or was replaced."""
        unreadable = [each.key for each in catalog.damaged]
        return audits.leftovers(self.objects, catalog.rows["path"].tolist(), self.objects.walk(""), unreadable)


def open_dataset(url: str, snapshot: str = "latest", storage_options: Mapping[str, Any] | None = None) -> xr.Dataset:
    """Open a published snapshot of a store for reading, without loading it.

    ``url`` is the path of a folder, s3://bucket/prefix, or https://host/path; ``snapshot`` an id, or ``latest``.
    ``storage_options`` are those of s3fs, such as ``{"anon": True, "endpoint_url": ...}``; ``"backend": "obstore"``
    among them asks through obstore. Over https they are those of fsspec's HTTPFileSystem.

    Returns a Dataset with ``log_likelihood`` (model, text) in nats, and coordinates with every fact about models and
    texts. Raises StoreError: no store is there, it is of a newer schema, or it has no such snapshot.
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
    """Open what ``klray analyze`` computed from a snapshot, and ``analysis.name`` called ``name``, without loading it.

    Returns a Dataset with ``kl`` and ``kl_standard_error`` (model, other) in bits per byte, consecutive KL, exponents
    and maps; attributes hold the recipe that clipped values and removed texts. The rest is as for ``open_dataset``.

    Raises StoreError: no store is there, or the snapshot has no such result.
    """
    objects = open_objects(url, storage_options)
    roots.read_root(objects)
    return results.open_finished(objects, snapshots.read_manifest(objects, snapshot).id, name)
