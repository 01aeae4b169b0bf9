"""The tokenizer in a GGUF file, whose metadata hold the vocabulary, merges or scores, and a name for the rest.

What is only named there (how a text is cut into words before merges) is known to llama.cpp by that name. transformers
takes GPT-2's way for names that it does not know, without a word: here such names are refused. The names and what they
mean are those of llama.cpp's src/llama-vocab.cpp.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers

from klray.checkpoints.gguf import Array, GgufFile
from klray.errors import CheckpointError
from klray.likelihood.gguf_model import NAME, alone
from klray.words.outside import printable

KEY = "tokenizer.ggml."
_BYTE_LEVEL, _SENTENCEPIECE = "gpt2", "llama"
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)  # kinds of tokens, as SentencePiece numbers them
_LONGEST, _MOST = 1024, 20_000  # characters of a token, special tokens; Gemma has 6,400


@dataclass(frozen=True)
class Way:
    """How texts are cut before merges, beside what transformers does by the name."""

    digits: bool = False  # each by itself, then as GPT-2 does
    known: bool = True  # to transformers; else as GPT-2 does
    whole: bool = False  # a word that is in the vocabulary is one token, whatever the merges make of it
    begins: bool = False  # with a token for the beginning, where the file does not say


_GPT2, _DIGITS = Way(known=False), Way(known=False, digits=True)
_LLAMA3 = Way(whole=True, begins=True)
WAYS: Mapping[str, Way] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "gpt-4o", "llama4"), Way()),
    "tekken": _LLAMA3,
}


def from_gguf(file: GgufFile) -> tuple[Any, bytes]:
    """The tokenizer of a file as transformers makes it, and the SentencePiece model that it stands for, b"" for none.

    Raises CheckpointError (load_failed): there is none, it is of a kind that transformers does not convert, or texts
    are cut in a way that is not known here.
    """
    kind, _ = _kind(file)
    _check_tokens(file)
    with alone(file.path) as folder:
        tokenizer: Any = transformers.PreTrainedTokenizerFast.from_pretrained(
            folder, gguf_file=NAME, local_files_only=True
        )
    tokenizer.init_kwargs["tokenizer_class"] = f"GGUF {kind}{f' {_pre(file)}' if kind == _BYTE_LEVEL else ''}"
    return tokenizer, _sentencepiece_model(file) if kind == _SENTENCEPIECE else b""


def _check_tokens(file: GgufFile) -> None:
    """Refuse (CheckpointError, load_failed) what takes a library time that grows with its square."""
    longest = max((len(token) for token in file.items(f"{KEY}tokens")), default=0)
    alone_kinds = sum(kind in (_CONTROL, _USER) for kind in _kinds(file))
    for found, limit, what in ((longest, _LONGEST, "characters in a token"), (alone_kinds, _MOST, "special tokens")):
        if found > limit:
            raise CheckpointError(
                f"{file.path} has {found:,} {what}, and {limit:,} is the limit: no language model was trained so; put "
                "the tokenizer.json that the model was trained with beside it",
                "load_failed",
            )


def way_of(file: GgufFile) -> Way | None:
    """How a file's byte-level tokenizer cuts texts, None for a SentencePiece vocabulary. Raises as ``from_gguf``."""
    kind, way = _kind(file)
    return way if kind == _BYTE_LEVEL else None


def special_around(file: GgufFile) -> tuple[list[str], list[str]]:
    """Tokens that the file wants before each text, and behind it."""
    kind, way = _kind(file)
    tokens = file.items(f"{KEY}tokens")
    begins = file.metadata.get(f"{KEY}add_bos_token", kind == _SENTENCEPIECE or way.begins)
    ends = file.metadata.get(f"{KEY}add_eos_token", False)
    found: list[list[str]] = []
    for wanted, name in ((begins, "bos"), (ends, "eos")):
        number = file.metadata.get(f"{KEY}{name}_token_id")
        if wanted and number is None:
            raise CheckpointError(f"{file.path} puts {name} around texts and does not say which it is", "load_failed")
        found.append([tokens[number]] if wanted and number is not None else [])
    return found[0], found[1]


def check_ids(file: GgufFile, tokenizer: Any, where: str) -> None:
    """Raise CheckpointError (load_failed) for a tokenizer that gives the model's ids to other tokens."""
    tokens, kinds = file.items(f"{KEY}tokens"), _kinds(file)
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokens))))
    spelling = _byte_spelling()
    for number, (token, name, kind) in enumerate(zip(tokens, names, kinds, strict=True)):
        spelled = "".join(spelling[each] for each in token.encode())
        if kind in (_UNUSED, _BYTE) or token.startswith("[PAD") or name in (token, spelled, token.replace(" ", "▁")):
            continue
        raise CheckpointError(
            f"{file.path} has {printable(token)!r} for token {number:,}, and {where} has {printable(str(name))!r}: "
            "take the tokenizer that belongs to the model",
            "load_failed",
        )
    more = len(tokenizer.get_vocab()) if hasattr(tokenizer, "get_vocab") else 0
    if where == str(file.path) and more > len(tokens):
        raise CheckpointError(
            f"{file.path}: transformers makes {more:,} tokens of the {len(tokens):,} in it: put the tokenizer.json "
            "that the model was trained with beside it",
            "load_failed",
        )


