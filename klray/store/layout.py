"""Where everything is in a store, and what each stored array means."""

import hashlib
import re
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

SCHEMA_VERSION: Final = 1
LONGEST_PART: Final = 120  # file systems allow 255 bytes, names may be paths

ROOT = "zarr.json"
TEXTS = "texts"
COMMITS = "commits"
CLAIMS = "claims"
FAILURES = "failures"
PLANS = "plans"
JOBS = "jobs"
SNAPSHOTS = "snapshots"
RESULTS = "results"
CATALOG = "catalog.json.gz"  # in a snapshot: all facts about its models, and from which columns they are
SKETCH_CHUNK = "weight_sketch/c/0"  # in a column: its SHA-256 is among the commit's objects
LATEST = f"{SNAPSHOTS}/LATEST.json"

REFERENCES = "arXiv:2505.15353, arXiv:2502.16173"

# name: (dims, dtype, unit, meaning)
ARRAYS: Final = {
    "log_likelihood": (("layer", "text"), "float32", "nats", "sum over predicted tokens of log p(token | before)"),
    "status": (("text",), "uint8", "1", "0 scored, 1 no predicted token (one token or none), log-likelihood 0"),
    "weight_sketch": (("bucket",), "float32", "1", "linear sketch of the stored parameters: keeps squared distances"),
    "text_bytes": (("text",), "int32", "bytes", "UTF-8 bytes of the text"),
    "domain": (("text",), "string", "1", "label of the text's domain"),
    "content": (("text",), "string", "1", "the text itself, where it was published (texts.publish=true)"),
}


_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_PART = r"(?!\.)[A-Za-z0-9_.=+@%~-]{1,128}"
# What objects may be called that a record names: below a column, below a snapshot, below a result.
COLUMN_OBJECT = re.compile(r"zarr\.json|(log_likelihood|status|weight_sketch)/(zarr\.json|c/0(/0)?)")
DATASET_OBJECT = re.compile(rf"catalog\.json\.gz|zarr\.json|{_NAME}/(zarr\.json|c(/\d{{1,9}}){{0,8}})")
_SNAPSHOT = re.compile(r"2[01]\d{6}T\d{6}\.\d{3}Z-[0-9a-f]{8}")


def column_path(repository: str, revision: str, key: str, attempt: str) -> str:
    """Folder of one attempt at one column: unique, so that no two writers ever share an object."""
    return f"columns/{_part(repository.replace('/', '--'))}/{_part(revision)}/{key[:8]}-{attempt[:8]}"


def is_column_path(path: str, key: str) -> bool:
    """Whether ``path`` can be that of an attempt at the column of ``key``."""
    return re.fullmatch(rf"columns/{_PART}/{_PART}/{key[:8]}-[0-9a-f]{{8}}", path) is not None


def values_path(column: str) -> str:
    """The one chunk of a column's log_likelihood, uncompressed: its bytes are the values, and their SHA-256 its own."""
    return f"{column}/log_likelihood/c/0/0"


def sketch_path(column: str) -> str:
    """The one chunk of a column's weight sketch, uncompressed."""
    return f"{column}/{SKETCH_CHUNK}"


def commit_path(key: str) -> str:
    """The object whose existence makes a column visible."""
    return f"{COMMITS}/{key}.json"


def commit_key(path: str) -> str | None:
    """Inverse of ``commit_path``; None for what is no commit, such as a file that is being written."""
    found = re.fullmatch(rf"{COMMITS}/([0-9a-f]{{64}})\.json", path)
    return found.group(1) if found else None


def claim_path(key: str, turn: int) -> str:
    """Where a job says that it is scoring the checkpoint of ``key``; a claim that is over leaves the next turn."""
    return f"{CLAIMS}/{key}-{turn}.json"


def claim_of(path: str) -> tuple[str, int] | None:
    """Inverse of ``claim_path``; None for what is no claim."""
    found = re.fullmatch(rf"{CLAIMS}/([0-9a-f]{{64}})-(0|[1-9]\d?)\.json", path)
    return (found.group(1), int(found.group(2))) if found else None


