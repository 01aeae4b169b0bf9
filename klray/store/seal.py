"""Seals: JSON objects with a hash of themselves, so that a damaged one is not believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "seal"


def sealed(fields: Mapping[str, Any]) -> bytes:
    """``fields`` as JSON, with the SHA-256 of their canonical JSON beside them."""
    return json.dumps({**fields, SEAL: _seal(fields)}, sort_keys=True, indent=1).encode()


def unsealed(fields: Any) -> dict[str, Any]:
    """Inverse of ``sealed``, its JSON parsed; what has no seal (klray 0.1.0 before its first release) is believed.

    Raises
    ------
    ValueError
        The fields are not those that were sealed.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"it holds a {type(fields).__name__}")
    kept = {name: value for name, value in fields.items() if name != SEAL}
    if SEAL in fields and fields[SEAL] != _seal(kept):
        raise ValueError("it holds other values than were written")
    return kept


def _seal(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
