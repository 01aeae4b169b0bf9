"""The header of a GGUF file as transformers' loader asks the package gguf for it, made of what klray has read already.

The package makes objects of each token of a vocabulary and each of its merges, which takes most of the time in which a
model of a large vocabulary is loaded; transformers asks for that twice, and for the names of an architecture's tensors
anew for each module. Of the tokenizer, which ``gguf_tokenizer`` reads, a model takes the number of tokens.
"""

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import modeling_gguf_pytorch_utils

from klray.checkpoints.gguf import Array, GgufFile
from klray.likelihood.gguf_taken import byte_rows, library

_FLOAT, _BOOL, _STRING, _ARRAY, _INTEGER = 6, 7, 8, 9, 11  # types of metadata, as the format numbers them
_TOKENIZER = "tokenizer."

_lock = threading.Lock()
_known: dict[str, GgufFile] = {}  # by the path that the loader is given; of all threads that are inside
_before: list[Any] = []  # what the loader has else


@dataclass(frozen=True)
class Field:
    """A value of the metadata, as ``gguf.ReaderField``: its items are those of ``parts`` that ``data`` names."""

    parts: list[Any]
    data: Sequence[int]
    types: list[int]


@dataclass(frozen=True)
class Tensor:
    """A tensor, as ``gguf.ReaderTensor``: ``data`` has the bytes of each row."""

    name: str
    tensor_type: Any
    data: np.ndarray


class Header:
    """What the loader takes from ``gguf.GGUFReader``."""

    def __init__(self, file: GgufFile):
        self.fields = {key: _field(file, key, value) for key, value in file.metadata.items()}
        body = np.memmap(file.path, mode="r", dtype=np.uint8)
        self.tensors = [
            Tensor(each.name, library().GGMLQuantizationType(each.kind), byte_rows(each, body)) for each in file.tensors
        ]


@contextmanager
def known(path: Path, file: GgufFile) -> Iterator[None]:
    """Have the loader take what is in ``file`` for the header at ``path``, inside, and show no progress bar."""
    with _lock:
        if not _known:
            _replace()
        _known[str(path)] = file
    try:
        yield
    finally:
        with _lock:
            del _known[str(path)]
            if not _known:
                _put_back()


def _field(file: GgufFile, key: str, value: Any) -> Field:
    if not isinstance(value, Array):
        kinds = {bool: _BOOL, int: _INTEGER, float: _FLOAT, str: _STRING}
        return Field([_part(value)], [0], [kinds[type(value)]])
    if key.startswith(_TOKENIZER):  # as many as there are
        return Field([b""], [0] * value.count, [_ARRAY, _STRING])
    return Field([_part(each) for each in file.items(key)], range(value.count), [_ARRAY, value.kind])


def _part(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else (value,)


def _replace() -> None:
    gguf = library()
    _before[:] = reader, names, bar = gguf.GGUFReader, gguf.get_tensor_name_map, modeling_gguf_pytorch_utils.tqdm

    def read(path: Any, *mode: Any) -> Any:
        file = _known.get(str(path))
        return reader(path, *mode) if file is None else Header(file)

    gguf.GGUFReader, gguf.get_tensor_name_map = read, functools.cache(names)
    modeling_gguf_pytorch_utils.tqdm = functools.partial(bar, disable=True)


def _put_back() -> None:
    gguf = library()
    gguf.GGUFReader, gguf.get_tensor_name_map, modeling_gguf_pytorch_utils.tqdm = _before
