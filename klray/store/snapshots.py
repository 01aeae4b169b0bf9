"""Snapshots: immutable arrays of committed columns that plain xarray opens.

A snapshot's folder is its own, its manifest is created last, and only then does LATEST point to it: a reader sees the
old snapshot or the new one, never a part.
"""

import dataclasses
import json
import logging

import xarray as xr

from klray.errors import StoreDamagedError, StoreError
from klray.store import layout
from klray.store.columns import committed
from klray.store.datasets import open_dataset_below
from klray.store.fields import MOST_MODELS, MOST_TEXTS, SHA256, bounded, form, objects_of, record, shown
from klray.store.objects import LARGEST_OBJECT, Objects
from klray.store.seal import damaged, read_parsed, sealed, unsealed
from klray.words.numbers import counted

log = logging.getLogger("klray")

MOVES = 100  # of LATEST by one publisher: every other publisher that finishes meanwhile costs one


@dataclasses.dataclass(frozen=True)
class Chunk:
    """One chunk of a snapshot's log_likelihood as it was written."""

    sha256: str
    fingerprint: str  # by which the place that holds it tells that it is the same still


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What makes a snapshot visible, and what its objects must hold."""

    id: str
    text_set: str
    n_models: int
    n_texts: int
    content: str  # SHA-256 over the key and the SHA-256 of each column
    created: str
    n_columns: int = 0
    generation: int = 0  # one more than that of the snapshot it was made from
    chunk_models: int = 0  # models in one chunk; the last chunk is filled up with NaN
    chunks: tuple[Chunk, ...] = ()
    objects: dict[str, str] = dataclasses.field(default_factory=dict)  # SHA-256 of all other objects of the snapshot
    n_left_out: int = 0  # columns that were committed and could not be read

    @property
    def order(self) -> tuple[int, int, str]:
        """Of two snapshots the one with the higher order is the later: made from the other, or with more columns."""
        return self.generation, self.n_columns, self.id

    def to_json(self) -> bytes:
        """Bytes of the manifest object, with a hash of their own."""
        return sealed(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, path: str, body: bytes) -> "Manifest":
        """Inverse of ``to_json``, for the object at ``path``; fields that this klray does not know are passed over.

        Raises ValueError: the bytes are not what was written.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        found = record(cls, {name: value for name, value in unsealed(body).items() if name in known})
        if not layout.is_snapshot_id(found.id) or path != layout.manifest_path(found.id):
            raise ValueError(f"it is the manifest of {shown(found.id)}")
        form(SHA256, content=found.content, text_set=found.text_set)
        bounded(MOST_MODELS, 1, n_models=found.n_models)
        bounded(MOST_MODELS, 0, n_columns=found.n_columns, generation=found.generation, n_left_out=found.n_left_out)
        bounded(MOST_TEXTS, 1, n_texts=found.n_texts)
        bounded(min(found.n_models, LARGEST_OBJECT // (4 * found.n_texts)), 0, chunk_models=found.chunk_models)
        if len(found.chunks) != (-(-found.n_models // found.chunk_models) if found.chunk_models else 0):
            raise ValueError(f"it has {counted(len(found.chunks), 'chunk')} for {counted(found.n_models, 'model')}")
        for chunk in found.chunks:
            form(SHA256, sha256=chunk.sha256)
        objects_of(found.objects, layout.DATASET_OBJECT)
        return found

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk of the log-likelihoods."""
        return 4 * self.chunk_models * self.n_texts


def snapshot_ids(objects: Objects) -> list[str]:
    """Ids of the finished snapshots, oldest first."""
    names = [name.removesuffix(".json") for name in objects.names(layout.SNAPSHOTS) if name.endswith(".json")]
    return [name for name in names if layout.is_snapshot_id(name)]


def latest_id(objects: Objects) -> str | None:
    """Id of the newest snapshot, or None before the first publication. Raises StoreError: LATEST is damaged."""
    found = objects.get_json(layout.LATEST)
    if found is not None and not layout.is_snapshot_id(str(found.get("id"))):
        raise StoreDamagedError(f"store {objects.url}: {layout.LATEST} names no snapshot; run klray publish to mend it")
    return None if found is None else str(found["id"])


def last_finished(objects: Objects, own: Manifest | None = None) -> tuple[Manifest | None, bool]:
    """(manifest of the last of the finished snapshots, whether LATEST points to it); None if there is none."""
    ids = snapshot_ids(objects)
    try:
        now = latest_id(objects)
    except StoreDamagedError as error:
        log.warning("%s", error)
        now = None
    # An id is above its parent's, so that those below LATEST's need not be read; unless LATEST names none of them.
    recent = [each for each in ids if each >= now] if now in ids else ids
    found = read_manifests(objects, recent)
    if not found and recent != ids:
        found = read_manifests(objects, ids)  # the newest are damaged
    last = max([*found, *([own] if own else [])], key=lambda manifest: manifest.order, default=None)
    return last, last is None or last.id == now


def move_latest(objects: Objects, own: Manifest | None = None) -> Manifest | None:
    """Point LATEST to the last of the finished snapshots and return its manifest; None if there is none.

    Every publisher does so after it has finished, and looks again after it has written: whoever writes last has seen
    all the others. A publisher that died before is made up for by the next one.
    """
    for _ in range(MOVES):
        last, settled = last_finished(objects, own)
        if last is None or settled:
            return last
        objects.put(layout.LATEST, json.dumps({"id": last.id}).encode())
    raise StoreError(f"store {objects.url}: {layout.LATEST} does not stay as it is written; is the place sound?")


def read_manifest(objects: Objects, snapshot: str = "latest") -> Manifest:
    """Manifest of a snapshot; ``latest`` stands for the newest.

    Raises StoreError: nothing was published yet, or no snapshot has this id.
    """
    found = latest_id(objects) if snapshot == "latest" else snapshot
    if found is None:
        there = f" (committed: {counted(len(committed(objects)), 'column')})" if objects.listable else ""
        raise StoreError(f"store {objects.url} has no snapshot yet{there}; run: klray publish store.url={objects.url}")
    path = layout.manifest_path(found)
    asked = [path] if layout.is_snapshot_id(found) else []
    manifest = next((each for _, each in read_parsed(objects, asked, Manifest.from_json)), None)
    if manifest is None:
        there = f"; it has {', '.join(snapshot_ids(objects)[-5:]) or 'none'} (newest last)" if objects.listable else ""
        raise StoreError(f"snapshot {shown(found)[1:-1]}: store {objects.url} has no such snapshot{there}")
    if isinstance(manifest, Exception):
        raise StoreDamagedError(
            f"store {objects.url}: {path} is damaged ({manifest}); name another snapshot, or run klray publish for a "
            "new one"
        ) from manifest
    return manifest


def read_manifests(objects: Objects, ids: list[str]) -> list[Manifest]:
    """Manifests of snapshots, several at a time; those that are not there, or cannot be read, are left out."""
    manifests = []
    paths = [layout.manifest_path(each) for each in ids]
    for path, found in read_parsed(objects, paths, Manifest.from_json):
        if isinstance(found, Exception):
            log.warning("%s of store %s cannot be read (%s)", path, objects.url, found)
        else:
            manifests.append(found)
    return manifests


def damaged_objects(objects: Objects, manifest: Manifest) -> dict[str, str]:
    """Objects of a snapshot that are not what was written, and what is wrong with each.

    Small objects are hashed; chunks must have the fingerprint that they had.
    """
    folder = layout.snapshot_path(manifest.id)
    found = damaged(objects, {f"{folder}/{name}": sha256 for name, sha256 in manifest.objects.items()})
    prints = objects.fingerprints(f"{folder}/log_likelihood/c") if manifest.chunks else {}
    for number, chunk in enumerate(manifest.chunks):
        path = layout.chunk_path(manifest.id, number)
        if prints.get(path) != chunk.fingerprint:  # a store that was moved has others; its bytes are what counts
            found.update(damaged(objects, {path: chunk.sha256}, manifest.chunk_bytes))
    return found


def open_snapshot(objects: Objects, snapshot: str = "latest") -> xr.Dataset:
    """The snapshot as a Dataset with dims (model, text), Dask-backed."""
    manifest = read_manifest(objects, snapshot)
    hashes = {**manifest.objects, **{layout.chunk_name(n): chunk.sha256 for n, chunk in enumerate(manifest.chunks)}}
    return open_dataset_below(
        objects,
        layout.snapshot_path(manifest.id),
        "klray publish makes another snapshot from the columns",
        sizes={"model": manifest.n_models, "text": manifest.n_texts},
        hashes=hashes,
        n_objects=len(hashes),
        whole=".*" if hashes else "log_likelihood",
    )
