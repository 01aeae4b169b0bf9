"""What a store keeps of its texts, in ``texts/``: their lengths and domains. The texts themselves stay outside."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from klray.errors import StoreDamagedError, StoreError, StoreUnreachableError
from klray.store import layout
from klray.store.datasets import UNREADABLE, encode_group, read_arrays
from klray.store.fields import MOST_TEXTS, bounded, names
from klray.store.objects import Objects
from klray.store.seal import sha256_of
from klray.texts import TextSet
from klray.words.outside import parsed

MARKER = f"{layout.TEXTS}/zarr.json"  # written last: its being there says that the others are
CONTENT_TEXTS = 32  # in one chunk: who looks at a few texts fetches few
AGAIN = "run klray score on it once more, with the same texts="


@dataclasses.dataclass(frozen=True)
class TextFacts:
    """What a store keeps of its text set: (N,) bytes, (N,) domain labels, name and fingerprint."""

    name: str
    fingerprint: str
    text_bytes: npt.NDArray[np.int32]
    domains: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes and the domains, as canonical JSON."""
        facts = [self.text_bytes.tolist(), self.domains]
        return sha256_of(json.dumps(facts, separators=(",", ":")).encode())


def text_facts(text_set: TextSet) -> TextFacts:
    """What a store of ``text_set`` keeps of it."""
    return TextFacts(text_set.name, text_set.fingerprint, text_set.n_bytes.astype(np.int32), text_set.domains)


def read_texts(objects: Objects, root: Mapping[str, Any]) -> TextFacts:
    """The facts about the texts that the root's attributes name.

    Raises StoreError: they were never written whole, or are damaged.
    """
    if objects.get(MARKER) is None:
        raise StoreDamagedError(f"store {objects.url}: its creation was cut short; {AGAIN}")
    try:
        facts = _read(objects, root["text_set_name"], root["text_set"], {"text": root["n_texts"]})
    except StoreUnreachableError:
        raise
    except UNREADABLE as error:
        raise StoreDamagedError(f"store {objects.url}: its texts/ are damaged ({error}); {AGAIN}") from error
    if root.get("texts_sha256", facts.sha256) != facts.sha256:  # klray 0.1.0 before its first release kept none
        raise StoreDamagedError(f"store {objects.url}: its texts/ hold other values than were written; {AGAIN}")
    return facts


def find_texts(objects: Objects) -> TextFacts | None:
    """What ``texts/`` says, whatever the root says; None when it cannot be read."""
    try:
        attributes = parsed(objects.get(MARKER) or b"")["attributes"]
        return _read(objects, str(attributes["text_set_name"]), str(attributes["text_set"]), {})
    except StoreUnreachableError:
        raise
    except UNREADABLE:
        return None


def _read(objects: Objects, name: str, fingerprint: str, sizes: Mapping[str, int]) -> TextFacts:
    names(text_set_name=name, text_set=fingerprint)
    found = read_arrays(objects, layout.TEXTS, ("text_bytes", "domain"), sizes)
    if found["text_bytes"].ndim != 1 or found["text_bytes"].shape != found["domain"].shape:
        raise ValueError("bytes and domains are not those of the same texts")
    bounded(MOST_TEXTS, 1, n_texts=len(found["text_bytes"]))
    return TextFacts(
        name=name,
        fingerprint=fingerprint,
        text_bytes=found["text_bytes"].astype(np.int32),
        domains=tuple(map(str, found["domain"])),
    )


def write_texts(objects: Objects, root: Mapping[str, Any], facts: TextFacts) -> None:
    """Write them below a root that names the same text set: two writers write the same bytes.

    Raises StoreError: the domains are others than the root knows.
    """
    if root.get("texts_sha256", facts.sha256) != facts.sha256:
        raise StoreError(
            f"store {objects.url}: its texts/ are damaged, and the texts that were given have other domains than those "
            f"it was made for (text set {root['text_set_name']}); set texts= as it was then, with the same domains"
        )
    bodies = encode_group(
        {"text_bytes": facts.text_bytes, "domain": np.array(facts.domains, dtype=object)},
        {"": {"text_set": facts.fingerprint, "text_set_name": facts.name}},
    )
    marker = bodies.pop("zarr.json")
    objects.put_many({f"{layout.TEXTS}/{name}": body for name, body in bodies.items()})
    objects.put(MARKER, marker)


def publish_texts(objects: Objects, facts: TextFacts, text_set: TextSet) -> None:
    """Write the texts themselves beside the facts about them, for every reader of the store; once.

    Raises StoreError: they are not the texts of the store.
    """
    if text_set.fingerprint != facts.fingerprint:
        raise StoreError(
            f"texts.publish=true: store {objects.url} is of the texts {facts.name} ({facts.fingerprint[:8]}...), and "
            f"{text_set.name} ({text_set.fingerprint[:8]}...) was given; set texts= as it was"
        )
    metadata = f"{layout.TEXTS}/content/zarr.json"
    if objects.get(metadata) is not None:
        return
    contents = np.array(text_set.texts, dtype=object)
    chunks = (min(CONTENT_TEXTS, len(contents)),)
    bodies = encode_group({"content": contents}, {}, chunks, config={"write_empty_chunks": True})
    last = bodies.pop("content/zarr.json")
    objects.put_many({f"{layout.TEXTS}/{name}": body for name, body in bodies.items() if name != "zarr.json"})
    objects.put(metadata, last)
