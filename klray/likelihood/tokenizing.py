"""Texts through a tokenizer that others made: in bounded time, and the tokens must hold the text."""

import logging
import threading
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from klray.errors import CheckpointError
from klray.words.numbers import counted
from klray.words.outside import printable

logger = logging.getLogger("klray")

Ids = list[int]
T = TypeVar("T")

_AT_ONCE = 256  # texts
# Slow tokenizers, in Python, do some 50 kB a second.
_SECONDS, _BYTES_PER_SECOND = 60.0, 20_000.0
_SECONDS_ALONE = 2.0  # for a text, to find the one that took so long
_LONGER = 20  # times as long as a text what its tokens give back may be, before it is looked at
_FEW = 4  # words
LACKING = "tokens that the pipeline lacks"  # under this name in a tokenizer's init_kwargs
_SHOWN = 24  # characters of a text in a message

# What a tokenizer is known to do to a text: each drops what the ones before it drop, too.
_CONTROL = ("Cc", "Cf")
EXACT, SPACES, UNICODE, CASE = "", "white space", "Unicode normalisation", "case"


@dataclass(frozen=True)
class TokenizerFacts:
    """How a tokenizer treats the texts."""

    name: str  # its class, as its files call it
    front: tuple[str, ...] = ()  # special tokens before each text
    back: tuple[str, ...] = ()  # and behind it
    normalised: str = EXACT  # the most that it did to one of them: SPACES, UNICODE or CASE
    lost: int = 0  # texts of which the tokens lack more
    bytes_per_token: float = 0.0  # of all texts, special tokens around them apart

    @property
    def label(self) -> str:
        """Equal for tokenizers that treat these texts alike: class, special tokens, bytes per token."""
        parts = [self.name.removesuffix("Fast")]
        parts += [
            f"{' '.join(names)} {where}" for names, where in ((self.front, "before"), (self.back, "after")) if names
        ]
        return ", ".join([*parts, f"{self.bytes_per_token:.4f} bytes/token"])

    def as_facts(self) -> dict[str, Any]:
        """As a column keeps it."""
        return {
            "tokenizer": self.label,
            "tokenizer_class": self.name,
            "tokens_before": list(self.front),
            "tokens_after": list(self.back),
            "bytes_per_token": self.bytes_per_token,
            "text_normalisation": self.normalised,
            "lost_texts": self.lost,
        }


def check_lacking(tokenizer: Any, texts: Sequence[str]) -> None:
    """CheckpointError where a text has a token that the checkpoint names and its pipeline lacks (``LACKING``)."""
    lacking = getattr(tokenizer, "init_kwargs", {}).get(LACKING, ())
    for number, text in enumerate(texts) if lacking else ():
        if token := next((each for each in lacking if each in text), ""):
            raise CheckpointError(
                f"text {number} has {printable(token)}, a token that added_tokens.json or tokenizer_config.json names "
                "and tokenizer.json lacks, so that its id is not certain: save the tokenizer with all its tokens",
                "load_failed",
            )


def token_ids(tokenizer: Callable[..., Any], texts: Sequence[str]) -> list[Ids]:
    """Ids of each text; CheckpointError (timed_out, load_failed) names the text that takes too long or fails.

    After timed_out a thread of this process goes on: the process should be ended.
    """
    # These are the defaults, said aloud: files may ask for truncation or padding. verbose warns of a model_max_length
    # that is often wrong; score() checks the context of the model itself.
    defaults = {"truncation": False, "padding": False, "verbose": False}
    name = named(tokenizer)
    deadline = time.monotonic() + _SECONDS + sum(map(len, texts)) / _BYTES_PER_SECOND

    def alone(text: str) -> Ids:
        return list(tokenizer(text, **defaults)["input_ids"])

    found: list[Ids] = []
    for start in range(0, len(texts), _AT_ONCE):
        part = list(texts[start : start + _AT_ONCE])
        try:
            found += _within(deadline, lambda part=part: tokenizer(part, **defaults)["input_ids"])  # type: ignore[misc]
        except (_Late, _Failed) as error:
            raise _named(name, error, start, part, alone) from error
    longest = max(range(len(texts)), key=lambda n: len(texts[n].encode()))
    try:
        ids = _within(deadline, lambda: alone(texts[longest]))
    except (_Late, _Failed) as error:
        raise _named(name, error, longest, [texts[longest]], alone) from error
    if ids != list(found[longest]):
        raise CheckpointError(
            f"{name} gives text {longest} {counted(len(ids), 'token')} when called with it alone and "
            f"{len(found[longest]):,} (or others) in a batch: switch off its padding and truncation",
            "load_failed",
        )
    return found


