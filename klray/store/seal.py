"""Seals: hashes by which a damaged object is known, written elsewhere or, for JSON objects, into themselves."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from klray.errors import StoreDamagedError
from klray.store.objects import JSON_BYTES, LARGEST_OBJECT, OBJECT_BYTES, Objects
from klray.words.outside import parsed

T = TypeVar("T")

SEAL = "seal"


def sealed(fields: Mapping[str, Any]) -> bytes:
    """``fields`` as JSON, with the SHA-256 of their canonical JSON beside them."""
    return json.dumps({**fields, SEAL: _seal(fields)}, sort_keys=True, indent=1).encode()


def unsealed(fields: bytes | Any) -> dict[str, Any]:
    """Inverse of ``sealed``, or of its JSON parsed.

    What has no seal (klray 0.1.0 before its first release) is believed.

    Raises ValueError: the fields are not those that were sealed.
    """
    fields = parsed(fields) if isinstance(fields, bytes) else fields
    if not isinstance(fields, dict):
        raise ValueError(f"it holds a {type(fields).__name__}")
    kept = {name: value for name, value in fields.items() if name != SEAL}
    if SEAL in fields and fields[SEAL] != _seal(kept):
        raise ValueError("it holds other values than were written")
    return kept


def sha256_of(body: bytes | bytearray) -> str:
    """SHA-256 of an object's bytes, 64 hex digits."""
    return hashlib.sha256(body).hexdigest()


def most_of(values: int) -> int:
    """The most bytes of objects among which are values of that many; StoredColumns and snapshots have such."""
    return min(LARGEST_OBJECT, max(OBJECT_BYTES, values))


def read_whole(
    objects: Objects, hashes: Mapping[str, str], most: int = OBJECT_BYTES
) -> tuple[dict[str, bytes], dict[str, str]]:
    """Bytes of the objects that have the SHA-256 in ``hashes``, and what is wrong with each of the others, by path.

    None of them has more than ``most`` bytes.
    """
    wrong: dict[str, str] = {}
    whole = dict(_whole(objects, hashes, most, wrong))
    return whole, wrong


def damaged(
    objects: Objects, hashes: Mapping[str, str], most: int = OBJECT_BYTES, sizes: Mapping[str, int] | None = None
) -> dict[str, str]:
    """What ``read_whole`` finds wrong, and what has not the bytes of ``sizes``; no object is kept in memory."""
    wrong: dict[str, str] = {}
    for path, body in _whole(objects, hashes, most, wrong):
        if (sizes or {}).get(path, len(body)) != len(body):
            wrong[path] = f"has {len(body):,} bytes, and {(sizes or {})[path]:,} belong there"
    return wrong


def _whole(
    objects: Objects, hashes: Mapping[str, str], most: int, wrong: dict[str, str]
) -> Iterator[tuple[str, bytes]]:
    for (path, sha256), body in zip(hashes.items(), objects.get_many(list(hashes), most), strict=True):
        if body is None:
            wrong[path] = "is missing"
        elif isinstance(body, StoreDamagedError):
            wrong[path] = f"is not what was written ({body})"
        elif (found := sha256_of(body)) != sha256:
            wrong[path] = f"holds other bytes than were written (SHA-256 {found[:12]}, {sha256[:12]} was written)"
        else:
            yield path, body


def read_parsed(
    objects: Objects, paths: Sequence[str], parse: Callable[[str, bytes], T], most: int = JSON_BYTES
) -> Iterator[tuple[str, T | Exception]]:
    """Path and meaning of those objects that are there; what ``parse`` raised of one that is not what was written.

    None of them has more than ``most`` bytes.
    """
    for path, body in zip(paths, objects.get_many(list(paths), most), strict=True):
        if body is None:
            continue
        try:
            found: T | Exception = body if isinstance(body, StoreDamagedError) else parse(path, body)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            found = error
        yield path, found


def _seal(fields: Mapping[str, Any]) -> str:
    return sha256_of(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())
