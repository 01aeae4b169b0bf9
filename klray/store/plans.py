"""Plans: what jobs were asked to score, so that a store can say how far it is. Equal plans are one object."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable

from klray.store import layout
from klray.store.objects import Objects
from klray.store.seal import read_parsed, sha256_of

log = logging.getLogger("klray")


def record_plan(objects: Objects, family: str, keys: Iterable[str]) -> None:
    """Write down that the columns of ``keys`` are wanted; a plan that is there already is not written again."""
    body = json.dumps({"family": family, "keys": sorted(set(keys))}, indent=0).encode()
    path = _path(family, body)
    if not objects.create(path, body):  # what is there under this hash is something else
        log.warning("store %s: plan %s was damaged and is written again", objects.url, path)
        objects.put(path, body)


def _path(family: str, body: bytes) -> str:
    return layout.plan_path(family, sha256_of(body))


def wanted_keys(objects: Objects) -> dict[str, set[str]]:
    """Keys of all columns that were ever asked for, by family."""
    wanted: dict[str, set[str]] = defaultdict(set)
    names = [name for name in objects.names(layout.PLANS) if name.endswith(".json")]
    for path, plan in read_parsed(objects, [f"{layout.PLANS}/{name}" for name in names], _parsed):
        if isinstance(plan, Exception):
            log.warning("store %s: %s cannot be read (%s); it is passed over", objects.url, path, plan)
        else:
            wanted[plan[0]].update(plan[1])
    return dict(wanted)


def _parsed(path: str, body: bytes) -> tuple[str, list[str]]:
    plan = json.loads(body)
    family, keys = str(plan["family"]), list(map(str, plan["keys"]))
    if _path(family, body) != path:
        raise ValueError("it is not what was written")
    return family, keys
