"""Columns: one checkpoint's log-likelihoods, written by one attempt, visible once committed.

Writers share no object: every attempt has its own folder, and the commit is created, never replaced. A writer that dies
leaves a folder that no commit names; a writer that comes second finds the commit there and its folder is an orphan.
"""

import dataclasses
import logging
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from klray.errors import StoreDamagedError, StoreError, StoreUnreachableError, refuse_unfit
from klray.store import layout
from klray.store.datasets import UNREADABLE, encode_group, read_arrays
from klray.store.fields import ATTEMPT, MOST_LAYERS, SHA256, bounded, form, objects_of, record, shown
from klray.store.identity import Identity
from klray.store.objects import LARGEST_OBJECT, Listed, Objects
from klray.store.seal import read_parsed, read_whole, sealed, sha256_of, unsealed
from klray.words.numbers import counted
from klray.words.outside import fault

log = logging.getLogger("klray")

COMMIT_WITHIN_SECONDS = 600.0  # of the beginning of its writing; verify.grace_hours is far above

LABEL_BYTES = 2**26  # of the layers of one commit together


@dataclasses.dataclass(frozen=True)
class Column:
    """What a scorer hands to the store.

    log_likelihood : (layer, text) in nats; stored as float32
    layers : (layer,) layer of each row; -1 is the model's own output
    n_tokens : (text,) counted tokens; a text without any has log-likelihood 0. None where nobody knows them
    facts : what is known of the checkpoint (revision, family, run, step, ...), JSON values
    weight_sketch : (bucket,) float32 of the checkpoint's parameters, one for all layers; ``facts["sketch"]`` says with
        which others it can be compared. A column without one is the same column.
    """

    identity: Identity
    log_likelihood: npt.NDArray[np.floating]
    layers: tuple[int, ...]
    n_tokens: npt.NDArray[np.integer] | None
    facts: Mapping[str, Any]
    versions: Mapping[str, str]
    timings: Mapping[str, float]
    weight_sketch: npt.NDArray[np.float32] | None = None


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
    objects: dict[str, str] = dataclasses.field(default_factory=dict)  # SHA-256 of each object below path

    @property
    def stored(self) -> "StoredColumn":
        """Where the column is, and what its bytes must be."""
        return StoredColumn(self.key, self.identity.repository, self.path, self.sha256, len(self.layers))

    @property
    def unfit(self) -> str:
        """Which of its facts no catalog can take, and why; "" as a rule. Another program than klray wrote it then."""
        return fault({**dataclasses.asdict(self.identity), **self.facts})

    def to_json(self) -> bytes:
        """Bytes of the commit object, with a hash of their own."""
        return sealed(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, path: str, body: bytes) -> "Commit":
        """Inverse of ``to_json``, for the object at ``path``.

        Raises ValueError: the bytes are not what was written.
        """
        commit = record(cls, unsealed(body))
        form(SHA256, sha256=commit.sha256)
        form(ATTEMPT, attempt=commit.attempt)
        if commit.key != commit.identity.key:
            raise ValueError("its key is not that of its identity")
        if path != layout.commit_path(commit.key):
            raise ValueError(f"it is the commit of {commit.key}")
        if not layout.is_column_path(commit.path, commit.key) or not commit.path.endswith(f"-{commit.attempt[:8]}"):
            raise ValueError(f"its path is {shown(commit.path)}")
        objects_of(commit.objects, layout.COLUMN_OBJECT)
        if commit.objects and commit.objects.get(layout.values_path("")[1:]) != commit.sha256:
            raise ValueError("its objects are not those of its values")
        if not commit.layers or len(set(commit.layers)) < len(commit.layers):
            raise ValueError("it has no layer, or one of them twice")
        bounded(MOST_LAYERS, -1, layers=min(commit.layers), layer=max(commit.layers))
        if len(commit.layers) * len(body) > LABEL_BYTES:  # each layer is a model, with all facts for its labels
            raise ValueError(f"{counted(len(commit.layers), 'layer')} with facts of {len(body):,} bytes are too much")
        return commit


@dataclasses.dataclass(frozen=True)
class StoredColumn:
    """Where a committed column is, and what its bytes must be."""

    key: str
    repository: str
    path: str
    sha256: str
    n_layers: int


def values_sha256(values: npt.NDArray[np.float32]) -> str:
    """SHA-256 of (layer, text) float32 values as they are stored."""
    return sha256_of(np.ascontiguousarray(values, dtype="<f4").tobytes())


