"""GGUF files: what their headers say, read within bounds before a library does, and the tensors behind them.

The format: github.com/ggml-org/ggml, docs/gguf.md. One file holds metadata, the tokenizer and all tensors.
"""

import math
import mmap
import re
import stat
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from klray.words.outside import printable

SUFFIX = ".gguf"
VERSIONS = (2, 3)
_HEADER_BYTES = 1 << 28  # metadata and the table of tensors; a vocabulary of 262,144 takes 14 MB
_KEYS, _TENSORS, _DIMENSIONS = 10_000, 100_000, 4
_NAME_BYTES = 1000
_STRING_BYTES = 1 << 24  # a chat template, at most
_ITEMS = 1_500_000  # of all arrays: libraries make some objects of each; Gemma 3 has 1.3 million
_LARGEST = 1 << 62
_OFF_BITS = 3.0

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _UINT32 = 8, 9, 4

# Type of a tensor: name, numbers in a block, bytes of a block. Those that the package gguf turns into numbers.
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
FLOATS = (0, 1, 30)
# general.file_type of a quantised file, as llama.cpp numbers what its quantisation is called.
_FILE_TYPES = {
    2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L",
    14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S",
    22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE",
}  # fmt: skip
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: its type in ``TYPES``, its shape with rows first, and its bytes."""

    name: str
    kind: int
    shape: tuple[int, ...]
    start: int
    size_bytes: int

    @property
    def entries(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Array:
    """Where an array of the metadata lies in the file."""

    kind: int
    count: int
    start: int
    stop: int


@dataclass(frozen=True)
class GgufFile:
    """A file whose header was found sound. ``metadata`` has numbers, truths and strings, and of arrays the places."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: tuple[Stored, ...]

    @property
    def architecture(self) -> str:
        """As llama.cpp calls it, such as llama or qwen2."""
        return str(self.metadata["general.architecture"])

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(each.entries for each in self.tensors)

    @property
    def bits_per_parameter(self) -> float:
        """As they are stored, scales included."""
        return 8 * sum(each.size_bytes for each in self.tensors) / max(1, self.parameters)

    @property
    def quantization(self) -> str:
        """What the file says that its quantisation is called, such as Q4_K_M, where that can be; "" without any."""
        coded = [each for each in self.tensors if each.kind not in FLOATS]
        if not coded:
            return ""
        counts: Counter[int] = Counter()
        for each in coded:
            counts[each.kind] += each.entries
        bits = 8 * sum(each.size_bytes for each in coded) / counts.total()
        said = _FILE_TYPES.get(self.metadata.get("general.file_type", -1), "")
        digit = next((int(each) for each in said if each.isdigit()), 0)
        # Rows that no block of a K-quantisation divides are kept in more bits than its name says; others lie.
        return said if said and abs(digit - bits) <= _OFF_BITS else TYPES[counts.most_common(1)[0][0]][0]

    @property
    def quantised_share(self) -> float:
        """Of the weights of layers, embeddings and output head apart, how many are in quantised tensors."""
        layers = [each for each in self.tensors if len(each.shape) > 1 and each.name.startswith("blk.")]
        coded = sum(each.entries for each in layers if each.kind not in FLOATS)
        return coded / max(1, sum(each.entries for each in layers))

    @property
    def form(self) -> dict[str, Any]:
        """All but the numbers and the tokenizer: equal for files whose models differ in numbers alone."""
        told = {key: value for key, value in self.metadata.items() if key.startswith(f"{self.architecture}.")}
        arrays = {key: self.items(key) for key, value in told.items() if isinstance(value, Array)}
        return {"architecture": self.architecture, **told, **arrays, "tensors": self.table}

    @cached_property
    def table(self) -> list[tuple[str, int, tuple[int, ...]]]:
        """Name, type and shape of all tensors."""
        return sorted((each.name, each.kind, each.shape) for each in self.tensors)

    def items(self, key: str) -> list[Any]:
        """The values of an array of the metadata; ValueError where a string is no UTF-8."""
        array = self.metadata[key]
        with _mapped(self.path) as body:
            if array.kind == _STRING:
                return list(_strings(body, array))
            kind = _SCALARS[array.kind]
            return list(struct.unpack(f"<{array.count}{kind}", body[array.start : array.stop]))

    def bytes_of(self, key: str) -> bytes:
        """An array of the metadata as it stands."""
        array = self.metadata[key]
        with _mapped(self.path) as body:
            return body[array.start : array.stop]


def is_gguf(place: Path) -> bool:
    """Whether a checkpoint's place is a GGUF file, not a folder."""
    return place.suffix == SUFFIX


def is_part(name: str) -> bool:
    """Whether a file's name says that it is one of several that hold a model together.

    >>> is_part("model-Q8_0-00001-of-00003.gguf"), is_part("model-Q8_0.gguf")
    (True, False)
    """
    return _PART.search(name) is not None


def read_gguf(path: Path) -> GgufFile:
    """Read a file's header. Raises ValueError, whose words go on from the file's name: it is not sound, or not read."""
    try:
        with _mapped(path) as body:
            return _parsed(path, body)
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"is no whole GGUF file: its header ends early or is damaged ({error})") from error


def gguf_fault(path: Path) -> str:
    """What is wrong with a file's header; "" when it is sound."""
    try:
        read_gguf(path)
    except ValueError as error:
        return str(error)
    return ""


def _mapped(path: Path) -> mmap.mmap:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size < 24:
        raise ValueError(f"is no GGUF file: it has {status.st_size:,} bytes")
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


