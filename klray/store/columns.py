"""Columns: one checkpoint's log-likelihoods, written by one attempt, visible once committed.

Writers share no object: every attempt has its own folder, and the commit is created, never replaced. A writer that dies
leaves a folder that no commit names; a writer that comes second finds the commit there and its folder is an orphan.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from klray.errors import StoreError
from klray.store import layout
from klray.store.identity import Identity
from klray.store.objects import Objects


@dataclasses.dataclass(frozen=True)
class Column:
    """What a scorer hands to the store.

    log_likelihood : (layer, text) in nats; stored as float32
    layers : (layer,) layer of each row; -1 is the model's own output
    n_tokens : (text,) counted tokens; a text without any has log-likelihood 0
    facts : what is known of the checkpoint (revision, family, run, step, ...), JSON values
    """

    identity: Identity
    log_likelihood: npt.NDArray[np.floating]
    layers: tuple[int, ...]
    n_tokens: npt.NDArray[np.integer]
    facts: Mapping[str, Any]
    versions: Mapping[str, str]
    timings: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Commit:
    """A committed column: where it is, what it holds and where it came from."""

    key: str
    path: str
    attempt: str
    sha256: str  # of the stored float32 values, C order, little endian
    identity: Identity
    layers: tuple[int, ...]
    facts: dict[str, Any]
    versions: dict[str, str]
    timings: dict[str, float]
    created: str  # ISO 8601, UTC

    def to_json(self) -> bytes:
        """Bytes of the commit object."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1).encode()

    @classmethod
    def from_json(cls, body: bytes) -> Commit:
        """Inverse of ``to_json``."""
        fields = json.loads(body)
        fields["identity"] = Identity(**fields["identity"])
        fields["layers"] = tuple(fields["layers"])
        return cls(**fields)


def values_sha256(values: npt.NDArray[np.float32]) -> str:
    """SHA-256 of (layer, text) float32 values as they are stored."""
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f4").tobytes()).hexdigest()


def write_column(objects: Objects, column: Column, attempt: str) -> Commit:
    """Write the column's group below a folder of its own; nobody sees it before ``commit_column``."""
    values = np.ascontiguousarray(column.log_likelihood, dtype=np.float32)
    n_layers, n_texts = values.shape
    assert n_layers == len(column.layers) and n_texts == len(column.n_tokens)
    key = column.identity.key
    path = layout.column_path(column.identity.repository, str(column.facts.get("revision", "")), key, attempt)
    group = zarr.open_group(objects.zarr(path), mode="w-", zarr_format=3)
    dims, _, unit, meaning = layout.ARRAYS["log_likelihood"]
    array = group.create_array(
        "log_likelihood",
        shape=values.shape,
        chunks=values.shape,
        dtype="float32",
        fill_value=float("nan"),
        dimension_names=dims,
        attributes={"units": unit, "long_name": meaning, "layers": list(column.layers)},
        config={"write_empty_chunks": True},  # an all-fill chunk would otherwise be no object, and read as if written
    )
    array[:] = values
    dims, dtype, unit, meaning = layout.ARRAYS["status"]
    status = group.create_array(
        "status",
        shape=(n_texts,),
        chunks=(n_texts,),
        dtype=dtype,
        fill_value=0,
        dimension_names=dims,
        attributes={"units": unit, "long_name": meaning},
        config={"write_empty_chunks": True},
    )
    status[:] = (np.asarray(column.n_tokens) == 0).astype(np.uint8)
    objects.settle(path)
    return Commit(
        key=key,
        path=path,
        attempt=attempt,
        sha256=values_sha256(values),
        identity=column.identity,
        layers=column.layers,
        facts={**column.facts, "tokens": int(np.sum(column.n_tokens))},
        versions=dict(column.versions),
        timings=dict(column.timings),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def commit_column(objects: Objects, commit: Commit) -> bool:
    """Make a written column visible; False if another attempt's commit stands already, which then is the column."""
    return objects.create(layout.commit_path(commit.key), commit.to_json())


def committed_keys(objects: Objects) -> set[str]:
    """Keys of all committed columns, from one listing."""
    return {name.removesuffix(".json") for name in objects.names(layout.COMMITS) if name.endswith(".json")}


def read_commits(objects: Objects, keys: list[str]) -> list[Commit]:
    """The commits of ``keys``, in that order.

    Raises
    ------
    StoreError
        A commit is missing or unreadable.
    """
    commits = []
    for key, body in zip(keys, objects.get_many([layout.commit_path(key) for key in keys]), strict=True):
        if body is None:
            raise StoreError(f"store {objects.url}: there is no commit {key}; it was removed by hand, or never made")
        try:
            commits.append(Commit.from_json(body))
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"store {objects.url}: commit {layout.commit_path(key)} cannot be read ({error}); "
                "remove that object and score the checkpoint again"
            ) from error
    return commits


def read_column(objects: Objects, commit: Commit) -> npt.NDArray[np.float32]:
    """Log-likelihoods (layer, text) of a committed column, in nats, checked against the commit's SHA-256.

    Raises
    ------
    StoreError
        The column's objects are missing or hold other bytes than were committed.
    """
    where = f"store {objects.url}: column {commit.path} of {commit.identity.repository}"
    try:
        group = zarr.open_group(objects.zarr(commit.path, read_only=True), mode="r", zarr_format=3)
        values = np.asarray(group["log_likelihood"][:], dtype=np.float32)
        found = values_sha256(values)
    except (FileNotFoundError, KeyError) as error:
        raise StoreError(f"{where} is committed but its objects are missing; {_REQUEUE.format(commit.key)}") from error
    except (ValueError, RuntimeError) as error:  # metadata that is no JSON, a chunk that does not decompress
        values, found = np.empty(0, np.float32), f"unreadable bytes ({error})"
    if found != commit.sha256:
        raise StoreError(
            f"{where} does not hold what was committed: SHA-256 {commit.sha256[:12]} was committed, "
            f"{found[:80]} is there; {_REQUEUE.format(commit.key)}"
        )
    return values


_REQUEUE = "remove commits/{}.json and score the checkpoint again"
