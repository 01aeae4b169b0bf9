"""Zarr on the objects of a klray store: the same patience, words and sessions as every other request."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from klray.errors import StoreDamagedError
from klray.store.arrays import StoredGroup
from klray.store.objects import OBJECT_BYTES, Objects
from klray.store.seal import sha256_of


class ZarrStore(Store):
    """The Zarr store below ``prefix`` of ``objects``.

    ``hashes``: SHA-256 of objects that were written once: one that is missing or holds other bytes raises StoreError.
    ``whole``: of arrays whose names match this pattern every chunk was written, so that a missing one raises StoreError
    in place of reading as fill values. ``cure`` is what to do then. ``group``, for reading: what was declared of the
    arrays there, and looked at; nothing else is read, and of no chunk more than that.
    """

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(
        self,
        objects: Objects,
        prefix: str,
        *,
        hashes: Mapping[str, str] | None = None,
        whole: str = "",
        cure: str = "",
        group: StoredGroup | None = None,
        read_only: bool = False,
    ):
        super().__init__(read_only=read_only)
        self._objects, self._prefix, self._cure = objects, prefix, cure
        self._hashes, self._whole, self._group = hashes or {}, whole, group

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ZarrStore)
            and (self._objects.url, self._prefix) == (other._objects.url, other._prefix)
            and self.read_only == other.read_only
        )

    def __repr__(self) -> str:
        return f"ZarrStore({self._objects.url}/{self._prefix})"

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}"

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The object's bytes, or a part of them; None when there is no such object."""
        body = await asyncio.to_thread(self._read, key)
        return None if body is None else prototype.buffer.from_bytes(_part(body, byte_range))

    def _read(self, key: str) -> bytes | None:
        if self._group is None:
            return self._objects.get(self._key(key), OBJECT_BYTES)
        if key == "zarr.json":
            return self._group.metadata
        array = self._group.arrays.get(key.partition("/c")[0])
        if array is None:
            return None
        body = self._objects.get(self._key(key), array.stored_bytes)
        sha256 = self._hashes.get(key)
        if body is None:
            if not sha256 and not re.fullmatch(f"(?:{self._whole})/c(?:/.*)?", key):
                return None
            wrong = "is missing: it was written and is gone"
        elif sha256 and sha256_of(body) != sha256:
            wrong = "holds other bytes than were written"
        else:
            try:
                array.check(body)
                return body
            except ValueError as error:
                wrong = f"is no chunk of its array: {error}"
        raise StoreDamagedError(
            f"store {self._objects.url}: {self._key(key)} {wrong}; klray verify says what else is damaged, and "
            f"{self._cure}"
        )

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Parts of several objects."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return await asyncio.to_thread(self._objects.get, self._key(key)) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object whole."""
        self._check_writable()
        await asyncio.to_thread(self._objects.put, self._key(key), value.to_bytes())

    async def delete(self, key: str) -> None:
        """Remove an object."""
        self._check_writable()
        await asyncio.to_thread(self._objects.delete_tree, self._key(key))

    async def list(self) -> AsyncIterator[str]:
        """Keys of all objects."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Keys of all objects that begin with ``prefix``."""
        for key in await asyncio.to_thread(self._objects.walk, self._prefix):
            below = key.removeprefix(f"{self._prefix}/")
            if below.startswith(prefix):
                yield below

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names directly below ``prefix``."""
        for name in await asyncio.to_thread(self._objects.names, self._key(prefix).rstrip("/")):
            yield name


def _part(body: bytes, byte_range: Any) -> bytes:
    if isinstance(byte_range, RangeByteRequest):
        return body[byte_range.start : byte_range.end]
    if isinstance(byte_range, OffsetByteRequest):
        return body[byte_range.offset :]
    if isinstance(byte_range, SuffixByteRequest):
        return body[-byte_range.suffix :]
    return body
