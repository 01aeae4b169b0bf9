"""A small sound store, and every way in which somebody else may have tampered with a copy of it."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numcodecs import Zstd

from klray.store import Identity, Store, layout
from klray.store.seal import sealed, sha256_of, unsealed
from tests.stores import TEXTS, add, column

LABEL, NUMBERS = "repository/c/0", "step/c/0"  # chunks of a snapshot that zstd compresses
BOMB = Zstd(level=1).encode(bytes(2**28))
TWIN = Identity("org/z", "e" * 40, TEXTS.fingerprint)  # of the commit that is tampered with, the first by its key
OUT = ("../../../../outside/secret", "/etc/hostname", "a/../../../outside", "\x00", "outside-link/secret")
ODD = (None, 5, -1, 10**30, 1e300, float("nan"), True, [], {}, "x" * 70_000, ["a"] * 3, {"a": {"b": 1}}, *OUT)


class Case(NamedTuple):
    name: str
    tamper: Callable[[Path], object]


def make(folder: Path) -> Store:
    """Three columns, of which two are published, a result, a plan and a failure."""
    store = Store.create(str(folder), TEXTS)
    add(store, column("a", 1), column("a", 2))
    manifest, _ = store.publish()
    store.write_result(
        manifest.id, "t", xr.Dataset({"kl": (("model", "other"), np.eye(2))}, {"model": np.array(["a", "b"], object)})
    )
    store.add_column(column("b", 1))
    store.record_plan("fam", [column("c", 1).identity.key])
    store.record_failure(column("c", 1).identity, "main", "gated", "no", "f" * 32)
    return store


def cases(every: bool = False) -> Iterator[Case]:
    """Kinds of objects x kinds of tampering; a seal or a hash that others keep is made anew wherever there is one.

    Without ``every``, some 110 stores in which every field, every kind of object and every kind of tampering is met.
    """
    for kind, pattern, fields in RECORDS:
        for place, field in enumerate(fields):
            for number in range(len(ODD)) if every else [(len(kind) + place * 5) % len(ODD)]:
                yield Case(f"{kind}-{field}-{number}", _field(pattern, field, ODD[number]))
    files = {
        **{kind: pattern for kind, pattern, _ in RECORDS},
        "column": "columns/*/*/*/log_likelihood/c/0/0",
        "column-metadata": "columns/*/*/*/log_likelihood/zarr.json",
        "texts": "texts/domain/c/0",
    }
    arrays = {
        "snapshot": lambda change: _group("snapshots/2*Z-*/zarr.json", change),
        "result": lambda change: _group("results/*/t/*/zarr.json", change),
        "texts": lambda change: _array("texts/text_bytes/zarr.json", change),
    }
    chunks = (LABEL, NUMBERS, "log_likelihood/c/0/0", layout.CATALOG)
    yield from _grid(files, BODIES, lambda kind, change: _file(files[kind], change), 1 if every else 4)
    yield from _grid(arrays, METADATA, lambda kind, change: arrays[kind](change), 1 if every else 2)
    yield from _grid(chunks, CHUNKS, _snapshot_object, 1 if every else 2)
    for folder in ("commits", "columns", "snapshots", "results", "texts", "failures"):
        yield Case(f"{folder}-is-a-link-out", _link_folder(folder))


def _grid(
    kinds: Iterable[str], changes: Mapping[str, Any], make: Callable[[str, Any], Callable[[Path], object]], one_of: int
) -> Iterator[Case]:
    """Every kind with every ``one_of``th change, beginning with another for each: all kinds, and all changes."""
    for number, kind in enumerate(kinds):
        for place, (name, change) in enumerate(changes.items()):
            if (place - number) % one_of == 0:
                yield Case(f"{kind}-{name}", make(kind, change))


RECORDS = (
    ("commit", "commits/*.json", ("path", "attempt", "key", "sha256", "layers", "facts", "objects", "identity")),
    ("manifest", "snapshots/2*Z-*.json", ("id", "n_models", "n_texts", "chunk_models", "chunks", "objects", "content")),
    ("latest", "snapshots/LATEST.json", ("id",)),
    ("marker", "results/*/t.json", ("path", "objects")),
    ("root", "zarr.json", ("attributes", "node_type")),
    ("plan", "plans/*.json", ("family", "keys")),
    ("failure", "failures/*.json", ("key", "message")),
)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _sparse(path: Path) -> None:
    os.truncate(path, 2**40)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to(outside(path) / "secret")


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def outside(path: Path) -> Path:
    """The folder beside the store that nobody may read from or write to."""
    return next(each / "outside" for each in path.parents if (each / "outside").is_dir())


BODIES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "deep": lambda path: path.write_bytes(b"[" * 100_000 + b"]" * 100_000),
    "deep-field": lambda path: path.write_bytes(b'{"attributes":' * 3000 + b"1" + b"}" * 3000),
    "digits": lambda path: path.write_bytes(b'{"id":' + b"9" * 10_000 + b"}"),
    "pickle": lambda path: path.write_bytes(b"\x80\x04cos\nsystem\n(S'touch outside/run'\ntR."),
    "text": lambda path: path.write_bytes(b"<html>not found</html>"),
    "list": lambda path: path.write_bytes(b"[1, 2]"),
    "sparse": _sparse,
    "fifo": _fifo,
    "folder": _folder,
    "link-out": _link,
    "link-loop": _loop,
}

METADATA: dict[str, Callable[[dict[str, Any]], object]] = {
    "shape": lambda each: each.update(shape=[10**15] * len(each["shape"])),
    "shape-negative": lambda each: each.update(shape=[-1] * len(each["shape"])),
    "shape-other": lambda each: each.update(shape=[size + 1 for size in each["shape"]]),
    "shape-float": lambda each: each.update(shape=[1.5] * len(each["shape"])),
    "dims": lambda each: each.update(dimension_names=["other"] * (len(each["shape"]) + 1)),
    "chunk": lambda each: each["chunk_grid"]["configuration"].update(chunk_shape=[2**25] * len(each["shape"])),
    "chunk-zero": lambda each: each["chunk_grid"]["configuration"].update(chunk_shape=[0] * len(each["shape"])),
    "dtype": lambda each: each.update(data_type="object"),
    "dtype-wide": lambda each: each.update(
        data_type={"name": "fixed_length_utf32", "configuration": {"length_bytes": 2**40}}
    ),
    "pickle": lambda each: each.update(codecs=[{"name": "numcodecs.pickle", "configuration": {"protocol": 4}}]),
    "blosc": lambda each: each["codecs"].append({"name": "blosc", "configuration": {}}),
    "gzip": lambda each: each["codecs"].append({"name": "gzip", "configuration": {"level": 1}}),
    "codecs-none": lambda each: each.update(codecs=5),
    "group": lambda each: each.update(node_type="group"),
    "transformers": lambda each: each.update(storage_transformers=[{"name": "x", "configuration": {}}]),
    "scale": lambda each: each.update(attributes={"scale_factor": "x", "add_offset": [1]}),
}

CHUNKS: dict[str, Callable[[bytes], bytes]] = {
    "bomb": lambda _: BOMB,
    "gzip-bomb": lambda _: gzip.compress(bytes(2**27), 1),
    "claims": lambda _: b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8 + b"\x01\x00\x00",
    "broken": lambda body: body[:-4],
    "many-labels": lambda _: Zstd().encode(b"\xff\xff\xff\xff" + bytes(8)),
    "no-utf8": lambda _: Zstd().encode(b"\x02\x00\x00\x00\x01\x00\x00\x00\xff\x01\x00\x00\x00\xff"),
    "other-catalog": lambda _: gzip.compress(json.dumps({"key": [1, [2]], "path": ["../x"] * 2}).encode()),
    "catalog-paths": lambda body: _gzip_json(body, "path", "../../outside"),
    "catalog-numbers": lambda body: _gzip_json(body, "step", 10**30),
}


def _gzip_json(body: bytes, name: str, value: object) -> bytes:
    if body[:2] != b"\x1f\x8b":
        return b""
    fields = json.loads(gzip.decompress(body))
    return gzip.compress(json.dumps({**fields, name: [value] * len(fields[name])}).encode())


def _file(pattern: str, change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda root: change(sorted(root.glob(pattern))[0])


def _field(pattern: str, field: str, value: object) -> Callable[[Path], object]:
    def tamper(root: Path) -> None:
        path = sorted(each for each in root.glob(pattern) if each.name != "LATEST.json" or "LATEST" in pattern)[0]
        fields = json.loads(path.read_bytes())
        changed = {**(unsealed(fields) if "seal" in fields else fields), field: value}
        body = sealed(changed) if "seal" in fields else json.dumps(changed).encode()
        if pattern.startswith("plans"):
            path = root / f"plans/fam-{sha256_of(body)[:16]}.json"
        path.write_bytes(body)

    return tamper


def _array(pattern: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def tamper(root: Path) -> None:
        (path,) = root.glob(pattern)
        fields = json.loads(path.read_bytes())
        change(fields)
        path.write_text(json.dumps(fields))

    return tamper


def _group(pattern: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """One array's metadata in a group's, whose new hash stands where the old one stood."""

    def tamper(root: Path) -> None:
        (path,) = root.glob(pattern)
        fields = json.loads(path.read_bytes())
        arrays = fields["consolidated_metadata"]["metadata"]
        change(arrays.get("log_likelihood") or arrays["kl"])
        _put_and_seal(root, path, json.dumps(fields).encode())

    return tamper


def _snapshot_object(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def tamper(root: Path) -> None:
        (path,) = root.glob(f"snapshots/2*Z-*/{name}")
        _put_and_seal(root, path, change(path.read_bytes()))

    return tamper


def _put_and_seal(root: Path, path: Path, body: bytes) -> None:
    before, now = sha256_of(path.read_bytes()), sha256_of(body)
    path.write_bytes(body)
    for record in [*root.glob("snapshots/2*Z-*.json"), *root.glob("results/*/t.json")]:
        fields = unsealed(record.read_bytes())
        record.write_bytes(sealed(json.loads(json.dumps(fields).replace(before, now))))


def _link_folder(name: str) -> Callable[[Path], object]:
    def tamper(root: Path) -> None:
        (root / name).rename(outside(root / name) / name)
        (root / name).symlink_to(outside(root / name) / name)

    return tamper


def known_values() -> dict[str, np.ndarray]:
    """What each key's log-likelihoods are."""
    made = (column("a", 1), column("a", 2), column("b", 1))
    known = {each.identity.key: each.log_likelihood[0].astype(np.float32) for each in made}
    return {**known, TWIN.key: known[min(known)]}
