"""Snapshots: committed columns gathered into one immutable array that plain xarray opens.

A snapshot's folder is its own, its manifest is created last, and only then does LATEST point to it: a reader sees the
old snapshot or the new one, never a part. Models keep their places: a snapshot starts with those of the one before.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import uuid
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from klray.errors import StoreError
from klray.store import layout
from klray.store.columns import Commit, committed_keys, read_column, read_commits, values_sha256
from klray.store.datasets import open_dataset_below, write_dataset
from klray.store.objects import Objects

log = logging.getLogger("klray")

CHUNK_BYTES = 32 * 2**20  # 10-80 MB suit Dask; smaller objects are read-poor on S3


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What makes a snapshot visible. ``keys`` are in the order of the snapshot's columns."""

    id: str
    text_set: str
    keys: tuple[str, ...]
    n_models: int
    n_texts: int
    content: str  # SHA-256 over the keys and the SHA-256 of each column
    created: str

    def to_json(self) -> bytes:
        """Bytes of the manifest object."""
        return json.dumps(dataclasses.asdict(self), indent=1).encode()


@dataclasses.dataclass(frozen=True)
class TextFacts:
    """What a store keeps of its text set: (N,) bytes, (N,) domain labels, name and fingerprint."""

    name: str
    fingerprint: str
    text_bytes: npt.NDArray[np.int32]
    domains: tuple[str, ...]


def snapshot_ids(objects: Objects) -> list[str]:
    """Ids of the finished snapshots, oldest first."""
    names = objects.names(layout.SNAPSHOTS)
    return [name.removesuffix(".json") for name in names if name.endswith(".json") and name != "LATEST.json"]


def latest_id(objects: Objects) -> str | None:
    """Id of the newest snapshot, or None before the first publication."""
    found = objects.get_json(layout.LATEST)
    return None if found is None else str(found["id"])


def read_manifest(objects: Objects, snapshot: str) -> Manifest:
    """Manifest of a snapshot; ``latest`` stands for the newest.

    Raises
    ------
    StoreError
        Nothing was published yet, or no snapshot has this id.
    """
    found = latest_id(objects) if snapshot == "latest" else snapshot
    if found is None:
        raise StoreError(
            f"store {objects.url} has no snapshot yet ({len(committed_keys(objects)):,} columns are committed); "
            f"run: klray publish store.url={objects.url}"
        )
    fields = objects.get_json(layout.manifest_path(found)) if layout.is_name(found) else None
    if fields is None:
        raise StoreError(
            f"analysis.snapshot={found}: store {objects.url} has no such snapshot; "
            f"it has {', '.join(snapshot_ids(objects)[-5:]) or 'none'} (newest last)"
        )
    return Manifest(**{**fields, "keys": tuple(fields["keys"])})


def publish(objects: Objects, texts: TextFacts) -> tuple[Manifest, bool]:
    """Gather every committed column into a snapshot; (manifest, True), or (the latest, False) when nothing is new.

    Reads only columns that the latest snapshot lacks; the others are copied from it, one chunk at a time.

    Raises
    ------
    StoreError
        There is no column, a column is damaged, or another publisher made the same snapshot at the same moment.
    """
    keys = committed_keys(objects)
    if not keys:
        raise StoreError(f"store {objects.url} has no committed column to publish; run: klray score")
    latest = read_manifest(objects, "latest") if latest_id(objects) else None
    # A damaged column that was taken out leaves a gap: what is left is gathered anew.
    previous = latest if latest and keys.issuperset(latest.keys) else None
    known = previous.keys if previous else ()
    fresh = sorted(read_commits(objects, sorted(keys - set(known))), key=_order)
    commits = [*read_commits(objects, list(known)), *fresh]
    content = hashlib.sha256("".join(commit.key + commit.sha256 for commit in commits).encode()).hexdigest()
    if previous and previous.content == content:
        return previous, False
    now = datetime.now(UTC)
    identifier = f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03d}Z-{content[:8]}"
    if not objects.create(f"{layout.snapshot_path(identifier)}.claim", uuid.uuid4().hex.encode()):
        raise StoreError(
            f"store {objects.url}: another publisher is writing snapshot {identifier} this moment; run publish again"
        )
    data = _dataset(objects, texts, commits, previous, identifier)
    write_dataset(objects, layout.snapshot_path(identifier), data)
    manifest = Manifest(
        id=identifier,
        text_set=texts.fingerprint,
        keys=tuple(commit.key for commit in commits),
        n_models=data.sizes["model"],
        n_texts=data.sizes["text"],
        content=content,
        created=now.isoformat(timespec="milliseconds"),
    )
    objects.create(layout.manifest_path(identifier), manifest.to_json())
    now_latest = latest_id(objects)
    unmoved = now_latest is None or (latest is not None and now_latest == latest.id)
    if unmoved or len(read_manifest(objects, "latest").keys) <= len(manifest.keys):
        # else another publisher was faster and has gathered more
        objects.put(layout.LATEST, json.dumps({"id": identifier}).encode())
    return manifest, True


def open_snapshot(objects: Objects, snapshot: str) -> xr.Dataset:
    """The snapshot as a Dataset with dims (model, text), Dask-backed."""
    manifest = read_manifest(objects, snapshot)
    return open_dataset_below(objects, layout.snapshot_path(manifest.id))


def _order(commit: Commit) -> tuple[str, str, int, str]:
    step = commit.facts.get("step")
    return str(commit.facts.get("family", "")), commit.identity.repository, -1 if step is None else step, commit.key


