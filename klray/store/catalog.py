"""Catalog: the facts about every committed column, a row for each model that a snapshot of now would hold.

Commits are small objects in their thousands. A snapshot keeps their facts in one object, so the catalog is that of the
latest snapshot and the commits that it lacks: what costs requests is only what is new.
"""

import dataclasses
import gzip
import json
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np

from klray.errors import StoreError, StoreUnreachableError
from klray.store import layout
from klray.store.columns import (
    Commit,
    StoredColumn,
    committed,
    of_other_texts,
    readable_commits,
    requeue,
    unreadable_words,
)
from klray.store.datasets import UNREADABLE
from klray.store.fields import SHA256, form, shown
from klray.store.objects import Listed, Objects
from klray.store.seal import read_whole, sha256_of
from klray.store.snapshots import Manifest, open_snapshot
from klray.words.heard import joined
from klray.words.numbers import counted
from klray.words.outside import LONGEST, fault, parsed, printable

log = logging.getLogger("klray")

Rows = dict[str, np.ndarray]  # name of a coordinate: (model,) values

COMMITS_AT_ONCE = 512
CATALOG_BYTES = 256 * 2**20  # unpacked; a row has 800
SMALL_CATALOG, ROW_BYTES, ROW_COMMAS = 2**16, 8192, 64
DAMAGED_SHOWN = 20
NO_NUMBER = "-1 when there is none"


@dataclasses.dataclass(frozen=True)
class Coordinate:
    """One fact about each model: what it means, and where it is, given a commit, the layer and what is listed of it."""

    kind: Literal["label", "number", "time"]
    of: Callable[[Commit, int, Listed], Any]
    long_name: str = ""

    def array(self, values: Iterable[Any]) -> np.ndarray:
        """(model,) values as they are stored; what a commit does not say, or not as klray would, is "" or -1.

        Labels that no klray wrote are made fit to be shown: one commit stops nobody.
        """
        if self.kind == "label":
            return np.array([printable(str(value or ""), LONGEST) for value in values], dtype=np.dtypes.StringDType())
        if self.kind == "time":
            return np.array(list(values), "datetime64[us]")
        return np.array([_number(value) for value in values], dtype=np.int64)


def _number(value: Any) -> int:
    return value if isinstance(value, int) and not fault(value) else -1


def _fact(name: str) -> Callable[[Commit, int, Listed], Any]:
    return lambda commit, *_: commit.facts.get(name)


def _identity(name: str) -> Callable[[Commit, int, Listed], Any]:
    return lambda commit, *_: getattr(commit.identity, name)


def _variant(commit: Commit, *_: object) -> str:
    identity = commit.identity
    return "+".join(each for each in (identity.dtype, identity.quantization, identity.lens) if each != "none")


