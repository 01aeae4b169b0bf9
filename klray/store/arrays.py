"""What a stored array may be, looked at before Zarr, xarray or a decompressor see anything of it.

A store that somebody else wrote may claim any shape, type and codec. What klray writes is numbers and labels in regular
chunks, as they are or through zstd; nothing else is read, and of that only what has the size that was declared.
"""

import dataclasses
import math
import re
import struct
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numcodecs import VLenUTF8, Zstd

from klray.store.fields import MOST_TEXTS, shown
from klray.words.outside import LONGEST, parsed

LARGEST_CHUNK = 256 * 2**20  # bytes in memory
LABEL_BYTES = 512  # of one label in the mean of a chunk
SMALL_CHUNK = 64 * 2**10  # bytes that a chunk of a few labels may have
MOST_DIMS = 8
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
NUMBERS = {"bool": 1} | {f"{kind}{8 * size}": size for kind in ("int", "uint") for size in (1, 2, 4, 8)}
NUMBERS |= {f"float{8 * size}": size for size in (2, 4, 8)}
NAN = "AAAAAAAA+H8="  # as xarray writes it
DECODED = {"scale_factor", "add_offset", "missing_value", "_Unsigned", "_Encoding", "calendar"}  # attributes
FIXED = "fixed_length_utf32"
CODECS = (["bytes"], ["bytes", "zstd"], ["vlen-utf8"], ["vlen-utf8", "zstd"])


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array as its metadata declare it, within bounds."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: str
    compressed: bool

    @classmethod
    def from_metadata(cls, name: str, fields: Any) -> "StoredArray":
        """Of the parsed ``zarr.json`` of an array. Raises ValueError: it is none that klray writes."""
        where = f"array {shown(name)}"
        if not NAME.fullmatch(name) or not isinstance(fields, dict):
            raise ValueError(f"{where} is none")
        try:
            grid, keys = fields["chunk_grid"], fields["chunk_key_encoding"]
            codecs, dtype = [each["name"] for each in fields["codecs"]], fields["data_type"]
            shape, chunk = tuple(fields["shape"]), tuple(grid["configuration"]["chunk_shape"])
            dims = tuple(fields["dimension_names"] or ())
            regular = (fields["zarr_format"], fields["node_type"], grid["name"], keys["name"]) == (
                *(3, "array", "regular", "default"),
            )
            attributes = dict(fields.get("attributes", {}))
            separator = keys.get("configuration", {}).get("separator", "/")
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise ValueError(f"{where} has metadata that klray does not write ({error!r:.60})") from None
        if not regular or separator != "/" or fields.get("storage_transformers"):
            raise ValueError(f"{where} is stored in a way that klray does not write")
        dtype = _fixed_labels(dtype) if isinstance(dtype, dict) else dtype
        if not isinstance(dtype, str) or _item_bytes(dtype) == 0:
            raise ValueError(f"{where} holds {shown(dtype)}, which klray neither writes nor reads")
        for name_of, value in attributes.items():
            told = {"dtype": value == "bool", "_FillValue": value == NAN, "units": " since " not in str(value)}
            if name_of in DECODED or not told.get(name_of, True):
                raise ValueError(f"{where} is to be decoded by its {name_of}, {shown(value)}, which klray never writes")
        if codecs not in CODECS or (codecs[0] == "vlen-utf8") != (dtype == "string"):
            raise ValueError(f"{where} goes through {shown(codecs)}, which klray neither writes nor reads")
        if not len(dims) == len(shape) == len(chunk) <= MOST_DIMS or not all(isinstance(each, str) for each in dims):
            raise ValueError(f"{where} has dimensions {shown(dims)}, a shape {shown(shape)}, a chunk {shown(chunk)}")
        for size in (*shape, *chunk):
            if type(size) is not int or not 0 <= size <= MOST_TEXTS:
                raise ValueError(
                    f"{where} has a shape {shown(shape)} and a chunk {shown(chunk)}: klray reads none such"
                )
        if 0 in chunk:
            raise ValueError(f"{where} has an empty chunk")
        found = cls(name, dims, shape, chunk, dtype, codecs[-1] == "zstd")
        if found.items * _item_bytes(dtype) > LARGEST_CHUNK:
            raise ValueError(f"{where} has chunks of {shown(chunk)}: klray reads at most {LARGEST_CHUNK:,} bytes")
        return found

    @property
    def items(self) -> int:
        """Values in a chunk."""
        return math.prod(self.chunk)

    @property
    def n_chunks(self) -> int:
        """Chunks of the array, there or not."""
        return math.prod(-(-size // part) for size, part in zip(self.shape, self.chunk, strict=True))

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole array in memory, as far as its metadata say; a label counts as a reference."""
        return math.prod(self.shape) * _item_bytes(self.dtype)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk before compression; of labels, the most."""
        if self.dtype != "string":
            return self.items * _item_bytes(self.dtype)
        return min(LARGEST_CHUNK, SMALL_CHUNK + self.items * LABEL_BYTES)

    @property
    def stored_bytes(self) -> int:
        """The most that a chunk has where it is stored: what zstd cannot compress grows by little."""
        return self.chunk_bytes + self.chunk_bytes // 128 + 1024 if self.compressed else self.chunk_bytes

    def check(self, body: bytes) -> None:
        """Look whether ``body`` is a chunk: unfolded no further than declared.

        Raises ValueError: it is none.
        """
        if self.compressed:
            if zstd_content(body) > self.chunk_bytes:
                raise ValueError(f"it unfolds to more than {self.chunk_bytes:,} bytes")
            try:
                body = bytes(Zstd().decode(body))
            except (RuntimeError, MemoryError) as error:
                raise ValueError(f"it cannot be decompressed ({error})") from None
        if self.dtype != "string":
            if len(body) != self.chunk_bytes:
                raise ValueError(f"it has {len(body):,} bytes in place of {self.chunk_bytes:,}")
            if self.dtype.startswith(FIXED) and np.frombuffer(body, "<u4").max(initial=0) > sys.maxunicode:
                raise ValueError("it holds what is no character")
        elif len(body) < 4 or struct.unpack_from("<I", body)[0] != self.items:
            raise ValueError(f"it does not have {self.items:,} labels")
        else:
            VLenUTF8().decode(np.frombuffer(body, np.uint8))


def _fixed_labels(dtype: dict[str, Any]) -> str:
    """Labels of one width, as xarray writes NumPy's: their name here; "" if they are none, or wider than any."""
    size = dtype.get("configuration", {}).get("length_bytes") if dtype.get("name") == FIXED else None
    return f"{FIXED}:{size}" if type(size) is int and 0 < size <= 4 * LONGEST and size % 4 == 0 else ""


def _item_bytes(dtype: str) -> int:
    """Bytes of a value in memory, of a label the reference to it; 0 of what is none."""
    name, _, size = dtype.partition(":")
    return int(size) if name == FIXED else 8 if dtype == "string" else NUMBERS.get(dtype, 0)


def zstd_content(body: bytes) -> int:
    """Bytes that a zstd frame says it unfolds to (RFC 8878, 3.1.1.1). Raises ValueError: it is none or says nothing."""
    if len(body) < 6 or body[:4] != b"\x28\xb5\x2f\xfd":
        raise ValueError("it is no zstd frame")
    flags = body[4]
    single, wide = flags >> 5 & 1, flags >> 6
    size = (1 if single else 0, 2, 4, 8)[wide]
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[flags & 3]
    if not size or len(body) < start + size:
        raise ValueError("it does not say to how much it unfolds")
    return int.from_bytes(body[start : start + size], "little") + (256 if size == 2 else 0)


@dataclasses.dataclass(frozen=True)
class StoredGroup:
    """The arrays of a Zarr group, looked at, and its ``zarr.json`` with all of their metadata in it."""

    arrays: Mapping[str, StoredArray]
    metadata: bytes

    @property
    def attributes(self) -> dict[str, Any]:
        """Of the group itself."""
        found: dict[str, Any] = parsed(self.metadata)["attributes"]
        return found

    @classmethod
    def from_metadata(cls, body: bytes) -> "StoredGroup":
        """Of a group's consolidated ``zarr.json``. Raises ValueError: it is none that klray writes."""
        fields = parsed(body)
        try:
            inline = fields["consolidated_metadata"]["metadata"]
            group = (fields["zarr_format"], fields["node_type"]) == (3, "group")
            if not group or not isinstance(inline, dict) or not isinstance(fields["attributes"], dict):
                raise ValueError("it is no Zarr group that klray writes")
        except (KeyError, TypeError) as error:
            raise ValueError(f"it is no Zarr group that klray writes ({error!r:.60})") from None
        return cls({name: StoredArray.from_metadata(name, each) for name, each in inline.items()}, body)

    def check(self, sizes: Mapping[str, int], n_objects: int) -> None:
        """Raises ValueError: the arrays do not agree with each other, or with what is known of them.

        ``sizes`` are those of dimensions; ``n_objects`` of the group's objects are named elsewhere, 0 if none are.
        """
        known = dict(sizes)
        for array in self.arrays.values():
            for dim, size in zip(array.dims, array.shape, strict=True):
                if known.setdefault(dim, size) != size:
                    raise ValueError(f"{array.name} has {size:,} along {shown(dim)}, and there are {known[dim]:,}")
        if n_objects and sum(array.n_chunks for array in self.arrays.values()) > n_objects:
            raise ValueError("its arrays claim more chunks than were written")
        if not n_objects and sum(array.n_bytes for array in self.arrays.values()) > 4 * LARGEST_CHUNK:
            raise ValueError("its arrays claim more than was ever written without a record of their objects")
