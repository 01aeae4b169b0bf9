"""Hostile GGUF files: refused in a sentence, in bounded seconds and memory, before a library reads them."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path

import pytest

from klray.checkpoints import Cache, Checkpoint, Facts, Hub, RemoteFile, RepositorySpec, resolve
from klray.checkpoints.files import Listed
from klray.checkpoints.gguf import read_gguf
from klray.checkpoints.gguf_choice import chosen_gguf, gguf_checkpoint
from klray.errors import CheckpointError
from klray.likelihood.loading import load
from klray.likelihood.tokenizer import load_tokenizer
from tests.hub_faults import select

SECONDS, MEGABYTES = 20.0, 64
MANY = 2**63 - 1


def text(words: str | bytes, length: int | None = None) -> bytes:
    body = words.encode() if isinstance(words, str) else words
    return struct.pack("<Q", len(body) if length is None else length) + body


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(
    name: str | bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0, dimensions: int | None = None
) -> bytes:
    count = len(shape) if dimensions is None else dimensions
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset)


ARCHITECTURE = key("general.architecture", 8, text("llama"))


def file(
    *parts: bytes, keys: int = -1, tensors: int = -1, version: int = 3, data: int = 64, magic: str = "GGUF"
) -> bytes:
    """A file of keys and tensors; ``keys`` and ``tensors`` are how many it is said to have."""
    of_keys = [each for each in parts if each[8:15] in (b"general", b"llama.a", b"llama.b", b"llama.e")]
    infos = [each for each in parts if each not in of_keys]
    counts = (len(infos) if tensors < 0 else tensors, len(of_keys) if keys < 0 else keys)
    body = magic.encode() + struct.pack("<IQQ", version, *counts) + b"".join(of_keys) + b"".join(infos)
    return body + bytes(-len(body) % 32 + data)


def said(name: str, kind: str, value: int) -> bytes:
    """A number of the metadata."""
    return key(name, {"I": 4, "i": 5}[kind], struct.pack(f"<{kind}", value))


def layered(name: str, kind: str, value: int) -> bytes:
    """A Llama of one tensor that counts something else."""
    counts = {"block_count": 1, "embedding_length": 1, "attention.head_count": 1}
    others = [said(f"llama.{each}", "I", number) for each, number in counts.items() if each != name]
    return file(ARCHITECTURE, said(f"llama.{name}", kind, value), *others, tensor("a", (4,)))


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is no GGUF file"),
    "short": (b"GGUF\x03", "is no GGUF file"),
    "another format": (file(ARCHITECTURE, magic="GGML"), "does not begin with GGUF"),
    "web page": (b"<!doctype html><html>" + bytes(64), "is a web page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n" + bytes(64), "Git LFS pointer"),
    "version 1": (file(ARCHITECTURE, version=1), "of version 1"),
    "version of the future": (file(ARCHITECTURE, version=4), "of version 4"),
    "other byte order": (file(ARCHITECTURE, version=3 << 24), "the other byte order"),
    "endless keys": (file(ARCHITECTURE, keys=MANY), "keys, and 10,000 is the limit"),
    "endless tensors": (file(ARCHITECTURE, tensors=MANY), "tensors, and 100,000 is the limit"),
    "negative counts": (file(ARCHITECTURE, keys=2**64 - 1, tensors=2**64 - 1), "is the limit"),
    "more keys than there are": (
        file(ARCHITECTURE, keys=9_000),
        "no whole GGUF file|unknown type|twice",
    ),
    "more tensors than there are": (file(ARCHITECTURE, tensors=90_000), "is no whole GGUF file|dimensions|twice"),
    "key of terabytes": (file(text(b"general.x", 2**42), ARCHITECTURE, keys=2), "a key of 4,398,046,511,104 bytes"),
    "string of gigabytes": (
        file(ARCHITECTURE, key("general.name", 8, text("x", 2**33))),
        "of 8,589,934,592 bytes",
    ),
    "string beyond the end": (file(ARCHITECTURE, key("general.name", 8, text("x", 2**20))), "is no whole GGUF file"),
    "string of negative length": (file(ARCHITECTURE, key("general.name", 8, text("x", 2**64 - 1))), "is the limit"),
    "no UTF-8": (file(ARCHITECTURE, key("general.name", 8, text(b"\xff\xfe"))), "damaged"),
    "unknown metadata": (file(ARCHITECTURE, key("general.x", 77, b"")), "the unknown type 77"),
    "nested arrays": (file(ARCHITECTURE, key("general.x", 9, struct.pack("<IQ", 9, 1) * 500)), "nested, or unknown"),
    "array of unknown": (file(ARCHITECTURE, key("general.x", 9, struct.pack("<IQ", 99, 1))), "nested, or unknown"),
    "endless array": (file(ARCHITECTURE, key("general.x", 9, struct.pack("<IQ", 0, MANY))), "1,500,000 is the limit"),
    "endless strings": (
        file(ARCHITECTURE, key("general.x", 9, struct.pack("<IQ", 8, 1_400_000))),
        "is no whole GGUF file",
    ),
    "array whose strings overflow": (
        file(ARCHITECTURE, key("general.x", 9, struct.pack("<IQQ", 8, 1, 2**64 - 1))),
        "is no whole GGUF file",
    ),
    "key twice": (file(ARCHITECTURE, ARCHITECTURE), "has the key general.architecture twice"),
    "no architecture": (file(key("general.name", 8, text("x"))), "says no architecture"),
    "architecture of another kind": (
        file(said("general.architecture", "I", 7)),
        "says no architecture",
    ),
    "alignment of 0": (file(ARCHITECTURE, said("general.alignment", "I", 0)), "alignment of 0"),
    "alignment of gigabytes": (
        file(ARCHITECTURE, said("general.alignment", "I", 1 << 31)),
        "alignment of",
    ),
    "odd alignment": (file(ARCHITECTURE, said("general.alignment", "I", 48)), "alignment of 48"),
    "alignment in words": (
        file(ARCHITECTURE, key("general.alignment", 8, text("x"))),
        "alignment that is no number",
    ),
    "tensor of terabytes": (file(ARCHITECTURE, tensor("a", (2**40,))), "is not whole"),
    "tensor whose size overflows": (file(ARCHITECTURE, tensor("a", (2**32, 2**32))), "cannot have"),
    "tensor of 2^256": (file(ARCHITECTURE, tensor("a", (2**63, 2**63, 2**63, 2**63))), "cannot have"),
    "tensor of nothing": (file(ARCHITECTURE, tensor("a", (0, 4))), "cannot have"),
    "tensor of no dimensions": (file(ARCHITECTURE, tensor("a", ())), "0 dimensions"),
    "tensor of many dimensions": (
        file(ARCHITECTURE, tensor("a", (1,), dimensions=2**32 - 1)),
        "of 4,294,967,295",
    ),
    "tensor of an unknown type": (file(ARCHITECTURE, tensor("a", (4,), kind=99)), "of type 99"),
    "tensor of integers": (file(ARCHITECTURE, tensor("a", (4,), kind=26)), "of type 26"),
    "broken blocks": (file(ARCHITECTURE, tensor("a", (33,), kind=2)), "which Q4_0 cannot have"),
    "tensor beyond the end": (file(ARCHITECTURE, tensor("a", (4,), offset=2**62)), "is not whole"),
    "tensor before the beginning": (file(ARCHITECTURE, tensor("a", (4,), offset=2**64 - 32)), "is not whole"),
    "crooked place": (file(ARCHITECTURE, tensor("a", (4,), offset=7)), "is not whole"),
    "overlap": (file(ARCHITECTURE, tensor("a", (16,)), tensor("b", (8,), offset=32)), "overlap"),
    "tensor twice": (file(ARCHITECTURE, tensor("a", (4,)), tensor("a", (4,), offset=32)), "the tensor a twice"),
    "name with escapes": (file(ARCHITECTURE, tensor("\x1b[2J", (33,), kind=2)), "�\\[2J"),
    "cut": (file(ARCHITECTURE, tensor("a", (16,)), data=8), "is not whole"),
    "layers without tensors": (layered("block_count", "I", 10**9), "block_count=1000000000"),
    "negative heads": (layered("attention.head_count", "i", -4), "head_count=-4"),
    "billions of heads": (layered("attention.head_count", "I", 10**9), "num_attention_heads=1,000,000,000"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    body, words = HOSTILE[name]
    place = tmp_path / "model.gguf"
    place.write_bytes(body)
    for read in (load, load_tokenizer):
        tracemalloc.start()
        start = time.process_time()
        with pytest.raises(CheckpointError, match=words) as caught:
            read(place)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert caught.value.reason == "load_failed" and str(caught.value).isprintable()
        assert time.process_time() - start < SECONDS and peak < MEGABYTES << 20


def test_a_hostile_file_in_a_folder_is_said_before_anything_is_scored(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(HOSTILE["tensor of terabytes"][0])
    checkpoints, (unavailable,) = resolve(Hub("http://127.0.0.1:9"), select(RepositorySpec(str(tmp_path))))
    assert not checkpoints and unavailable.reason == "load_failed" and "is not whole" in unavailable.message


@pytest.mark.parametrize("target", ["../outside.gguf", "/etc/hostname", "pipe"])
def test_a_link_leads_nowhere_else(target: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.gguf").write_bytes(file(ARCHITECTURE, tensor("a", (4,))))
    if target == "pipe":
        os.mkfifo(folder / "a.gguf")
    else:
        (folder / "a.gguf").symlink_to(target)
    checkpoints, (unavailable,) = resolve(Hub("http://127.0.0.1:9"), select(RepositorySpec(str(folder))))
    assert not checkpoints and unavailable.reason == "no_safe_weights"


ELSEWHERE = ["../x.gguf", "a/../../x.gguf", "/x.gguf", "a\\x.gguf", "a//x.gguf", "x\n.gguf", "\x1b[2J.gguf"]


@pytest.mark.parametrize("path", ELSEWHERE)
def test_a_hub_names_no_file_elsewhere(path: str, tmp_path: Path) -> None:
    there = RemoteFile(path, 64, "0" * 64, None)
    offered = Listed("org/a@main", [], {path: there}.get, lambda file: b"", [path])
    with pytest.raises(CheckpointError, match="may only name files below its own folder") as caught:
        gguf_checkpoint(offered, path, "org/a", "main", Facts(), commit="a" * 40)
    assert caught.value.reason == "no_safe_weights" and str(caught.value).isprintable()
    checkpoint = Checkpoint("org/a/x.gguf", "main", "0" * 64, (there,), Facts(), gguf="x.gguf", hub_commit="a" * 40)
    with Cache(tmp_path / "cache", 10_000) as cache, pytest.raises(CheckpointError, match="no file below") as caught:
        cache.fetch(Hub("http://127.0.0.1:9"), checkpoint)
    assert caught.value.reason == "no_safe_weights"
    assert not [each for each in tmp_path.rglob("*") if each.suffix == ".gguf"]


def test_thousands_of_files_are_not_taken_unasked() -> None:
    paths = [f"{number}.gguf" for number in range(5000)]
    offered = Listed("org/a@main", paths, lambda path: None, lambda file: b"", paths)
    with pytest.raises(CheckpointError, match=r"has 5,000 GGUF files, .* models\.files"):
        chosen_gguf(offered, ())
    assert chosen_gguf(offered, ("4999*",)) == ["4999.gguf"]


def test_a_sound_header_is_read(tmp_path: Path) -> None:
    place = tmp_path / "a.gguf"
    place.write_bytes(file(ARCHITECTURE, tensor("a", (2, 4)), tensor("b", (8,), offset=32)))
    found = read_gguf(place)
    assert [(each.name, each.shape, each.size_bytes) for each in found.tensors] == [("a", (4, 2), 32), ("b", (8,), 32)]