def facts(tokenizer: Any, texts: Sequence[str], ids: Sequence[Ids], allow_lost: int = 0) -> TokenizerFacts:
    """What a tokenizer adds to the texts, and what it leaves of them, by decoding their ``ids``.

    Raises CheckpointError (text_lost) if more than ``allow_lost`` texts lack characters that no known normalisation
    takes away: white space and control characters, Unicode's compatible forms (NFKC), or case; or lack most of their
    white space, or of their bytes. Of a tokenizer that does not decode nothing is known.
    """
    name = named(tokenizer)
    n_bytes, n_tokens = sum(len(text.encode()) for text in texts), sum(map(len, ids))
    if not hasattr(tokenizer, "convert_ids_to_tokens") or not hasattr(tokenizer, "decode"):
        return TokenizerFacts(name, bytes_per_token=n_bytes / max(1, n_tokens))
    deadline = time.monotonic() + _SECONDS + n_bytes / _BYTES_PER_SECOND
    try:
        front, back = _within(deadline, lambda: around(tokenizer))
        inner = [list(each[len(front) : len(each) - len(back)]) for each in ids]
        back_again = _within(deadline, lambda: _decoded(tokenizer, inner))
    except (_Late, _Failed) as error:
        raise CheckpointError(
            f"{name} cannot give back the texts of which it makes tokens "
            f"({printable(str(error)) or 'it takes too long'}), and nobody knows what they hold: take the tokenizer "
            "that belongs to the model, or leave the model out",
            "timed_out" if isinstance(error, _Late) else "load_failed",
        ) from error
    normalised, lost = 0, []
    kinds = (EXACT, SPACES, UNICODE, CASE)
    for number, (text, decoded) in enumerate(zip(texts, back_again, strict=True)):
        if text == decoded:
            continue
        held = len(decoded) <= _LONGER * (len(text) + 1)
        like = (n for n, kind in enumerate(kinds) if kind and _form(text, kind) == _form(decoded, kind))
        kind = next(like, None) if held else None
        if kind is None or _mostly_gone(text, decoded, kinds[kind]):
            lost.append((number, text, decoded))
        else:
            normalised = max(normalised, kind)
    if len(lost) > allow_lost:
        number, text, decoded = lost[0]
        place = next((n for n, (a, b) in enumerate(zip(text, decoded, strict=False)) if a != b), len(decoded))
        raise CheckpointError(
            f"{name} loses parts of {len(lost):,} of {counted(len(texts), 'text')}, of text {number} first: "
            f"{text[place : place + _SHOWN]!r} at character {place:,} is {decoded[place : place + _SHOWN]!r} when its "
            "tokens are decoded; the log-likelihood would be another text's: take the tokenizer that belongs to the "
            f"model, leave the model out, or allow it with scoring.allow_lost={len(lost)}",
            "text_lost",
        )
    n_tokens = sum(map(len, inner))
    if lost:
        words = "%s loses parts of %d of %d texts, of text %d first, as scoring.allow_lost says"
        logger.warning(words, name, len(lost), len(texts), lost[0][0])
    return TokenizerFacts(name, front, back, kinds[normalised], len(lost), n_bytes / max(1, n_tokens))


def named(tokenizer: Any) -> str:
    """A tokenizer's class, as its files call it."""
    return str(getattr(tokenizer, "init_kwargs", {}).get("tokenizer_class") or type(tokenizer).__name__)


def around(tokenizer: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Special tokens that a tokenizer of transformers puts before a text, and behind it."""
    for text in ("a", "A", "1", "."):
        inside, whole = (list(tokenizer(text, add_special_tokens=each)["input_ids"]) for each in (False, True))
        for before in range(len(whole) - len(inside) + 1):
            if inside and whole[before : before + len(inside)] == inside:
                names = [str(name) for name in tokenizer.convert_ids_to_tokens(whole)]
                return tuple(names[:before]), tuple(names[before + len(inside) :])
    return (), ()


def _form(text: str, kind: str) -> str:
    """What is left of a text once all that ``kind`` takes away is gone."""
    text = text.replace("▁", " ")  # which it stands for in SentencePiece
    if kind in (UNICODE, CASE):
        text = unicodedata.normalize("NFKC", text)
    if kind == CASE:
        text = text.casefold()
    return "".join(each for each in text if not each.isspace() and unicodedata.category(each) not in _CONTROL)


def _mostly_gone(text: str, decoded: str, kind: str) -> bool:
    """Whether what a tokenizer is known to shorten, white space above all, is gone for the most part."""
    if kind != SPACES:
        text = unicodedata.normalize("NFKC", text)
    decoded = decoded.replace("▁", " ")
    between, left = (len(each.split()) - 1 for each in (text, decoded))
    return (between > _FEW and 2 * left < between) or 2 * len(decoded.encode()) < len(text.encode())


def _decoded(tokenizer: Any, ids: Sequence[Ids]) -> list[str]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "decode_batch"):
        return list(backend.decode_batch([list(each) for each in ids], skip_special_tokens=False))
    return [tokenizer.decode(each, skip_special_tokens=False, clean_up_tokenization_spaces=False) for each in ids]


class _Late(Exception):
    """It did not end in time."""


class _Failed(Exception):
    """It raised, whatever that is: a library in Rust panics by what is no Exception."""


def _within(deadline: float, work: Callable[[], T]) -> T:
    """What ``work`` returns on a thread of its own, until ``deadline`` by the monotonic clock."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again below, as _Failed
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="tokenizer")
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if errors:
        raise _Failed(f"{type(errors[0]).__name__}: {errors[0]}") from errors[0]
    if not results:
        raise _Late
    return results[0]


def _named(
    name: str, error: Exception, start: int, part: Sequence[str], alone: Callable[[str], Ids]
) -> CheckpointError:
    """The error with the first text of ``part`` that has it when it is tokenised alone."""
    which = f"one of the texts {start} to {start + len(part) - 1}" if len(part) > 1 else f"text {start}"
    last = time.monotonic() + _SECONDS
    for number, text in enumerate(part, start):
        try:
            _within(min(last, time.monotonic() + _SECONDS_ALONE), lambda text=text: alone(text))  # type: ignore[misc]
        except type(error) as found:
            which, error = f"text {number}, {text[:_SHOWN]!r}", found
            break
        except (_Late, _Failed):
            continue
    if isinstance(error, _Late):
        return CheckpointError(
            f"{name} had not tokenised {which} after {_SECONDS:g} s and more: a pattern of its file may take time "
            "without bounds; leave this model out, or that text",
            "timed_out",
        )
    return CheckpointError(f"{name} fails at {which} ({printable(str(error))}): leave this model out", "load_failed")