def fingerprint(file: GgufFile) -> str:
    """SHA-256 (64 hex) over what a file says of its tokenizer."""
    digest = hashlib.sha256()
    for key in sorted(each for each in file.metadata if each.startswith("tokenizer.")):
        value = file.metadata[key]
        digest.update(json.dumps([key, value.kind if isinstance(value, Array) else value]).encode())
        digest.update(file.bytes_of(key) if isinstance(value, Array) else b"")
    return digest.hexdigest()


def _kind(file: GgufFile) -> tuple[str, Way]:
    kind = file.metadata.get(f"{KEY}model")
    if not isinstance(kind, str) or not isinstance(file.metadata.get(f"{KEY}tokens"), Array):
        raise CheckpointError(
            f"{file.path} has no tokenizer, and there is none beside it: put the model's tokenizer.json there",
            "load_failed",
        )
    cure = "put the tokenizer.json that the model was trained with beside it"
    if kind not in (_BYTE_LEVEL, _SENTENCEPIECE):
        raise CheckpointError(
            f"{file.path} has a tokenizer of the kind {printable(kind)!r}, and of those in GGUF files klray reads gpt2 "
            f"and llama: {cure}",
            "load_failed",
        )
    needs = ("merges",) if kind == _BYTE_LEVEL else ("scores", "token_type")
    for name in ("tokens", *needs):
        if not isinstance(file.metadata.get(f"{KEY}{name}"), Array):
            raise CheckpointError(f"{file.path} has a tokenizer without its {name}: {cure}", "load_failed")
    if kind == _BYTE_LEVEL and _pre(file) not in WAYS:
        raise CheckpointError(
            f"{file.path} cuts texts into words in the way {printable(_pre(file))!r} (tokenizer.ggml.pre), which is "
            f"not known here: {cure}",
            "load_failed",
        )
    count = file.metadata[f"{KEY}tokens"].count
    for name in ("bos", "eos", "unknown", "padding"):
        number = file.metadata.get(f"{KEY}{name}_token_id", 0)
        if not isinstance(number, int) or not 0 <= number < count:
            raise CheckpointError(
                f"{file.path} names token {printable(str(number))} ({name}), and has {count:,}: {cure}", "load_failed"
            )
    return kind, WAYS[_pre(file)] if kind == _BYTE_LEVEL else Way()


def _pre(file: GgufFile) -> str:
    return str(file.metadata.get(f"{KEY}pre", ""))


def _kinds(file: GgufFile) -> list[int]:
    key = f"{KEY}token_type"
    found = file.items(key) if isinstance(file.metadata.get(key), Array) else []
    count = file.metadata[f"{KEY}tokens"].count
    return found if len(found) == count else [_NORMAL] * count


def _byte_spelling() -> dict[int, str]:
    """How byte-level vocabularies write each byte."""
    printable_bytes = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (each for each in range(256) if each not in printable_bytes)
    return {each: chr(each) for each in printable_bytes} | {each: chr(256 + n) for n, each in enumerate(others)}


def _sentencepiece_model(file: GgufFile) -> bytes:
    """The SentencePiece model (BPE) that a file holds in parts, as its protocol buffer: sentencepiece_model.proto."""
    tokens, scores, kinds = (file.items(f"{KEY}{name}") for name in ("tokens", "scores", "token_type"))
    told = file.metadata
    dummy, fewer = told.get(f"{KEY}add_space_prefix", True), told.get(f"{KEY}remove_extra_whitespaces", False)
    pieces = (
        _field(1, token.replace(" ", "▁").encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind)
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
    )
    unknown = kinds.index(_UNKNOWN) if _UNKNOWN in kinds else 0
    trainer = _number(3, 2) + _number(35, _BYTE in kinds) + _number(40, unknown)
    chars = told.get(f"{KEY}precompiled_charsmap")
    rules = _field(2, file.bytes_of(f"{KEY}precompiled_charsmap")) if isinstance(chars, Array) else b""
    normalizer = _field(1, b"identity") + rules + _number(3, bool(dummy)) + _number(4, bool(fewer)) + _number(5, True)
    return b"".join(_field(1, piece) for piece in pieces) + _field(2, trainer) + _field(3, normalizer)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(int(value))


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