COORDINATES: Final = {
    "key": Coordinate("label", lambda commit, *_: commit.key, "identity of the column"),
    "repository": Coordinate("label", _identity("repository")),
    "revision": Coordinate("label", _fact("revision")),
    "commit": Coordinate("label", _identity("commit"), "resolved commit of the repository"),
    "family": Coordinate("label", _fact("family")),
    "run": Coordinate("label", _fact("run"), "training run: its checkpoints are one trajectory"),
    "step": Coordinate("number", _fact("step"), f"training step, {NO_NUMBER}"),
    "trained_tokens": Coordinate(
        "number", _fact("trained_tokens"), f"tokens trained on, as the revision's name rounds them, {NO_NUMBER}"
    ),
    "size": Coordinate("label", _fact("size")),
    "seed": Coordinate("number", _fact("seed"), f"seed of the training run, {NO_NUMBER}"),
    "base_model": Coordinate("label", _fact("base_model"), "single parent of the model, empty if none or several"),
    "base_revision": Coordinate("label", _fact("base_revision"), "revision of base_model, if one is named"),
    "parents": Coordinate("label", _fact("parents"), "all parents, joined by a comma and a space"),
    "relation": Coordinate("label", _fact("relation"), "how the model was made: finetune, adapter, merge, quantized"),
    "architecture": Coordinate("label", _fact("architecture")),
    "variant": Coordinate("label", _variant, "compute dtype, and quantisation and lens if any"),
    "dtype": Coordinate("label", _identity("dtype")),
    "quantization": Coordinate("label", _identity("quantization")),
    "stored_quantization": Coordinate(
        "label", _fact("stored_quantization"), "how the files were quantised before, such as Q4_K_M; empty if not"
    ),
    "lens": Coordinate("label", _identity("lens")),
    "layer": Coordinate("number", lambda _, layer, __: layer, "layer, -1 for the model's own output"),
    "parameters": Coordinate("number", _fact("parameters")),
    "tokenizer": Coordinate(
        "label", _fact("tokenizer"), "class, special tokens around a text, bytes per token; or none"
    ),
    "tokens": Coordinate("number", _fact("tokens"), "counted tokens over all texts"),
    "sketch": Coordinate(
        "label", _fact("sketch"), "weight sketch: size, version and shapes; equal: comparable; or none"
    ),
    "weight_files": Coordinate(
        "label", _fact("weight_files"), "first 12 hex digits of the hash of each file of weights, in their names' order"
    ),
    "files_elsewhere": Coordinate(
        "label",
        lambda commit, *_: joined(commit.facts.get("files_elsewhere")),
        "revisions that were not asked for and have some of these files, each with its hashes; a bar between them",
    ),
    "warnings": Coordinate(
        "label",
        lambda commit, *_: joined(commit.facts.get("warnings")),
        "what klray warned of when it was scored",
    ),
    "sha256": Coordinate("label", lambda commit, *_: commit.sha256, "of the column's (layer, text) float32 values"),
}
# Facts about the columns, not about the models: another store with the same columns has the same snapshot but these.
PROVENANCE: Final = {
    "path": Coordinate("label", lambda commit, *_: commit.path, "folder of the column in the store"),
    "committed": Coordinate(
        "time",
        lambda _, __, listed: listed.written.replace(tzinfo=None),
        "when the commit was stored, by the store's clock (UTC)",
    ),
    "mark": Coordinate(
        "label", lambda _, __, listed: listed.mark, "what the store lists of the commit, another if it is made anew"
    ),
}
_ALL: Final = {**COORDINATES, **PROVENANCE}
_LABELS = COORDINATES["key"]


@dataclasses.dataclass(frozen=True)
class DamagedColumn:
    """A column that nobody can read again, and why. Where it is ``kept``, the snapshot before holds it.

    Its values there were hashed when they were published. So it keeps its place, and results can be continued.
    """

    key: str
    why: str  # one sentence with the cure
    kept: bool = False


@dataclasses.dataclass(frozen=True)
class Catalog:
    """Rows of all committed columns; those of ``base`` come first and in its order, a column's rows side by side.

    ``unchanged`` (model,): the row is in ``base`` at the same place with the same values. ``damaged`` are the columns
    whose commit, or values as far as they were read, are not what was committed.
    """

    rows: Rows
    base: Manifest | None
    unchanged: np.ndarray
    damaged: tuple[DamagedColumn, ...] = ()

    def without(self, damaged: Sequence[DamagedColumn]) -> "Catalog":
        """The catalog of the other columns."""
        places = np.flatnonzero(~_among(self.rows["key"], {each.key for each in damaged}))
        still = self.unchanged[places] & (places == np.arange(len(places)))
        return Catalog(_take(self.rows, places), self.base, still, (*self.damaged, *damaged))

    @property
    def left_out(self) -> tuple[DamagedColumn, ...]:
        """Columns that are committed and have no row."""
        return tuple(each for each in self.damaged if not each.kept)

    def __len__(self) -> int:
        return len(self.rows["key"])

    @property
    def first_rows(self) -> np.ndarray:
        """Where each column begins."""
        keys = self.rows["key"]
        return np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.arange(0)

    @property
    def content(self) -> str:
        """SHA-256 over the key and the SHA-256 of each column, in order."""
        first = self.first_rows
        pairs = zip(self.rows["key"][first], self.rows["sha256"][first], strict=True)
        return sha256_of("".join(key + sha256 for key, sha256 in pairs).encode())

    def columns(self, start: int, stop: int) -> list[tuple[int, StoredColumn]]:
        """The columns that have rows from ``start`` to ``stop``, each with the row at which it begins."""
        first = self.first_rows
        ends = np.append(first[1:], len(self))
        chosen = np.flatnonzero((first < stop) & (ends > start))
        names = ("key", "repository", "path", "sha256")
        return [
            (int(row), StoredColumn(**{name: str(self.rows[name][row]) for name in names}, n_layers=int(end - row)))
            for row, end in zip(first[chosen], ends[chosen], strict=True)
        ]

    def to_json(self) -> bytes:
        """The rows as a snapshot keeps them for the next one: gzipped JSON, a list for each name, times in us."""
        values = {
            name: (row.astype(np.int64) if row.dtype.kind == "M" else row).tolist() for name, row in self.rows.items()
        }
        return gzip.compress(json.dumps(values, separators=(",", ":")).encode(), compresslevel=1, mtime=0)

    def labels(self) -> np.ndarray:
        """A name for every row, each another: repository@revision, and what tells it from others of that revision."""
        names = ("repository", "revision", "commit", "dtype", "quantization", "lens", "layer")
        facts = list(zip(*(self.rows[name] for name in names), strict=True))
        labels = []
        for repository, revision, commit, dtype, quantization, lens, layer in facts:
            label = f"{repository}@{revision or commit[:12]}"
            label += "".join(f"+{each}" for each in (dtype, quantization, lens) if each not in ("float32", "none"))
            labels.append(label + (f"#layer{layer}" if layer >= 0 else ""))
        # A branch that has moved: the same revision at two commits. Then what differs otherwise, such as the numerics.
        for tails in ([commit[:8] for _, _, commit, *_ in facts], [key[:8] for key in self.rows["key"]]):
            counts = Counter(labels)
            labels = [
                f"{label}~{tail}" if counts[label] > 1 else label for label, tail in zip(labels, tails, strict=True)
            ]
        return _LABELS.array(labels)


