"""The root of a store: the object whose creation claims a place for one text set, and its way back when it is damaged.

The root is what everybody reads first. Commits and snapshots name the text set too, so that a root that was lost or
damaged is written again by whoever comes with the same texts, and by nobody else.
"""

import contextlib
import dataclasses
import json
import logging
import uuid
from typing import Any

import numpy as np

from klray.errors import StoreDamagedError, StoreError
from klray.store import layout
from klray.store.columns import Commit
from klray.store.fields import MOST_TEXTS, bounded, names, record, shown
from klray.store.objects import Objects, probe
from klray.store.seal import read_parsed, sealed, unsealed
from klray.store.snapshots import read_manifests, snapshot_ids
from klray.store.text_facts import AGAIN, MARKER, TextFacts, find_texts
from klray.words.numbers import counted
from klray.words.outside import parsed

log = logging.getLogger("klray")

ROOT_BYTES = 2**20
WITNESSES = 32  # commits that are asked for their text set: every one has the store's, and some may be damaged too


class DamagedRootError(StoreDamagedError):
    """The root is there and cannot be believed, or is missing where a store is."""


@dataclasses.dataclass(frozen=True)
class _Root:
    """What the root must say, and how."""

    text_set: str
    text_set_name: str
    n_texts: int
    texts_sha256: str = ""


def find_root(objects: Objects) -> dict[str, Any] | None:
    """The root's attributes, or None where no store is.

    Raises DamagedRootError: it is not what was written, or is missing from a store that has texts; StoreError: it is of
    a newer schema, or was not made by klray.
    """
    body = objects.get(layout.ROOT, ROOT_BYTES)
    if body is None:
        if objects.get(MARKER) is None:
            return None
        body = objects.get(layout.ROOT, ROOT_BYTES)  # another job may have created the store between the two looks
        if body is None:
            raise DamagedRootError(f"store {objects.url}: its {layout.ROOT} is missing; {AGAIN}")
    try:
        return _attributes(objects, body)
    except StoreError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedRootError(f"store {objects.url}: its {layout.ROOT} is damaged ({error}); {AGAIN}") from error


def read_root(objects: Objects) -> dict[str, Any]:
    """``find_root``, where there must be one. Raises StoreError: there is none; or as ``find_root``."""
    root = find_root(objects)
    if root is None:
        cure = ", or let klray score create one there" if objects.listable else ""
        raise StoreError(f"store.url={objects.url}: there is no klray store; check the address{cure}")
    return root


def must_be_mended(objects: Objects, facts: TextFacts) -> bool:
    """Whether the root is lost, damaged or all that was made, and is to be written again for the texts of ``facts``.

    Raises StoreError: the place is taken by something else, or by the store of another text set as far as can still be
    known.
    """
    try:
        if (root := find_root(objects)) is not None:
            return _is_half_made(objects, root, facts)
        strangers = [name for name in objects.names("") if name not in (probe.PREFIX, layout.ROOT)]
        if not strangers or find_root(objects) is not None:  # another job has created the store since
            return False
        found = _witnessed(objects)
        if not found:
            raise StoreError(
                f"store.url={objects.url} is not empty and no klray store: {', '.join(strangers[:3])} are there; "
                "name a new place"
            )
        words = f"store {objects.url}: its {layout.ROOT} is missing"
    except DamagedRootError as error:
        found = _witnessed(objects)
        words = str(error).removesuffix(f"; {AGAIN}")
        if not found:
            raise StoreError(
                f"{words}, and no commit, snapshot or texts can be read there that would say which texts it was for: "
                "there is nothing to go on with; set store.url= to a new place"
            ) from error
    if found != {facts.fingerprint}:
        there = ", ".join(f"{each[:8]}..." for each in sorted(found))
        raise StoreError(
            f"{words}, and what is there is of another text set ({there}) than the "
            f"{counted(len(facts.text_bytes), 'text')} that were given ({facts.name}, {facts.fingerprint[:8]}...): "
            "set texts= as it was, and it is written again"
        )
    kept = find_texts(objects)  # the fingerprint of a text set is of its texts alone
    if kept is not None and np.array_equal(kept.text_bytes, facts.text_bytes) and kept.domains != facts.domains:
        raise StoreError(
            f"{words}, and the texts that were given have other domains than its texts/ ({kept.name}): set texts= as "
            "it was, with the same domains, and it is written again; if texts/ are damaged too, remove them first"
        )
    return True