def encode_column(column: Column, attempt: str) -> tuple[dict[str, bytes], Commit]:
    """The objects of a column by their keys, and the commit that will make them visible.

    Raises KlrayError: its identity or a fact is none that a store can keep.
    """
    fields = {name: getattr(column, name) for name in ("facts", "versions", "timings")}
    refuse_unfit("column", {**dataclasses.asdict(column.identity), **fields})
    values = np.ascontiguousarray(column.log_likelihood, dtype="<f4")
    known = column.n_tokens is not None
    n_tokens = np.asarray(column.n_tokens) if known else np.ones(values.shape[1], np.int64)
    assert values.shape == (len(column.layers), len(n_tokens))
    arrays = {"log_likelihood": values, "status": (n_tokens == 0).astype(np.uint8)}
    if column.weight_sketch is not None:
        arrays["weight_sketch"] = np.ascontiguousarray(column.weight_sketch, dtype="<f4")
    bodies = encode_group(
        arrays,
        {"log_likelihood": {"layers": list(column.layers)}},
        compressors=None,  # the bytes of float32 noise: 8 % smaller at best, and then hashes would not be theirs
        config={"write_empty_chunks": True},  # an all-fill chunk would be no object, and read as if written
    )
    key = column.identity.key
    path = layout.column_path(column.identity.repository, str(column.facts.get("revision", "")), key, attempt)
    commit = Commit(
        key=key,
        path=path,
        attempt=attempt,
        sha256=values_sha256(values),
        identity=column.identity,
        layers=column.layers,
        facts={**column.facts, **({"tokens": int(n_tokens.sum())} if known else {})},
        versions=dict(column.versions),
        timings=dict(column.timings),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        objects={name: sha256_of(body) for name, body in sorted(bodies.items())},
    )
    return {f"{path}/{name}": body for name, body in bodies.items()}, commit


def add_column(objects: Objects, column: Column) -> tuple[Commit, bool]:
    """Write and commit a column; (its commit, whether this attempt is the first)."""
    start = time.time()
    bodies, commit = encode_column(column, uuid.uuid4().hex)
    return commit, put_and_commit(objects, bodies, commit, start)


def put_and_commit(objects: Objects, bodies: Mapping[str, bytes], commit: Commit, start: float) -> bool:
    """Write a column's objects and commit it, begun at ``start`` (seconds of the day); whether this is the first.

    A process that was stopped in between, on a laptop or by a debugger, may find that its folder was removed meanwhile
    as left over (``klray.store.audit.repair``): after ``COMMIT_WITHIN_SECONDS`` the same bytes are put there again.
    """
    objects.put_many(bodies)
    first = commit_column(objects, commit)
    seconds = time.time() - start  # the time of day: it goes on while the process or the machine is stopped
    if first and seconds > COMMIT_WITHIN_SECONDS:
        log.warning("column %s was committed %.0f s after it was begun: writing it once more", commit.path, seconds)
        objects.put_many(bodies)
    return first


def commit_column(objects: Objects, commit: Commit) -> bool:
    """Make a written column visible; False if another attempt's commit stands already, which then is the column."""
    return objects.create(layout.commit_path(commit.key), commit.to_json())


def committed(objects: Objects) -> dict[str, Listed]:
    """Keys of all committed columns and what is listed of each commit, from one listing."""
    found = objects.listing(layout.COMMITS).items()
    return {key: listed for path, listed in found if (key := layout.commit_key(path)) is not None}


def is_committed(objects: Objects, key: str) -> bool:
    """Whether the column of ``key`` is there now, from one request; also one whose commit cannot be read."""
    try:
        return objects.get(layout.commit_path(key)) is not None
    except StoreDamagedError:
        return True


def read_commits(objects: Objects, keys: Sequence[str]) -> list[Commit]:
    """The commits of ``keys``, in that order. Raises StoreError: a commit is missing or unreadable."""
    found = find_commits(objects, keys)
    there = {commit.key for commit in found}
    for key in keys:
        if key not in there:
            raise StoreError(f"store {objects.url}: there is no commit {key}; it was removed by hand, or never made")
    return found


def find_commits(objects: Objects, keys: Sequence[str]) -> list[Commit]:
    """The commits of ``keys``, in that order, without those that are not there.

    Raises StoreError: a commit is unreadable.
    """
    commits, unreadable = readable_commits(objects, keys)
    for key, why in unreadable.items():
        raise StoreDamagedError(f"store {objects.url}: {unreadable_words(key, why)}; {requeue(objects, key)}")
    return commits


def readable_commits(objects: Objects, keys: Sequence[str]) -> tuple[list[Commit], dict[str, str]]:
    """Those commits of ``keys`` that are there and can be read, in that order, and by key why others cannot."""
    commits: list[Commit] = []
    unreadable: dict[str, str] = {}
    for path, found in read_parsed(objects, [layout.commit_path(key) for key in keys], Commit.from_json):
        if isinstance(found, Exception):
            unreadable[str(layout.commit_key(path))] = str(found)
        else:
            commits.append(found)
    return commits, unreadable


def unreadable_words(key: str, why: str) -> str:
    """That a commit is damaged, and how."""
    return f"commit {layout.commit_path(key)} is damaged ({why})"


