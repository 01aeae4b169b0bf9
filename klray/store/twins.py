"""Columns of checkpoints that hold the same files as one that is committed: the same values, under another identity."""

import dataclasses
import logging
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from klray.errors import StoreDamagedError, refuse_unfit
from klray.store import layout
from klray.store.columns import Commit, find_commits, of_other_texts, put_and_commit
from klray.store.identity import Identity
from klray.store.objects import Objects
from klray.store.root import read_root
from klray.store.seal import most_of, read_whole
from klray.words.outside import fit

log = logging.getLogger("klray")


def take_over(
    objects: Objects, source: str, identity: Identity, facts: Mapping[str, Any]
) -> tuple[Commit, bool] | None:
    """Commit the values of the column with the key ``source`` for ``identity``, too: (commit, whether it is the first).

    ``facts`` go before those of the source, and ``taken_from`` names it, as repository@commit. None when the source is
    gone or damaged: then there is nothing to take over.
    """
    refuse_unfit("column", dataclasses.asdict(identity))
    start = time.time()
    try:
        known = next(iter(find_commits(objects, [source])), None)
    except StoreDamagedError as error:
        log.warning("%s", error)
        known = None
    if known is None or not known.objects:  # klray 0.1.0 before its first release kept no hashes of objects
        return None
    root = read_root(objects)
    if other := of_other_texts(known, root["text_set"]):
        log.warning("store %s: the column of commit %s: %s: not taken over", objects.url, source, other)
        return None
    values = 4 * len(known.layers) * root["n_texts"]
    hashes = {f"{known.path}/{name}": sha256 for name, sha256 in known.objects.items()}
    whole, wrong = read_whole(objects, hashes, most_of(values))
    if len(whole.get(place := layout.values_path(known.path), b"")) != values:
        wrong.setdefault(place, "has another number of texts")
    for where, what in wrong.items():
        log.warning("store %s: %s %s: not taken over", objects.url, where, what)
        return None
    attempt = uuid.uuid4().hex
    path = layout.column_path(identity.repository, str(facts.get("revision", "")), identity.key, attempt)
    commit = dataclasses.replace(
        known,
        key=identity.key,
        path=path,
        attempt=attempt,
        identity=identity,
        versions=fit(known.versions),
        facts=fit({**known.facts, **facts, "taken_from": f"{known.identity.repository}@{known.identity.commit}"}),
        timings={},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    bodies = {place.replace(known.path, path, 1): body for place, body in whole.items()}
    return commit, put_and_commit(objects, bodies, commit, start)