class _Cursor:
    """Reads on, within the bytes that a header may have."""

    def __init__(self, body: mmap.mmap):
        self.body, self.at, self.end = body, 0, min(len(body), _HEADER_BYTES)
        self.items = 0

    def take(self, form: str) -> Any:
        value = struct.unpack_from(f"<{form}", self.body, self.skip(struct.calcsize(f"<{form}")))
        return value if len(value) > 1 else value[0]

    def skip(self, size: int) -> int:
        """Where ``size`` bytes begin that are passed over."""
        start = self.at
        if size > self.end - start:
            raise ValueError(
                f"is no whole GGUF file: its header asks for {size:,} bytes at byte {start:,}, and the file has "
                f"{len(self.body):,}, of which a header may have {_HEADER_BYTES:,}: download it again"
            )
        self.at = start + size
        return start

    def string(self, limit: int, what: str) -> str:
        length = self.take("Q")
        if length > limit:
            raise ValueError(f"has {what} of {length:,} bytes in its header, and {limit:,} is the limit")
        start = self.skip(length)
        return self.body[start : self.at].decode()

    def value(self, kind: int, key: str) -> Any:
        if kind in _SCALARS:
            return self.take(_SCALARS[kind])
        if kind == _STRING:
            return self.string(_STRING_BYTES, printable(key))
        if kind != _ARRAY:
            raise ValueError(f"has metadata of the unknown type {kind} ({printable(key)})")
        inner, count = self.take("IQ")
        if inner not in _SCALARS and inner != _STRING:
            raise ValueError(f"has an array of type {inner} in its metadata ({printable(key)}): nested, or unknown")
        self.items += count
        if self.items > _ITEMS:
            raise ValueError(f"has {self.items:,} items in the arrays of its metadata, and {_ITEMS:,} is the limit")
        start = self.at
        if inner in _SCALARS:
            self.skip(count * struct.calcsize(f"<{_SCALARS[inner]}"))
        else:
            for _ in range(count):
                self.skip(self.take("Q"))
        return Array(inner, count, start, self.at)


def _parsed(path: Path, body: mmap.mmap) -> GgufFile:
    if body[:4] != b"GGUF":
        raise ValueError("is no GGUF file: it does not begin with GGUF; download it again")
    cursor = _Cursor(body)
    cursor.skip(4)
    version, n_tensors, n_keys = cursor.take("IQQ")
    if version not in VERSIONS:
        swapped = " (of the other byte order)" if version and not version & 0xFFFF else ""
        raise ValueError(f"is a GGUF file of version {version}{swapped}, and klray reads 2 and 3: convert it anew")
    for count, limit, what in ((n_tensors, _TENSORS, "tensors"), (n_keys, _KEYS, "keys")):
        if count > limit:
            raise ValueError(f"is said to have {count:,} {what}, and {limit:,} is the limit")
    metadata: dict[str, Any] = {}
    for _ in range(n_keys):
        key = cursor.string(_NAME_BYTES, "a key")
        kind = cursor.take("I")
        if key in metadata:
            raise ValueError(f"has the key {printable(key)} twice")
        metadata[key] = cursor.value(kind, key)
        if key == "general.alignment" and kind != _UINT32:
            raise ValueError("has an alignment that is no number of bytes")
    table = [_entry(cursor) for _ in range(n_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise ValueError(f"has an alignment of {alignment:,} bytes, which is no power of two from 8 to 65,536")
    if not isinstance(metadata.get("general.architecture"), str):
        raise ValueError("says no architecture (general.architecture): convert it anew")
    data = -(-cursor.at // alignment) * alignment
    tensors = tuple(_placed(*each, data, alignment, len(body)) for each in table)
    _check_places(tensors)
    return GgufFile(path, metadata, tensors)


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string(_NAME_BYTES, "a tensor's name")
    n_dimensions = cursor.take("I")
    if not 1 <= n_dimensions <= _DIMENSIONS:
        raise ValueError(f"has a tensor of {n_dimensions:,} dimensions ({printable(name)})")
    shape = tuple(cursor.take("Q") for _ in range(n_dimensions))
    kind, offset = cursor.take("IQ")
    return name, shape[::-1], kind, offset


def _placed(name: str, shape: tuple[int, ...], kind: int, offset: int, data: int, alignment: int, size: int) -> Stored:
    shown = printable(name)
    if kind not in TYPES:
        raise ValueError(
            f"has a tensor of type {kind} ({shown}), which nothing here turns into numbers: choose a file in another "
            "quantisation"
        )
    _, block, block_bytes = TYPES[kind]
    entries = math.prod(shape)
    if not 0 < entries < _LARGEST or shape[-1] % block:
        raise ValueError(f"has a tensor of the shape {shape} ({shown}), which {TYPES[kind][0]} cannot have")
    n_bytes = entries // block * block_bytes
    if offset % alignment or data + offset + n_bytes > size:
        raise ValueError(
            f"is not whole: its tensor {shown} has {n_bytes:,} bytes at byte {data + offset:,}, and the file has "
            f"{size:,}: download it again"
        )
    return Stored(name, kind, shape, data + offset, n_bytes)


def _check_places(tensors: tuple[Stored, ...]) -> None:
    if twice := [name for name, count in Counter(each.name for each in tensors).items() if count > 1]:
        raise ValueError(f"has the tensor {printable(twice[0])} twice")
    end = 0
    for each in sorted(tensors, key=lambda one: one.start):
        if each.start < end:
            raise ValueError(f"has tensors that overlap, at {printable(each.name)}: convert it anew")
        end = each.start + each.size_bytes


def _strings(body: mmap.mmap, array: Array) -> Iterator[str]:
    at = array.start
    for _ in range(array.count):
        (length,) = struct.unpack_from("<Q", body, at)
        at += 8 + length
        yield body[at - length : at].decode()
