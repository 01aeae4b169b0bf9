"""Texts that every Python brings along: its language reference (prose) and its standard library's source (code)."""

import functools
import hashlib
import importlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from klray.errors import KlrayError
from klray.texts.textset import TextSet, chunk, draw

Split = Literal["heldout", "train"]

# Distributions package these apart from the rest, so leaving them out keeps the texts the same from machine to
# machine; pydoc_data is the prose.
_LEFT_OUT_MODULES = frozenset(
    {"distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "tkinter", "turtle", "turtledemo", "venv"}
)
_LEFT_OUT_FOLDERS = frozenset({"idle_test", "site-packages", "test", "tests"})
# Shorter lines ("return self", "else:") are shared by documents that have nothing else in common.
_TELLING_LINE_CHARACTERS = 40


class Document(NamedTuple):
    """One topic of the language reference or one source file of the standard library."""

    name: str  # the topic, or the path below the standard library's folder, with slashes
    domain: str  # "prose" or "code"
    text: str


def python_stdlib(split: Split = "heldout", n: int | None = None, seed: int = 0, domain: str | None = None) -> TextSet:
    """Chunks of the running Python's own documents: domains "code" and "prose".

    The texts depend on Python's version, down to its patch level, and on nothing else about the machine unless its
    distributor changed the standard library. The embedded family is trained on the ``split`` "train" (see
    :func:`stdlib_documents`). Draws ``n`` texts (None: all) with ``seed``, from one ``domain`` or (None) from both, n
    being split evenly over them, as far as each has texts.

    Raises KlrayError: this Python has no documents to read, an unknown split or domain, or n larger than the number of
    texts.
    """
    pieces = ((piece, document.domain) for document in stdlib_documents(split) for piece in chunk(document.text))
    name = f"python-{'.'.join(map(str, sys.version_info[:3]))}-stdlib-{split}"
    return draw(name, pieces, n=n, seed=seed, domain=domain, evenly=True)


def stdlib_documents(split: Split) -> list[Document]:
    """The documents of one split, ordered by domain and name.

    Prose is ``pydoc_data.topics``; code is the source of the modules in ``sys.stdlib_module_names``, without tests,
    without modules that distributions package apart, and without files that are not UTF-8. A document most of whose
    lines of 40 or more characters stand in larger documents is dropped: many topics are sections of others, and code
    pages are copies of each other (on Python 3.11, 15 to 30 % of the held-out lines of prose would otherwise be seen
    in training, against 0.2 %). The split is by document: it is held out when the SHA-256 of its name ends in an odd
    byte.

    Raises KlrayError: an unknown split; a Python without ``pydoc_data`` or without its standard library's source as
    files.
    """
    if split not in ("heldout", "train"):
        raise KlrayError(f"split '{split}' does not exist: set texts.split (in Python: split) to 'heldout' or 'train'")
    documents = _documents(tuple(_prose()), Path(sysconfig.get_path("stdlib")))
    odd = split == "heldout"
    chosen = [each for each in documents if hashlib.sha256(each.name.encode()).digest()[-1] % 2 == odd]
    return sorted(chosen, key=lambda document: (document.domain, document.name))


@functools.cache  # read and compared in 0.1 s; 8 MB
def _documents(prose: tuple[Document, ...], library: Path) -> list[Document]:
    return _without_repeats([*prose, *_code(library)])


def _prose() -> Iterator[Document]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise KlrayError(
            f"the prose texts are Python's own help topics, and {sys.executable} has no module pydoc_data: install the "
            "complete standard library, use another Python, or take the texts from a file or a folder"
        ) from error
    for name, text in topics.items():
        yield Document(name, "prose", text)


def _code(library: Path) -> Iterator[Document]:
    found = False
    for module in sorted(sys.stdlib_module_names - _LEFT_OUT_MODULES):
        for file in [library / f"{module}.py", *(library / module).rglob("*.py")]:
            name = file.relative_to(library)
            if not file.is_file() or _LEFT_OUT_FOLDERS.intersection(name.parts):
                continue
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            found = True
            yield Document(name.as_posix(), "code", text)
    if not found:
        raise KlrayError(
            f"the code texts are the source of Python's standard library, and {library} has no .py files (zipped, or "
            "compiled only): use another Python, or take the texts from a file or a folder"
        )


def _without_repeats(documents: Iterable[Document]) -> list[Document]:
    """Drop each document of whose telling lines more than half stand in larger documents that are kept."""
    seen: set[str] = set()
    kept = []
    for document in sorted(documents, key=lambda document: (-len(document.text), document.domain, document.name)):
        stripped = (line.strip() for line in document.text.splitlines())
        lines = {line for line in stripped if len(line) >= _TELLING_LINE_CHARACTERS}
        if 2 * len(lines & seen) <= len(lines):
            seen |= lines
            kept.append(document)
    return kept
