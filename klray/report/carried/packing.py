"""Numbers and words as JSON that stands in an HTML page: nothing in it can end the element that holds it."""

import base64
import gzip
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from klray.words.secrets import public

TYPES = {"f4": "<f4", "i4": "<i4", "u1": "<u1", "u4": "<u4"}
_PLAIN = 256  # so few numbers are written as they are


def numbers(values: Any, kind: str) -> Any:
    """An array, flattened, as ``kind`` of TYPES: plain numbers, or packed if there are many.

    Packed is base64 of gzip of the numbers' first bytes, then all second ones, and so on: equal bytes side by side.
    A number that is not finite is null where it is plain.
    """
    flat = np.ascontiguousarray(values, dtype=TYPES[kind]).ravel()
    if flat.size <= _PLAIN:
        finite = np.isfinite(flat)
        return [_shortest(each) if there else None for each, there in zip(flat, finite, strict=True)]
    planes = flat.view(np.uint8).reshape(flat.size, flat.itemsize).T
    return {"type": kind, "packed": base64.b64encode(gzip.compress(planes.tobytes(), 6, mtime=0)).decode()}


def rounded(values: Any) -> np.ndarray:
    """Float32 with 13 significant bits, 1e-4 relative, as is enough for standard errors: the rest packs to nothing."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    finite = np.isfinite(values)
    kept: np.ndarray = (
        np.where(finite, (bits + np.uint32(0x400)) & np.uint32(0xFFFFF800), bits).astype("<u4").view("<f4")
    )
    return kept


def words(values: Iterable[Any]) -> dict[str, Any]:
    """Strings, each once, without secrets and folders, and which of them stands where."""
    places: dict[str, int] = {}
    at = [places.setdefault(str(value), len(places)) for value in values]
    return {"words": [public(each) for each in places], "at": numbers(at, "u4")}


def as_json(data: Any) -> str:
    """JSON for a script element that is not run: "<" opens no tag, and no line separator ends a line."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _shortest(value: np.generic) -> float | int:
    return int(value) if value.dtype.kind in "iu" else float(str(value))