def _dataset(
    objects: Objects, texts: TextFacts, commits: list[Commit], previous: Manifest | None, identifier: str
) -> xr.Dataset:
    rows = [(commit, row) for commit in commits for row in range(len(commit.layers))]
    n_old = previous.n_models if previous else 0
    n_texts = len(texts.text_bytes)
    rows_per_chunk = max(1, CHUNK_BYTES // (4 * n_texts))
    old = open_snapshot(objects, previous.id)["log_likelihood"].data if previous else None

    def read_rows(block_info: Any = None) -> npt.NDArray[np.float32]:
        (start, stop), _ = block_info[None]["array-location"]
        block = np.empty((stop - start, n_texts), dtype=np.float32)
        kept = max(0, min(stop, n_old) - start)
        copied = _copied(old, start, start + kept) if kept else block[:0]
        held: tuple[str, npt.NDArray[np.float32]] | None = None
        for place in range(stop - start):
            commit, row = rows[start + place]
            if place < len(copied) and values_sha256(copied[place : place + 1]) == commit.sha256:
                block[place] = copied[place]
                continue
            if held is None or held[0] != commit.key:
                held = commit.key, read_column(objects, commit)
            block[place] = held[1][row]
        return block

    chunks = da.core.normalize_chunks((rows_per_chunk, n_texts), shape=(len(rows), n_texts))
    values = da.map_blocks(read_rows, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0), np.float32))
    _, _, unit, meaning = layout.ARRAYS["log_likelihood"]
    data = xr.Dataset(
        {"log_likelihood": (("model", "text"), values, {"units": unit, "long_name": meaning})},
        coords=_coordinates(texts, rows),
        attrs={
            "title": "Log-likelihood of texts under language models",
            "snapshot": identifier,
            "text_set": texts.fingerprint,
            "text_set_name": texts.name,
            "schema": layout.SCHEMA_VERSION,
            "references": layout.REFERENCES,
        },
    )
    data["log_likelihood"].encoding = {"chunks": (min(rows_per_chunk, len(rows)), n_texts), "_FillValue": np.nan}
    return data


def _copied(old: Any, start: int, stop: int) -> npt.NDArray[np.float32]:
    """Rows of the snapshot before; none when they cannot be read, so that they are read from their columns."""
    try:
        rows: npt.NDArray[np.float32] = old[start:stop].compute(scheduler="synchronous")
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        log.warning("models %d to %d of the snapshot before cannot be read (%s): reading columns", start, stop, error)
        return np.empty((0, 0), np.float32)
    return rows


def _coordinates(texts: TextFacts, rows: list[tuple[Commit, int]]) -> dict[str, Any]:
    def strings(values: list[str]) -> Any:
        return np.array(values, dtype=np.dtypes.StringDType())

    def integers(name: str) -> Any:
        found = [commit.facts.get(name) for commit, _ in rows]
        return np.array([-1 if value is None else int(value) for value in found], dtype=np.int64)

    def facts(name: str) -> Any:
        return strings([str(commit.facts.get(name) or "") for commit, _ in rows])

    def identities(name: str) -> Any:
        return strings([str(getattr(commit.identity, name)) for commit, _ in rows])

    layers = np.array([commit.layers[row] for commit, row in rows], dtype=np.int64)
    none = "-1 when there is none"
    return {
        "model": strings(_labels(rows)),
        "key": ("model", strings([commit.key for commit, _ in rows]), {"long_name": "identity of the column"}),
        "repository": ("model", identities("repository")),
        "revision": ("model", facts("revision")),
        "commit": ("model", identities("commit")),
        "family": ("model", facts("family")),
        "run": ("model", facts("run"), {"long_name": "training run: its checkpoints are one trajectory"}),
        "step": ("model", integers("step"), {"long_name": f"training step, {none}"}),
        "size": ("model", facts("size")),
        "seed": ("model", integers("seed"), {"long_name": f"seed of the training run, {none}"}),
        "base_model": ("model", facts("base_model")),
        "architecture": ("model", facts("architecture")),
        "dtype": ("model", identities("dtype")),
        "quantization": ("model", identities("quantization")),
        "lens": ("model", identities("lens")),
        "layer": ("model", layers, {"long_name": "layer, -1 for the model's own output"}),
        "parameters": ("model", integers("parameters")),
        "tokens": ("model", integers("tokens"), {"long_name": "counted tokens over all texts"}),
        "text": ("text", np.arange(len(texts.text_bytes), dtype=np.int64)),
        "text_bytes": ("text", texts.text_bytes, {"units": "bytes", "long_name": layout.ARRAYS["text_bytes"][3]}),
        "domain": ("text", strings(list(texts.domains))),
    }


def _labels(rows: list[tuple[Commit, int]]) -> list[str]:
    """A name for every row, each another: repository@revision, and what tells it from others of that revision."""
    labels = []
    for commit, row in rows:
        identity = commit.identity
        label = f"{identity.repository}@{commit.facts.get('revision') or identity.commit[:12]}"
        label += "".join(
            f"+{each}" for each in (identity.dtype, identity.quantization) if each not in ("float32", "none")
        )
        labels.append(label + (f"#layer{commit.layers[row]}" if commit.layers[row] >= 0 else ""))
    counts = Counter(labels)  # a branch that has moved: the same revision at two commits
    return [
        f"{label}~{commit.identity.commit[:8]}" if counts[label] > 1 else label
        for label, (commit, _) in zip(labels, rows, strict=True)
    ]
