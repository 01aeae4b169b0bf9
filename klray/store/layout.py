"""Where everything is in a store, and what each stored array means."""

from __future__ import annotations

import hashlib
import re
from typing import Final
from urllib.parse import quote

SCHEMA_VERSION: Final = 1
LONGEST_PART: Final = 120  # file systems allow 255 bytes, names may be paths

ROOT = "zarr.json"
TEXTS = "texts"
COMMITS = "commits"
FAILURES = "failures"
SNAPSHOTS = "snapshots"
RESULTS = "results"
PROBES = "probes"  # what klray doctor and score write to try the place, gone when they are done
LATEST = f"{SNAPSHOTS}/LATEST.json"

REFERENCES = "arXiv:2505.15353, arXiv:2502.16173"

# name: (dims, dtype, unit, meaning)
ARRAYS: Final = {
    "log_likelihood": (("layer", "text"), "float32", "nats", "sum over predicted tokens of log p(token | before)"),
    "status": (("text",), "uint8", "1", "0 scored, 1 no predicted token (one token or none), log-likelihood 0"),
    "text_bytes": (("text",), "int32", "bytes", "UTF-8 bytes of the text"),
    "domain": (("text",), "string", "1", "label of the text's domain"),
}


def column_path(repository: str, revision: str, key: str, attempt: str) -> str:
    """Folder of one attempt at one column: unique, so that no two writers ever share an object."""
    return f"columns/{_part(repository.replace('/', '--'))}/{_part(revision)}/{key[:8]}-{attempt[:8]}"


def commit_path(key: str) -> str:
    """The object whose existence makes a column visible."""
    return f"{COMMITS}/{key}.json"


def failure_path(key: str, attempt: str) -> str:
    """One record of one failed attempt."""
    return f"{FAILURES}/{key}-{attempt[:8]}.json"


def snapshot_path(snapshot: str) -> str:
    """Folder of a snapshot's Zarr group."""
    return f"{SNAPSHOTS}/{snapshot}"


def manifest_path(snapshot: str) -> str:
    """The object whose existence makes a snapshot visible."""
    return f"{SNAPSHOTS}/{snapshot}.json"


def result_path(snapshot: str, name: str, attempt: str) -> str:
    """Folder of one attempt at one analysis of one snapshot: nothing that somebody may be reading is written over."""
    return f"{RESULTS}/{snapshot}/{name}/{attempt[:8]}"


def result_marker_path(snapshot: str, name: str) -> str:
    """The object that says which attempt at an analysis is the result."""
    return f"{RESULTS}/{snapshot}/{name}.json"


def is_name(text: str) -> bool:
    """Whether ``text`` can name a snapshot or an analysis: letters, digits, dot, dash and underscore."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", text) is not None


def _part(text: str) -> str:
    """One path part: slashes and odd characters of a revision (refs/pr/1) are percent-encoded; '.' cannot lead."""
    part = quote(text.strip("/"), safe="-_.=+@")
    if len(part) > LONGEST_PART:
        part = f"{part[: LONGEST_PART - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return part.replace(".", "%2E", 1) if part.startswith(".") else part or "%00"
