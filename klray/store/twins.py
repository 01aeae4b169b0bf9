"""Columns of checkpoints that hold the same files as one that is committed: the same values, under another identity."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from klray.errors import StoreDamagedError
from klray.store import layout
from klray.store.columns import Commit, find_commits, put_and_commit
from klray.store.identity import Identity
from klray.store.objects import Objects

log = logging.getLogger("klray")


def take_over(
    objects: Objects, source: str, identity: Identity, facts: Mapping[str, Any]
) -> tuple[Commit, bool] | None:
    """Commit the values of the column with the key ``source`` for ``identity``, too: (commit, whether it is the first).

    ``facts`` go before those of the source, and ``taken_from`` names it, as repository@commit. None when the source is
    gone or damaged: then there is nothing to take over.
    """
    start = time.time()
    try:
        known = next(iter(find_commits(objects, [source])), None)
    except StoreDamagedError as error:
        log.warning("%s", error)
        known = None
    if known is None or not known.objects:  # klray 0.1.0 before its first release kept no hashes of objects
        return None
    found = objects.get_many([f"{known.path}/{name}" for name in known.objects])
    bodies = {name: body or b"" for name, body in zip(known.objects, found, strict=True)}
    damaged = [name for name, body in bodies.items() if hashlib.sha256(body).hexdigest() != known.objects[name]]
    if damaged:
        log.warning("store %s: %s/%s is not what was committed: not taken over", objects.url, known.path, damaged[0])
        return None
    attempt = uuid.uuid4().hex
    path = layout.column_path(identity.repository, str(facts.get("revision", "")), identity.key, attempt)
    commit = dataclasses.replace(
        known,
        key=identity.key,
        path=path,
        attempt=attempt,
        identity=identity,
        facts={**known.facts, **facts, "taken_from": f"{known.identity.repository}@{known.identity.commit}"},
        timings={},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return commit, put_and_commit(objects, {f"{path}/{name}": body for name, body in bodies.items()}, commit, start)