def _is_half_made(objects: Objects, root: dict[str, Any], facts: TextFacts) -> bool:
    """Whether these texts were given other domains, with which texts/ were never written and nothing was committed."""
    return (
        root["text_set"] == facts.fingerprint
        and root.get("texts_sha256", facts.sha256) != facts.sha256
        and objects.get(MARKER) is None
        and not objects.names(layout.COMMITS)
    )


def claim(objects: Objects, facts: TextFacts, *, mend: bool = False) -> dict[str, Any]:
    """Create the root for ``facts`` unless there is one; its attributes: the first creator's text set is the store's.

    With ``mend`` it is written over. Whoever may do so has found the same text set (``must_be_mended``): two that do it
    at once write the same.
    """
    fields = {
        "klray_schema": layout.SCHEMA_VERSION,
        "text_set": facts.fingerprint,
        "text_set_name": facts.name,
        "n_texts": len(facts.text_bytes),
        "texts_sha256": facts.sha256,
        "created_by": uuid.uuid4().hex,
    }
    attributes = json.loads(sealed(fields))
    body = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}, indent=1).encode()
    if mend:
        objects.put(layout.ROOT, body)
        log.warning("store %s: its %s was lost or damaged, and was written again", objects.url, layout.ROOT)
    else:
        objects.create(layout.ROOT, body)
    return check_text_set(objects, read_root(objects), facts)


def check_text_set(objects: Objects, root: dict[str, Any], facts: TextFacts) -> dict[str, Any]:
    """``root``, if it is that of a store for the texts of ``facts``. Raises StoreError: it is for others."""
    if root["text_set"] != facts.fingerprint:
        given = len(facts.text_bytes)
        raise StoreError(
            f"store {objects.url} holds {counted(root['n_texts'], 'text')} (text set {root['text_set_name']}, "
            f"{root['text_set'][:8]}...), but is given {counted(given, 'text')} (text set {facts.name}, "
            f"{facts.fingerprint[:8]}...); columns of different text sets cannot be compared: set texts= as it was, "
            "or store.url= to a new place"
        )
    return root


def _attributes(objects: Objects, body: bytes) -> dict[str, Any]:
    root = parsed(body)
    if not isinstance(root, dict) or not isinstance(root.get("attributes", {}), dict):
        raise ValueError(f"it holds a {type(root).__name__}")
    attributes = root.get("attributes", {})
    schema = attributes.get("klray_schema")
    if schema is not None and (not isinstance(schema, int) or isinstance(schema, bool)):
        raise ValueError(f"its schema is {shown(schema)}")
    if schema is None and objects.get(MARKER) is not None:
        raise ValueError("it is not klray's")
    if schema is None:
        raise StoreError(
            f"store.url={objects.url}: the Zarr group there was not made by klray; set store.url= to a new place"
        )
    if schema > layout.SCHEMA_VERSION:  # before the seal, which may be another then
        raise StoreError(
            f"store {objects.url} has schema {shown(schema)}, this klray reads up to schema {layout.SCHEMA_VERSION}; "
            "upgrade klray to open it"
        )
    kept = unsealed(attributes)
    known = record(_Root, {name: value for name, value in kept.items() if name in _Root.__annotations__})
    names(text_set=known.text_set, text_set_name=known.text_set_name, texts_sha256=known.texts_sha256)
    bounded(MOST_TEXTS, 1, n_texts=known.n_texts)
    if not known.text_set_name:
        raise ValueError("it names no text set")
    return kept


def _witnessed(objects: Objects) -> set[str]:
    """Fingerprints of the text sets that commits, else snapshots, else texts/ were made for, as far as can be read."""
    paths = [f"{layout.COMMITS}/{name}" for name in objects.names(layout.COMMITS)[:WITNESSES]]
    commits = [commit for _, commit in read_parsed(objects, paths, Commit.from_json)]
    found = {commit.identity.text_set for commit in commits if isinstance(commit, Commit)}
    if not found:
        found = {each.text_set for each in read_manifests(objects, snapshot_ids(objects)[-WITNESSES:])}
    if not found:
        body = objects.get(MARKER) or b""
        with contextlib.suppress(ValueError, TypeError, KeyError):
            found.add(str(parsed(body)["attributes"]["text_set"]))
    return found
