"""Text sets from files: a JSON-lines file as corpora are published, or a folder of documents."""

import codecs
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from klray.errors import KlrayError
from klray.texts.textset import TextSet, draw, is_unicode, pieces
from klray.words.numbers import counted
from klray.words.outside import fault, parsed, printable

logger = logging.getLogger("klray")

DEFAULT_DOMAIN = "text"
_LINE_BYTES = 1 << 26  # of a document as JSON
_BLOCK = 1 << 20
# The Pile's chunks as published for arXiv 2502.16173, the Pile itself, and a plain name.
DOMAIN_FIELDS = ("pile_set_name", "meta.pile_set_name", "domain")


def from_jsonl(
    path: str | Path,
    n: int | None = None,
    seed: int = 0,
    domain: str | None = None,
    *,
    text_field: str = "text",
    domain_field: str | None = None,
    chunked: bool = True,
) -> TextSet:
    """Read a UTF-8 file with one JSON object per line; blank lines and byte order marks are skipped.

    Draws ``n`` texts (None: all) with ``seed``, from one ``domain`` or (None) from all; they keep the order of the
    file. Dots in ``text_field`` and ``domain_field`` reach into nested objects; without one for the domain it is the
    first of ``pile_set_name``, ``meta.pile_set_name`` and ``domain`` that a line has, else "text". Each line is a
    text, kept as it is; unless ``chunked`` it is a document, to be cut by :func:`klray.texts.chunk`.

    Raises KlrayError: no such file, or an empty one; a line that is not a JSON object, or lacks a field, or whose text
    is empty or not Unicode, or whose domain cannot be printed (with the line number); no texts, an unknown domain, or n
    larger than the number of texts.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise KlrayError(f"no file {path}: set texts.path (in Python: path) to a JSON Lines file")
    documents = _read_lines(path, text_field, domain_field)
    labelled = (
        (piece, label) for text, label in documents for piece in ([text] if chunked else pieces([text.encode()]))
    )
    return draw(printable(path.name), labelled, n=n, seed=seed, domain=domain)


def from_folder(
    path: str | Path,
    pattern: str = "**/*.txt",
    n: int | None = None,
    seed: int = 0,
    domain: str | None = None,
) -> TextSet:
    """Read a folder in which each file that matches the glob ``pattern`` is a document, in the order of their names.

    A document's domain is the first folder below ``path``, or "text" for a file that lies in ``path`` itself. Files
    that are not UTF-8 are left out and named in a warning; a byte order mark is skipped. Draws ``n`` texts (None: all)
    with ``seed``, from one ``domain`` or (None) from all.

    Raises KlrayError: no such folder, no file that matches, none that is UTF-8, a domain that cannot be printed, no
    texts, an unknown domain, or n larger than the number of texts.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise KlrayError(f"no folder {root}: set texts.path (in Python: path) to a folder with text files")
    names = sorted(file.relative_to(root).as_posix() for file in root.glob(pattern) if file.is_file())
    if not names:
        raise KlrayError(
            f"no file in {root} matches '{pattern}': set texts.pattern (in Python: pattern=), for example '**/*.md'"
        )
    not_utf8 = [name for name in names if not _is_utf8(root / name)]
    some = ", ".join(not_utf8[:10]) + (", ..." if len(not_utf8) > 10 else "")
    if len(not_utf8) == len(names):
        raise KlrayError(
            f"none of the {counted(len(names), 'file')} in {root} that match '{pattern}' is UTF-8: {some}; convert "
            "them to UTF-8, or set texts.pattern (in Python: pattern=) to match text files"
        )
    if not_utf8:
        logger.warning("%s: left out, as not UTF-8, %s: %s", root, counted(len(not_utf8), "file"), some)
    documents = _documents(root, [name for name in names if name not in set(not_utf8)])
    return draw(printable(root.name), documents, n=n, seed=seed, domain=domain)


def _documents(root: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    """(text, domain) of each piece of the files ``names`` of a folder."""
    for name in names:
        first, slash, _ = name.partition("/")
        label = _label(first if slash else DEFAULT_DOMAIN, f"{root}, folder {first!a}")
        yield from ((piece, label) for piece in pieces(_blocks(root / name)))


def _blocks(file: Path) -> Iterator[bytes]:
    """A file as it is read, without a byte order mark."""
    with file.open("rb") as stream:
        block = stream.read(_BLOCK).removeprefix(codecs.BOM_UTF8)
        while block:
            yield block
            block = stream.read(_BLOCK)


def _is_utf8(file: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for block in _blocks(file):
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _read_lines(path: Path, text_field: str, domain_field: str | None) -> Iterator[tuple[str, str]]:
    """(text, domain) of each line of a JSON-lines file."""
    empty = True
    with path.open("rb") as lines:
        for number, read in enumerate(iter(lambda: lines.readline(_LINE_BYTES + 1), b""), start=1):
            if len(read) > _LINE_BYTES:
                raise KlrayError(
                    f"{path}, line {number:,} has more than {_LINE_BYTES:,} bytes: put one document in each line"
                )
            line = read.removeprefix(codecs.BOM_UTF8)  # of files that were put behind each other, each has one
            if not line.strip():
                continue
            empty = False
            where = f"{path}, line {number:,}"
            try:
                record = parsed(line.decode())
            except ValueError as error:
                raise KlrayError(f"{where} is not JSON ({error}): every line must be one UTF-8 JSON object") from error
            if not isinstance(record, dict):
                raise KlrayError(f"{where} holds a {type(record).__name__}: every line must be one JSON object")
            text = _required(record, text_field, "text", where)
            if not text or not is_unicode(text):  # JSON can escape half of a surrogate pair
                raise KlrayError(f"{where}: '{text_field}' must be a non-empty Unicode string, found {text!r:.80}")
            yield text, _domain(record, domain_field, where)
    if empty:
        raise KlrayError(
            f"{path} is empty: it has no line that is not blank, of {path.stat().st_size:,} bytes; set texts.path (in "
            "Python: path) to a file with one JSON object per line"
        )


def _domain(record: dict[str, Any], domain_field: str | None, where: str) -> str:
    if domain_field is None:
        labels = (_field(record, field) for field in DOMAIN_FIELDS)
        return _label(next((label for label in labels if label is not None), DEFAULT_DOMAIN), where)
    return _label(_required(record, domain_field, "domain", where), where)


def _label(value: object, where: str) -> str:
    label = str(value)
    if why := fault(label):
        raise KlrayError(f"{where}: its domain {why}; give it a label that can be printed")
    return label


def _required(record: dict[str, Any], field: str, what: str, where: str) -> Any:
    value = _field(record, field)
    if value is None:
        there = printable(", ".join(sorted(record)), 500) or "no fields"
        raise KlrayError(
            f"{where} has no field '{field}', it has: {there}; set "
            f"texts.{what}_field (in Python: {what}_field=) to the one that holds the {what}"
        )
    return value


def _field(record: dict[str, Any], dotted: str) -> Any:
    """The value of a field, or of one in nested objects (``meta.pile_set_name``); None when it is not there."""
    value: Any = record
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
