"""Named objects in one place: the few operations that the store's protocol rests on.

``create`` is the one that matters: it makes an object only if none has that name, whole or not at all, whoever else
tries at the same moment. Everything that becomes visible in a store becomes visible through one ``create``.
"""

import abc
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from klray.errors import StoreDamagedError, StoreError
from klray.words.outside import parsed

TEMPORARY = ".tmp"  # end of the name of a file that is being written
JSON_BYTES = 16 * 2**20  # a manifest of 80,000 chunks, a plan of 240,000 keys; parsed, 20 times as much at the worst
OBJECT_BYTES = 64 * 2**20  # of what is no JSON and whose size does not follow from what is known of it
LARGEST_OBJECT = 2**30  # of any: 100 layers of 2,600,000 texts
LONGEST_KEY, LONGEST_PART = 1024, 255  # bytes, of S3 and of file systems
NO_OBJECT = "no file", "too large"  # in place of the fingerprint of what stands where an object belongs
ODD = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\?]")  # in no key that klray makes


class Listed(NamedTuple):
    """What a listing says of an object."""

    written: datetime  # UTC; some servers say whole seconds
    mark: str  # changes when the object is written anew with other content


def is_temporary(key: str) -> bool:
    """Whether a key is that of a file that is being written, or was when its writer died."""
    name = key.rsplit("/", 1)[-1]
    return name.startswith(".") and name.endswith(TEMPORARY)


def is_key(key: str) -> bool:
    """Whether ``key`` can be that of an object: relative, without parts that lead elsewhere or are none."""
    parts = key.split("/")
    return (
        not ODD.search(key)
        and not {"", ".", ".."}.intersection(parts)
        and len(key.encode()) <= LONGEST_KEY
        and all(len(part.encode()) <= LONGEST_PART for part in parts)
    )


class Objects(abc.ABC):
    """Objects below one URL; keys are relative, with ``/`` between their parts (``is_key``).

    A place asks for no other key, and lists none: keys may stand in objects that anybody wrote.
    """

    url: str
    listable = True

    @property
    def endpoint(self) -> str:
        """URL of the S3 server; "" where there is none."""
        return ""

    def create(self, key: str, body: bytes) -> bool:
        """Make the object if none has this key; True if it holds ``body`` then: this call made it, or one with the same
        body did. Of two that must tell who was first the bodies differ.

        It looks first, so that one after another is safe even where the place ignores the condition of a put.
        """
        there = self.get(key)
        return self.conditional_put(key, body) if there is None else there == body

    @abc.abstractmethod
    def conditional_put(self, key: str, body: bytes) -> bool:
        """``create`` as the place decides it, with no look before: one put that is to be refused if the key is taken.

        True also if the key is taken by this very body: the answer to an earlier try was lost, or another wrote it.
        """

    @abc.abstractmethod
    def put(self, key: str, body: bytes | bytearray, content_type: str = "") -> None:
        """Write the object, replacing what was there, whole or not at all; it outlives a power loss.

        A server says ``content_type`` of it to browsers.
        """

    def address(self, key: str) -> str:
        """Where a browser finds an object that everybody may read; in a folder its path."""
        return f"{self.endpoint}/{self.url.removeprefix('s3://')}/{key}" if self.endpoint else f"{self.url}/{key}"

    @abc.abstractmethod
    def put_many(self, bodies: Mapping[str, bytes]) -> None:
        """``put`` of several keys, several at a time, in no order."""

    @abc.abstractmethod
    def copy(self, source: str, target: str, fingerprint: str) -> bool:
        """Copy an object where it is stored; False, and nothing is copied, unless ``source`` has that fingerprint."""

    @abc.abstractmethod
    def fingerprints(self, prefix: str) -> dict[str, str]:
        """Keys of all objects below ``prefix``, each with a short text that changes when its content does.

        What stands there and is no object has one of ``NO_OBJECT``.
        """

    @abc.abstractmethod
    def get(self, key: str, most: int = JSON_BYTES) -> bytes | None:
        """The object's bytes, or None when there is none. Raises StoreDamagedError: it has more than ``most`` bytes."""

    def get_json(self, key: str) -> dict[str, Any] | None:
        """The object parsed as a JSON object, or None when there is none.

        Raises StoreError: the object is there and is no JSON object.
        """
        body = self.get(key)
        try:
            found = None if body is None else parsed(body)
            if found is not None and not isinstance(found, dict):
                raise ValueError(f"it holds a {type(found).__name__}")
            return found
        except ValueError as error:
            raise StoreDamagedError(
                f"store {self.url}: {key} is damaged ({error}); remove it and run the command that wrote it again"
            ) from error

    @abc.abstractmethod
    def get_many(self, keys: list[str], most: int = JSON_BYTES) -> Iterable[bytes | StoreDamagedError | None]:
        """``get`` of several keys, several at a time; what it raised of one that is damaged stands in its place."""

    def _get_or_damage(self, key: str, most: int) -> bytes | StoreDamagedError | None:
        try:
            return self.get(key, most)
        except StoreDamagedError as error:
            return error

    def _checked(self, key: str) -> str:
        """``key``, or "" for the place itself. Raises StoreError: it is none."""
        if key and not is_key(key):
            shown = ascii(key[:LONGEST_PART])
            raise StoreError(f"store {self.url}: {shown} is no key of an object in a store: it could lead out of it")
        return key

    def _check_size(self, key: str, size: int, most: int) -> None:
        if size > most:
            raise StoreDamagedError(
                f"store {self.url}: {key} has {size:,} bytes or more, and klray writes at most {most:,} there: it is "
                "not read; klray verify says what else is damaged"
            )

    @abc.abstractmethod
    def names(self, prefix: str) -> list[str]:
        """Sorted names of the objects and folders directly below ``prefix``."""

    @abc.abstractmethod
    def listing(self, prefix: str) -> dict[str, Listed]:
        """Keys of all objects below ``prefix``, with what a listing says of each: no object is read."""

    def walk(self, prefix: str) -> dict[str, datetime]:
        """Keys of all objects below ``prefix``, with the time (UTC) at which each was written."""
        return {key: each.written for key, each in self.listing(prefix).items()}

    def delete(self, key: str) -> None:
        """Remove one object; nothing happens when there is none."""
        self.delete_tree(key)

    @abc.abstractmethod
    def delete_tree(self, prefix: str) -> None:
        """Remove every object below ``prefix``; nothing happens when there is none."""
