"""Claims: what each job says that it is scoring, so that independent jobs that share a list take different checkpoints.

A claim is a courtesy, not a lock: what counts is the commit, and a job may score what another has claimed. Whoever
claims a checkpoint creates an object under its key; a claim that is over, or cannot be read, leaves the next turn, of
which again only one job can have the object. No rule rests on the time that a claim names.
"""

import dataclasses
import socket
from datetime import UTC, datetime

from klray.errors import StoreDamagedError
from klray.store import layout
from klray.store.columns import is_committed
from klray.store.fields import ATTEMPT, SHA256, form, names, record
from klray.store.objects import Listed, Objects
from klray.store.seal import sealed, unsealed
from klray.words.outside import printable

CLAIM_BYTES = 4096
MOST_TURNS = 16  # of one checkpoint; then it is scored without a claim


@dataclasses.dataclass(frozen=True)
class Claim:
    """Who is scoring a checkpoint."""

    key: str
    job: str  # 32 hex digits: all workers of a sweep have the same
    host: str
    created: str  # ISO 8601, UTC, by the clock of the host: for people


def claim(objects: Objects, key: str, job: str, turn: int = 0) -> int | Claim | None:
    """Claim the checkpoint of ``key`` for ``job``: the turn that it has now, or the claim of another job, or None where
    its column is committed and there is nothing to claim.

    ``turn`` is the first one that is not known to be over. What cannot be read is no claim, and its turn is over.
    ``MOST_TURNS``: none is left, and the checkpoint is scored without a claim.

    Raises StoreError, OSError: the place cannot be written to.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    body = sealed(dataclasses.asdict(Claim(key, job, printable(socket.gethostname(), 100), created)))
    while turn < MOST_TURNS:
        path = layout.claim_path(key, turn)
        try:
            # First, because among many jobs most that are tried are taken, or were: then nothing is written.
            there = objects.get(path, CLAIM_BYTES)
            if there is None:
                if is_committed(objects, key):
                    return None
                if objects.conditional_put(path, body):
                    return turn
                there = objects.get(path, CLAIM_BYTES)
            standing = _claim(path, there)
        except StoreDamagedError:
            standing = None
        if standing is not None and standing.job != job:
            return standing
        if standing is not None:
            break
        turn += 1
    return None if is_committed(objects, key) else turn


def release(objects: Objects, key: str, turn: int) -> None:
    """Take a job's claim back, and those that were over before it. Raises StoreError: that is refused."""
    for each in range(min(turn, MOST_TURNS - 1) + 1):
        objects.delete(layout.claim_path(key, each))


def withdraw(objects: Objects, job: str) -> None:
    """Take back whatever ``job`` has claimed: it ends. Raises StoreError: that is refused."""
    for key, (turn, _) in standing_claims(objects).items():
        path = layout.claim_path(key, turn)
        body = next(iter(objects.get_many([path], CLAIM_BYTES)))
        found = _claim(path, body) if isinstance(body, bytes) else None
        if found is not None and found.job == job:
            objects.delete(path)


def standing_claims(objects: Objects) -> dict[str, tuple[int, Listed]]:
    """The last turn of every key that is claimed, and what is listed of it, from one listing. None is read."""
    found: dict[str, tuple[int, Listed]] = {}
    for path, listed in objects.listing(layout.CLAIMS).items():
        if (of := layout.claim_of(path)) is not None and of[1] >= found.get(of[0], (0, listed))[0]:
            found[of[0]] = of[1], listed
    return found


def _claim(path: str, body: bytes | None) -> Claim | None:
    """The claim in the object at ``path``, None if it is none."""
    try:
        found = record(Claim, unsealed(body or b""))
        form(SHA256, key=found.key)
        form(ATTEMPT, job=found.job)
        names(host=found.host, created=found.created)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    of = layout.claim_of(path)
    return found if of is not None and of[0] == found.key else None