def of_other_texts(commit: Commit, text_set: str) -> str:
    """That a commit is not of the texts with the fingerprint ``text_set``; "" as a rule."""
    theirs = commit.identity.text_set
    return "" if theirs == text_set else f"it is of the text set {theirs[:8]}..., and the store of {text_set[:8]}..."


def read_columns(objects: Objects, columns: Sequence[StoredColumn], n_texts: int) -> list[npt.NDArray[np.float32]]:
    """Log-likelihoods (layer, text) of several columns, in nats, each checked against its commit's SHA-256.

    Raises StoreError: a column's objects are missing, or hold other bytes than were committed or another number of
    texts.
    """
    values, wrong = sound_columns(objects, columns, n_texts)
    for error in wrong.values():
        raise error
    return [values[column.key] for column in columns]


def sound_columns(
    objects: Objects, columns: Sequence[StoredColumn], n_texts: int
) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, StoreDamagedError]]:
    """``read_columns`` by key, and what it raises of each of those that are damaged."""
    most = min(LARGEST_OBJECT, 4 * n_texts * max((column.n_layers for column in columns), default=0))
    whole, _ = read_whole(objects, {layout.values_path(column.path): column.sha256 for column in columns}, most)
    sound: dict[str, npt.NDArray[np.float32]] = {}
    wrong: dict[str, StoreDamagedError] = {}
    for column in columns:
        body = whole.pop(layout.values_path(column.path), None)
        try:
            found = _decoded(objects, column, n_texts) if body is None else np.frombuffer(body, "<f4")
            if found.size != column.n_layers * n_texts:
                raise StoreDamagedError(
                    f"store {objects.url}: column {column.path} of {column.repository} has "
                    f"{counted(found.size, 'value')}, and {column.n_layers:,} x {n_texts:,} belong there; "
                    f"{requeue(objects, column.key)}"
                )
            sound[column.key] = found.reshape(column.n_layers, n_texts)
        except StoreDamagedError as error:
            wrong[column.key] = error
    return sound, wrong


def read_sketches(objects: Objects, keys: Iterable[str]) -> dict[str, npt.NDArray[np.float32]]:
    """Weight sketches (bucket,) float32 of those of ``keys`` that have one, by key, checked against their SHA-256.

    Those that a commit's fact ``sketch`` (a snapshot's coordinate) gives the same label can be compared. Where a commit
    cannot be read, or a sketch is missing or is not what was committed, there is none, with a warning.
    """
    commits, unreadable = readable_commits(objects, list(dict.fromkeys(keys)))
    for key, why in unreadable.items():
        words = "store %s: %s: without its weight sketch; %s"
        log.warning(words, objects.url, unreadable_words(key, why), requeue(objects, key))
    there = {layout.sketch_path(each.path): each for each in commits if layout.SKETCH_CHUNK in each.objects}
    whole, wrong = read_whole(objects, {path: each.objects[layout.SKETCH_CHUNK] for path, each in there.items()})
    wrong |= {path: "is no sketch" for path, body in whole.items() if len(body) % 4}
    for path, what in wrong.items():
        log.warning(
            "store %s: %s %s: none of it is used; %s", objects.url, path, what, requeue(objects, there[path].key)
        )
    return {there[path].key: np.frombuffer(body, "<f4") for path, body in whole.items() if path not in wrong}


def read_column(objects: Objects, commit: Commit, n_texts: int) -> npt.NDArray[np.float32]:
    """Log-likelihoods (layer, text) float32 of a committed column, in nats, checked against its SHA-256."""
    return read_columns(objects, [commit.stored], n_texts)[0]


def _decoded(objects: Objects, column: StoredColumn, n_texts: int) -> npt.NDArray[np.float32]:
    """A column whose bytes are not its values: klray 0.1.0 before its first release compressed them."""
    where = f"store {objects.url}: column {column.path} of {column.repository}"
    try:
        sizes = {"layer": column.n_layers, "text": n_texts}
        values = read_arrays(objects, column.path, ("log_likelihood",), sizes)["log_likelihood"].astype(np.float32)
        found = values_sha256(values)
    except FileNotFoundError as error:
        raise StoreDamagedError(
            f"{where} is committed but its objects are missing; {requeue(objects, column.key)}"
        ) from error
    except StoreUnreachableError:
        raise
    except UNREADABLE as error:  # metadata that is no JSON, a chunk that does not decompress
        values, found = np.empty(0, np.float32), f"unreadable bytes ({error})"
    if found != column.sha256:
        raise StoreDamagedError(
            f"{where} does not hold what was committed: SHA-256 {column.sha256[:12]} was committed, "
            f"{found[:80]} is there; {requeue(objects, column.key)}"
        )
    return values


def requeue(objects: Objects, key: str) -> str:
    """What is to be done about a damaged column."""
    return (
        f"klray verify store.url={objects.url} verify.repair=true takes commits/{key}.json out; then score the "
        "checkpoint again"
    )
