"""What klray warned of: heard while a checkpoint is scored, kept with its column, and told once for each kind.

Workers and the processes of their models print to nobody: a `Heard` there keeps what they say for whoever asks.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from klray.words.outside import printable
from klray.words.secrets import without_secrets
from klray.words.tables import text_table

MOST = 8  # kinds of warnings that are kept of one checkpoint
SHOWN = 20  # kinds in a table
LONGEST_WARNING = 400  # characters
_BETWEEN = " | "
_LOG = logging.getLogger("klray")
_NUMBER = re.compile(r"\d[\d,.]*(?:e[+-]?\d+)?")


class Heard(logging.Handler):
    """Keeps the first warning of each kind, of `MOST` kinds, fit to be shown and kept."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning; errors are what whoever logs them raises, too."""
        if record.levelno >= logging.ERROR:
            return
        try:
            text = printable(without_secrets(" ".join(record.getMessage().split())), LONGEST_WARNING)
        except Exception:  # noqa: BLE001 - as in every handler: what cannot be logged stops nobody
            self.handleError(record)
            return
        if len(self._texts) < MOST:
            self._texts.setdefault(kind_of(text), text.replace(_BETWEEN, " / "))

    def take(self) -> list[str]:
        """What was heard since it was last taken."""
        self.acquire()
        try:
            found, self._texts = list(self._texts.values()), {}
        finally:
            self.release()
        return found


@contextmanager
def heard() -> Iterator[Heard]:
    """Hear what klray warns of in this process."""
    handler = Heard()
    _LOG.addHandler(handler)
    try:
        yield handler
    finally:
        _LOG.removeHandler(handler)


def kind_of(text: str) -> str:
    """What is equal in warnings of one kind: their words, whatever the numbers.

    >>> kind_of("going on with 4,096 tokens"), kind_of("going on with 12.5 tokens")
    ('going on with # tokens', 'going on with # tokens')
    """
    return _NUMBER.sub("#", text)


def joined(texts: Any) -> str:
    """Warnings of one checkpoint as one string; "" for what are none."""
    found = texts if isinstance(texts, list) else []
    return _BETWEEN.join(each for each in found[:MOST] if isinstance(each, str))


def parted(text: str) -> list[str]:
    """Inverse of `joined`."""
    return text.split(_BETWEEN) if text else []


class Kind(NamedTuple):
    """Warnings of one kind: the first of them, of how many checkpoints, and of which first."""

    text: str
    checkpoints: int
    first: str


def kinds(warnings: Iterable[tuple[str, Sequence[str]]]) -> list[Kind]:
    """Warnings by kind, the most frequent first, of (name of a checkpoint, its warnings).

    >>> kinds([("a", ["out of memory at 8"]), ("b", ["no sketch", "out of memory at 4"])])[0]
    Kind(text='out of memory at 8', checkpoints=2, first='a')
    """
    found: dict[str, Kind] = {}
    for name, texts in warnings:
        for kind, text in {kind_of(text): text for text in texts}.items():
            known = found.get(kind, Kind(text, 0, name))
            found[kind] = known._replace(checkpoints=known.checkpoints + 1)
    return sorted(found.values(), key=lambda each: -each.checkpoints)


def cells(found: Sequence[Kind]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of a table of warnings, all of them text."""
    rows: list[tuple[str, ...]] = [(f"{each.checkpoints:,}", each.first, each.text) for each in found[:SHOWN]]
    if len(found) > SHOWN:
        rows.append(("", "", f"and {len(found) - SHOWN:,} other kinds"))
    return ("checkpoints", "first", "warned of"), rows


def table(found: Sequence[Kind]) -> str:
    """Warnings for the terminal."""
    header, rows = cells(found)
    return text_table(header, rows, text_columns=3)
