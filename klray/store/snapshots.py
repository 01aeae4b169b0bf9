"""Snapshots: committed columns gathered into one immutable array that plain xarray opens.

A snapshot's folder is its own, its manifest is created last, and only then does LATEST point to it: a reader sees the
old snapshot or the new one, never a part. Models keep their places: a snapshot starts with those of the one before.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from klray.errors import StoreError
from klray.store import layout
from klray.store.columns import Commit, committed_keys, read_column, read_commits
from klray.store.datasets import open_dataset_below, write_dataset
from klray.store.objects import Objects

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

    @classmethod
    def from_json(cls, body: bytes) -> Manifest:
        """Inverse of ``to_json``."""
        fields = json.loads(body)
        fields["keys"] = tuple(fields["keys"])
        return cls(**fields)


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
    body = objects.get(layout.LATEST)
    return None if body is None else str(json.loads(body)["id"])


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
    body = objects.get(layout.manifest_path(found)) if layout.is_name(found) else None
    if body is None:
        raise StoreError(
            f"snapshot={found}: store {objects.url} has no such snapshot; "
            f"it has {', '.join(snapshot_ids(objects)[-5:]) or 'none'} (newest last)"
        )
    return Manifest.from_json(body)


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
    previous = read_manifest(objects, "latest") if latest_id(objects) else None
    known = previous.keys if previous else ()
    gone = [key for key in known if key not in keys]
    if gone:  # a damaged column was taken out: what is left is gathered anew
        previous, known = None, ()
    fresh = read_commits(objects, sorted(keys - set(known)))
    if previous and not fresh:
        return previous, False
    fresh.sort(key=lambda commit: _order(commit))
    commits = [*read_commits(objects, list(known)), *fresh]
    content = hashlib.sha256("".join(commit.key + commit.sha256 for commit in commits).encode()).hexdigest()
    now = datetime.now(UTC)
    identifier = f"{now:%Y%m%dT%H%M%SZ}-{content[:8]}"
    if not objects.create(f"{layout.snapshot_path(identifier)}.claim", identifier.encode()):
        raise StoreError(
            f"store {objects.url}: another publisher is writing snapshot {identifier} this second; run publish again"
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
        created=now.isoformat(timespec="seconds"),
    )
    objects.create(layout.manifest_path(identifier), manifest.to_json())
    newest = read_manifest(objects, "latest") if latest_id(objects) else None
    if newest is None or newest.n_models <= manifest.n_models:  # a slower publisher of fewer columns must not win
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
        if kept and old is not None:
            block[:kept] = old[start : start + kept].compute(scheduler="synchronous")
        held: tuple[str, npt.NDArray[np.float32]] | None = None
        for place in range(kept, stop - start):
            commit, row = rows[start + place]
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
        "model": strings([_label(commit, row) for commit, row in rows]),
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


def _label(commit: Commit, row: int) -> str:
    identity = commit.identity
    label = f"{identity.repository}@{commit.facts.get('revision') or identity.commit[:12]}"
    if identity.quantization != "none":
        label += f"+{identity.quantization}"
    if commit.layers[row] >= 0:
        label += f"#layer{commit.layers[row]}"
    return label