def damage_lines(damaged: Sequence[DamagedColumn]) -> list[str]:
    """How many columns are damaged, and of each, as far as they are few, what is to be done; none without any."""
    kept = sum(each.kept for each in damaged)
    parts = [f"{len(damaged) - kept:,} left out"] + [f"{kept:,} kept as the snapshot before has it"] * bool(kept)
    more = [f"and {len(damaged) - DAMAGED_SHOWN:,} more: klray verify"] * (len(damaged) > DAMAGED_SHOWN)
    first = f"{counted(len(damaged), 'committed column')} cannot be read: {', '.join(parts)}"
    return [first, *(each.why for each in damaged[:DAMAGED_SHOWN]), *more] if damaged else []


def read_catalog(
    objects: Objects, base: Manifest | None, text_set: str, report: Callable[[int, int], None] | None = None
) -> Catalog:
    """Facts about all columns that are committed now, ``base`` being the latest snapshot; reads the commits it lacks.

    ``report`` is told how many of how many commits were read. A commit that is taken out meanwhile is passed over; one
    that was made anew since, because its column had been damaged and taken out, is known by its mark. One that cannot
    be read, or is of other texts than ``text_set``, stops nobody: ``damaged``.
    """
    listed = committed(objects)
    old = _rows_of(objects, base) if base else {"key": _LABELS.array([])}
    before = np.array([], dtype=bool)  # which rows of the snapshot before still are as they were
    if "mark" in old:
        marks = {key: each.mark for key, each in listed.items()}
        kept = [marks.get(key) == mark for key, mark in zip(old["key"].tolist(), old["mark"].tolist(), strict=True)]
        before = np.array(kept, dtype=bool)
    fresh = sorted(set(listed) - set(old["key"][np.flatnonzero(before)].tolist()))
    parts: list[Rows] = []
    unreadable: dict[str, str] = {}
    foreign: dict[str, str] = {}
    for start in range(0, len(fresh), COMMITS_AT_ONCE):
        keys = fresh[start : start + COMMITS_AT_ONCE]
        found, wrong = readable_commits(objects, keys)
        unreadable |= wrong
        foreign |= {each.key: why for each in found if (why := of_other_texts(each, text_set))}
        parts.append(_rows([each for each in found if each.key not in foreign], listed))
        if report:
            report(start + len(keys), len(fresh))
    if "mark" in old:
        before |= _among(old["key"], unreadable)
        parts.insert(0, _take(old, before))
    rows = {name: np.concatenate([part[name] for part in parts] or [each.array([])]) for name, each in _ALL.items()}
    rows = _take(rows, _order(rows, old["key"].tolist()))
    there = set(rows["key"].tolist())
    damaged = tuple(
        DamagedColumn(key, f"{unreadable_words(key, why)}; {requeue(objects, key)}", key in there)
        for key, why in (unreadable | foreign).items()
    )
    return Catalog(rows, base, _unchanged(rows, old), damaged)


