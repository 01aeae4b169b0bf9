"""Records of work: why a checkpoint has no column, and what jobs were asked to score.

A commit outdates the failures of its key. Equal plans are one object. A damaged record is passed over.
"""

import dataclasses
import json
import logging
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime

from klray.errors import Reason, refuse_unfit
from klray.store import layout
from klray.store.columns import committed
from klray.store.fields import ATTEMPT, SHA256, form, record
from klray.store.identity import Identity
from klray.store.objects import Objects
from klray.store.seal import read_parsed, sealed, sha256_of, unsealed
from klray.words.outside import parsed, printable, sentence
from klray.words.secrets import without_secrets

log = logging.getLogger("klray")


@dataclasses.dataclass(frozen=True)
class Failure:
    """One failed attempt at one checkpoint."""

    key: str
    repository: str
    revision: str
    reason: Reason
    message: str
    attempt: str
    created: str  # ISO 8601, UTC


def record_failure(
    objects: Objects, identity: Identity, revision: str, reason: Reason, message: str, attempt: str
) -> Failure:
    """Write why the checkpoint of ``identity`` could not be scored this time; its words are made fit to be shown.

    Raises KlrayError: the identity is none that a store can keep.
    """
    refuse_unfit("failure", dataclasses.asdict(identity))
    created = datetime.now(UTC).isoformat(timespec="microseconds")
    message = sentence(without_secrets(message))  # it will be published
    failure = Failure(identity.key, identity.repository, printable(revision), reason, message, attempt, created)
    objects.put(layout.failure_path(failure.key, attempt), sealed(dataclasses.asdict(failure)))
    return failure


def standing_failures(objects: Objects) -> list[Failure]:
    """The latest failure of every checkpoint that has no commit, by repository and revision.

    A later record, or a commit, of the same key outdates an earlier one.
    """
    done = committed(objects)
    names = [name for name in objects.names(layout.FAILURES) if name.split("-")[0] not in done]
    latest: dict[str, Failure] = {}
    for path, failure in read_parsed(objects, [f"{layout.FAILURES}/{name}" for name in names], _failure):
        if isinstance(failure, Exception):
            words = "store %s: %s is damaged (%s) and passed over; klray score records the failure again if it lasts"
            log.warning(words, objects.url, path, failure)
            continue
        if failure.key not in latest or latest[failure.key].created < failure.created:
            latest[failure.key] = failure
    return sorted(latest.values(), key=lambda failure: (failure.repository, failure.revision))


def _failure(path: str, body: bytes) -> Failure:
    """The record in the object at ``path``; ValueError if it is not what was written."""
    failure = record(Failure, unsealed(body))
    form(SHA256, key=failure.key)
    form(ATTEMPT, attempt=failure.attempt)
    if path != layout.failure_path(failure.key, failure.attempt):
        raise ValueError(f"it is the record of {failure.key}")
    return failure


def withdraw_failures(objects: Objects, identities: Iterable[Identity]) -> None:
    """Remove the records of what could not be resolved before and can be now: no commit would ever outdate them."""
    keys = {identity.key for identity in identities}
    for name in objects.names(layout.FAILURES):
        if name.split("-")[0] in keys:
            objects.delete_tree(f"{layout.FAILURES}/{name}")


def record_plan(objects: Objects, family: str, keys: Iterable[str]) -> None:
    """Write down that the columns of ``keys`` are wanted; a plan that is there already is not written again."""
    refuse_unfit("plan", {"family": family})
    body = json.dumps({"family": family, "keys": sorted(set(keys))}, indent=0).encode()
    path = layout.plan_path(family, sha256_of(body))
    if not objects.create(path, body):  # what is there under this hash is something else
        log.warning("store %s: plan %s was damaged and is written again", objects.url, path)
        objects.put(path, body)


def wanted_keys(objects: Objects) -> dict[str, set[str]]:
    """Keys of all columns that were ever asked for, by family."""
    wanted: dict[str, set[str]] = defaultdict(set)
    names = [name for name in objects.names(layout.PLANS) if name.endswith(".json")]
    for path, plan in read_parsed(objects, [f"{layout.PLANS}/{name}" for name in names], _plan):
        if isinstance(plan, Exception):
            log.warning("store %s: %s cannot be read (%s); it is passed over", objects.url, path, plan)
        else:
            wanted[plan[0]].update(plan[1])
    return dict(wanted)


@dataclasses.dataclass(frozen=True)
class _Plan:
    family: str
    keys: tuple[str, ...]


def _plan(path: str, body: bytes) -> tuple[str, tuple[str, ...]]:
    plan = record(_Plan, parsed(body))
    if layout.plan_path(plan.family, sha256_of(body)) != path:
        raise ValueError("it is not what was written")
    return plan.family, plan.keys
