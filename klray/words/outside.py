"""What comes from outside, made fit to be shown and kept: strings, numbers and JSON of strangers. The only such rule.

Names of repositories, revisions and files, cards, configs, labels and what lies in a store are anybody's. They may hold
escape sequences for a terminal, line breaks that forge a line of a log, marks that turn the direction of writing, half
of a surrogate pair, a megabyte, a number that no array takes. `fit` is for what is taken, `fault` for what is refused.
"""

import json
import os
import re
import stat
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LONGEST = 4096  # characters of a string that is kept: a path may have as many
DEEPEST = 64  # levels of JSON
KEPT_OF_THE_END = 1000  # characters of a sentence that is too long: what to do is said last
_INT64 = range(-(2**63), 2**63)
_BREAKS = re.compile(r"[\t\n\r\v\f]+")
_DIGITS = 40  # more are no number of anything


def printable(text: str, limit: int | None = 200) -> str:
    r"""``text`` on one line, cut at ``limit`` characters: what cannot be printed is replaced, a line break, too.

    It is cut between words, unless one takes more than half of it.

    >>> printable("a long name", 10), printable("a-long-name", 7), printable("red \x1b[31m")
    ('a long…', 'a-long…', 'red �[31m')
    """
    head = text if limit is None else text[: limit + 1]
    if not head.isprintable():
        head = "".join(map(_shown, head))
    if limit is None or len(head) <= limit:
        return head
    words = head[:limit].rpartition(" ")[0].rstrip()
    return f"{words if 2 * len(words) >= limit else head[: limit - 1]}…"


def one_line(text: str) -> str:
    r"""``text`` as `printable`, uncut; lines become one with spaces between them.

    >>> one_line("two\r\nlines")
    'two lines'
    """
    return printable(_BREAKS.sub(" ", text), None)


def sentence(text: str) -> str:
    """``text`` as `one_line`; of one that is too long the beginning and the end."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - KEPT_OF_THE_END]} … {text[-KEPT_OF_THE_END:]}"
    return one_line(text)


def whole_number(value: object) -> int | None:
    """A number of steps, tokens, parameters or bytes, also one in decimal digits; None for all that int64 lacks.

    >>> whole_number(7), whole_number("0010"), whole_number(10**20), whole_number("9" * 5000), whole_number(1.5)
    (7, 10, None, None, None)
    """
    if isinstance(value, str):
        value = int(value) if len(value) <= _DIGITS and value.isdecimal() else None
    return value if type(value) is int and 0 <= value < _INT64.stop else None


def fault(value: object, levels: int = DEEPEST) -> str:
    r"""Why a JSON value cannot be kept; "" where it can.

    >>> fault({"step": 10**20}), fault("a\x1b"), fault(["a", 1, None, 0.5])
    ('step is beyond 64 bits', 'holds the character U+001B, which cannot be printed', '')
    """
    if isinstance(value, str):
        if len(value) > LONGEST:
            return f"has {len(value):,} characters, of {LONGEST:,} at most"
        odd = "" if value.isprintable() else next((each for each in value if _shown(each) != each), "")
        return f"holds the character U+{ord(odd):04X}, which cannot be printed" if odd else ""
    if value is None or isinstance(value, bool | float):
        return ""
    if isinstance(value, int):
        return "" if value in _INT64 else "is beyond 64 bits"
    if not isinstance(value, Mapping | list | tuple):
        return f"is a {type(value).__name__}, which JSON lacks"
    if not levels:
        return f"is nested more than {DEEPEST} levels deep"
    named = value.items() if isinstance(value, Mapping) else ((f"item {n}", each) for n, each in enumerate(value))
    for name, each in named:
        if found := fault(name) or fault(each, levels - 1):
            return f"{printable(str(name), 40)} {found}"
    return ""


def fit(value: Any, levels: int = DEEPEST) -> Any:
    r"""A JSON value that can be kept: the same, or with strings replaced, and None for numbers and levels too many.

    >>> fit({"step": 10**20, "base_model": "a\x1b[2J", "size": 7})
    {'step': None, 'base_model': 'a�[2J', 'size': 7}
    """
    if isinstance(value, Mapping | list | tuple):
        if not levels:
            return None
        if isinstance(value, Mapping):
            return {printable(str(name)): fit(each, levels - 1) for name, each in value.items()}
        return [fit(each, levels - 1) for each in value]
    if not fault(value):
        return value
    return None if isinstance(value, int) else printable(str(value), LONGEST)


def parsed(body: str | bytes) -> Any:
    """JSON that others wrote. Raises ValueError: it is none, or nested more than `DEEPEST` levels deep."""
    try:
        found = json.loads(body)
        brackets = body.count("[") + body.count("{") if isinstance(body, str) else body.count(b"[") + body.count(b"{")
        deep = brackets > DEEPEST and _is_deep(found)
    except RecursionError:
        deep = True
    if deep:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    return found


def beginning(path: Path, limit: int) -> bytes:
    """The first ``limit`` bytes of a file that others wrote.

    Raises ValueError: it is a device, a pipe or a folder, where reading may never end; OSError: it cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is not a regular file")
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        return file.read(min(limit, os.fstat(file.fileno()).st_size + 1))  # so much memory is taken at once


def contents(path: Path, limit: int) -> bytes:
    """A file that others wrote, whole. Raises as `beginning`; ValueError: it has more bytes than ``limit``."""
    body = beginning(path, limit + 1)
    if len(body) > limit:
        raise ValueError(f"{path} has more than {limit:,} bytes")
    return body


def _shown(character: str) -> str:
    shown = character.isprintable() or unicodedata.category(character) == "Zs"  # spaces of any width
    return character if shown else "\N{REPLACEMENT CHARACTER}"


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST + 1):
        if not level:
            return False
        inner = [each for each in level if isinstance(each, dict | list)]
        level = [each for holder in inner for each in (holder.values() if isinstance(holder, dict) else holder)]
    return True