def _rows_of(objects: Objects, base: Manifest) -> Rows:
    """Rows of a snapshot; its keys alone, in order, when it does not say where its columns are, or is damaged there."""
    path = f"{layout.snapshot_path(base.id)}/{layout.CATALOG}"
    # klray 0.1.0 before its first release kept no catalog
    whole, _ = read_whole(objects, {path: base.objects[layout.CATALOG]} if layout.CATALOG in base.objects else {})
    if path in whole:
        try:
            return _unpacked(whole[path], base.n_models)
        except UNREADABLE as error:
            log.warning("%s is no catalog (%s)", path, shown(str(error)))
    if base.objects:
        log.warning("%s of the snapshot before is missing or damaged: reading every commit", path)
    try:
        return {"key": _LABELS.array(open_snapshot(objects, base.id)["key"].values)}
    except StoreUnreachableError:
        raise
    except (StoreError, ValueError, KeyError, RuntimeError, OSError) as error:
        log.warning("snapshot %s does not say the order of its models (%s): they are sorted anew", base.id, error)
        return {"key": _LABELS.array([])}


def _unpacked(body: bytes, n_models: int) -> Rows:
    """Inverse of ``Catalog.to_json``. One of UNREADABLE: it is no catalog of ``n_models`` rows."""
    most = min(CATALOG_BYTES, SMALL_CATALOG + n_models * ROW_BYTES)
    try:
        unpacked = zlib.decompressobj(wbits=31).decompress(body, most + 1)
    except zlib.error as error:
        raise ValueError(f"it is not gzip ({error})") from None
    if len(unpacked) > most or unpacked.count(b",") > SMALL_CATALOG + n_models * ROW_COMMAS:
        raise ValueError(f"it holds more than {n_models:,} models need")
    values = parsed(unpacked)
    missing = [None] * n_models  # a fact that klray did not keep when the snapshot was made
    values = {**dict.fromkeys(COORDINATES, missing), **values}
    # klray 0.1.0 before its first release kept no marks
    rows = {name: each.array(values[name]) for name, each in _ALL.items() if name in values}
    if {len(row) for row in rows.values()} != {n_models}:
        raise ValueError("its rows are not of the same models")
    for key, sha256, path in zip(rows["key"].tolist(), rows["sha256"].tolist(), rows["path"].tolist(), strict=True):
        form(SHA256, key=key, sha256=sha256)
        if not layout.is_column_path(path, key):
            raise ValueError(f"a path is {shown(path)}")
    return rows


def _rows(commits: Sequence[Commit], listed: Mapping[str, Listed]) -> Rows:
    models = [(commit, layer, listed[commit.key]) for commit in commits for layer in commit.layers]
    return {name: each.array(each.of(*model) for model in models) for name, each in _ALL.items()}


def _among(keys: np.ndarray, chosen: Container[str]) -> np.ndarray:
    """(model,) bool: the key is one of ``chosen``."""
    return np.array([key in chosen for key in keys.tolist()], dtype=bool)


def _take(rows: Rows, places: np.ndarray) -> Rows:
    return {name: values[places] for name, values in rows.items()}


def _order(rows: Rows, before: list[str]) -> np.ndarray:
    """Places of all rows: those of ``before`` as they were, the others by family, repository and step."""
    place = {key: number for number, key in enumerate(dict.fromkeys(before))}
    names = ("family", "repository", "step", "key")
    facts = zip(*(rows[name].tolist() for name in names), strict=True)
    ranks = [(place.get(each[-1], len(place)), *each) for each in facts]
    return np.array(sorted(range(len(ranks)), key=ranks.__getitem__), dtype=np.int64)  # stable: layers stay in order


def _unchanged(rows: Rows, old: Rows) -> np.ndarray:
    unchanged = np.zeros(len(rows["key"]), dtype=bool)
    if "sha256" in old:
        n = min(len(unchanged), len(old["key"]))
        same = [rows[name][:n] == old[name][:n] for name in ("key", "sha256", "layer")]
        unchanged[:n] = np.logical_and.reduce(same)
    return unchanged