def failure_path(key: str, attempt: str) -> str:
    """One record of one failed attempt."""
    return f"{FAILURES}/{key}-{attempt[:8]}.json"


def plan_path(family: str, sha256: str) -> str:
    """What one job or more were asked to score."""
    return f"{PLANS}/{_part(family)}-{sha256[:16]}.json"


def job_path(job: str) -> str:
    """What a job of this id, 32 hex digits, says of itself."""
    return f"{JOBS}/{job}.json"


def job_id(path: str) -> str | None:
    """Inverse of ``job_path``; None for what is no heartbeat."""
    found = re.fullmatch(rf"{JOBS}/([0-9a-f]{{32}})\.json", path)
    return found.group(1) if found else None


def snapshot_path(snapshot: str) -> str:
    """Folder of a snapshot's Zarr group."""
    return f"{SNAPSHOTS}/{snapshot}"


def chunk_path(snapshot: str, number: int) -> str:
    """One chunk of a snapshot's log_likelihood: some models, all texts, uncompressed."""
    return f"{snapshot_path(snapshot)}/{chunk_name(number)}"


def chunk_name(number: int) -> str:
    """The same, below the snapshot's folder."""
    return f"log_likelihood/c/{number}/0"


def snapshot_claim_path(snapshot: str) -> str:
    """The object whose creation gives a publisher a snapshot's id."""
    return f"{SNAPSHOTS}/{snapshot}.claim"


def manifest_path(snapshot: str) -> str:
    """The object whose existence makes a snapshot visible."""
    return f"{SNAPSHOTS}/{snapshot}.json"


def result_path(snapshot: str, name: str, attempt: str) -> str:
    """Folder of one attempt at one analysis of one snapshot: nothing that somebody may be reading is written over."""
    return f"{RESULTS}/{snapshot}/{name}/{attempt[:8]}"


def result_marker_path(snapshot: str, name: str) -> str:
    """The object that says which attempt at an analysis is the result."""
    return f"{RESULTS}/{snapshot}/{name}.json"


def report_path(snapshot: str, name: str) -> str:
    """The page that shows the results of a snapshot: no folder of an attempt, and no marker."""
    return f"{RESULTS}/{snapshot}/{name}/index.html"


def is_result_marker(path: str) -> bool:
    """Whether an object says which attempt at an analysis is the result."""
    return re.fullmatch(rf"{RESULTS}/{_NAME}/{_NAME}\.json", path) is not None


def is_result_path(path: str, marker: str) -> bool:
    """Whether ``path`` can be that of an attempt at the analysis whose marker is at ``marker``."""
    folder = marker.removesuffix(".json")
    return is_result_marker(marker) and re.fullmatch(rf"{re.escape(folder)}/[0-9a-f]{{8}}", path) is not None


def is_snapshot_id(text: str) -> bool:
    """Whether ``text`` is the id of a snapshot: time and content."""
    try:
        return _SNAPSHOT.fullmatch(text) is not None and snapshot_time(text) is not None
    except ValueError:  # no day of any calendar
        return False


def snapshot_time(identifier: str) -> datetime:
    """When a snapshot of this id was made, by its publisher's clock (UTC), or a little later."""
    return datetime.strptime(identifier.rpartition("-")[0], "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC)


def is_name(text: str) -> bool:
    """Whether ``text`` can name an analysis: letters, digits, dot, dash and underscore; ``.json`` ends its marker."""
    return re.fullmatch(_NAME, text) is not None and not text.endswith(".json")


def _part(text: str) -> str:
    """One path part: slashes and odd characters of a revision (refs/pr/1) are percent-encoded; '.' cannot lead."""
    part = quote(text.strip("/"), safe="-_.=+@")
    if len(part) > LONGEST_PART:
        part = f"{part[: LONGEST_PART - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return part.replace(".", "%2E", 1) if part.startswith(".") else part or "%00"
