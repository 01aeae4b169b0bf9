"""Named objects in one place: the few operations that the store's protocol rests on.

``create`` is the one that matters: it makes an object only if none has that name, whole or not at all, whoever else
tries at the same moment. Everything that becomes visible in a store becomes visible through one ``create``.
"""

import abc
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from klray.errors import StoreDamagedError

TEMPORARY = ".tmp"  # end of the name of a file that is being written


class Listed(NamedTuple):
    """What a listing says of an object."""

    written: datetime  # UTC; some servers say whole seconds
    mark: str  # changes when the object is written anew with other content


def is_temporary(key: str) -> bool:
    """Whether a key is that of a file that is being written, or was when its writer died."""
    name = key.rsplit("/", 1)[-1]
    return name.startswith(".") and name.endswith(TEMPORARY)


class Objects(abc.ABC):
    """Objects below one URL; keys are relative, with ``/`` between their parts."""

    url: str
    listable = True

    @property
    def endpoint(self) -> str:
        """URL of the S3 server; "" where there is none."""
        return ""

    def create(self, key: str, body: bytes) -> bool:
        """Make the object if none has this key; True if this call made it. No two calls have the same body.

        It looks first, so that one after another is safe even where the place ignores the condition of a put.
        """
        there = self.get(key)
        return self.conditional_put(key, body) if there is None else there == body

    @abc.abstractmethod
    def conditional_put(self, key: str, body: bytes) -> bool:
        """``create`` as the place decides it, with no look before: one put that is to be refused if the key is taken.

        True also if the key is taken by this very body: the answer to an earlier try was lost.
        """

    @abc.abstractmethod
    def put(self, key: str, body: bytes | bytearray) -> None:
        """Write the object, replacing what was there, whole or not at all; it outlives a power loss."""

    @abc.abstractmethod
    def put_many(self, bodies: Mapping[str, bytes]) -> None:
        """``put`` of several keys, several at a time, in no order."""

    @abc.abstractmethod
    def copy(self, source: str, target: str, fingerprint: str) -> bool:
        """Copy an object where it is stored; False, and nothing is copied, unless ``source`` has that fingerprint."""

    @abc.abstractmethod
    def fingerprints(self, prefix: str) -> dict[str, str]:
        """Keys of all objects below ``prefix``, each with a short text that changes when its content does."""

    @abc.abstractmethod
    def get(self, key: str) -> bytes | None:
        """The object's bytes, or None when there is none."""

    def get_json(self, key: str) -> dict[str, Any] | None:
        """The object parsed as a JSON object, or None when there is none.

        Raises StoreError: the object is there and is no JSON object.
        """
        body = self.get(key)
        try:
            found = None if body is None else json.loads(body)
            if found is not None and not isinstance(found, dict):
                raise ValueError(f"it holds a {type(found).__name__}")
            return found
        except ValueError as error:
            raise StoreDamagedError(
                f"store {self.url}: {key} is damaged ({error}); remove it and run the command that wrote it again"
            ) from error

    @abc.abstractmethod
    def get_many(self, keys: list[str]) -> list[bytes | None]:
        """``get`` of several keys, several at a time."""

    @abc.abstractmethod
    def names(self, prefix: str) -> list[str]:
        """Sorted names of the objects and folders directly below ``prefix``."""

    @abc.abstractmethod
    def listing(self, prefix: str) -> dict[str, Listed]:
        """Keys of all objects below ``prefix``, with what a listing says of each: no object is read."""

    def walk(self, prefix: str) -> dict[str, datetime]:
        """Keys of all objects below ``prefix``, with the time (UTC) at which each was written."""
        return {key: each.written for key, each in self.listing(prefix).items()}

    @abc.abstractmethod
    def delete_tree(self, prefix: str) -> None:
        """Remove every object below ``prefix``; nothing happens when there is none."""
