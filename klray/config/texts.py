"""Group ``texts``: which texts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from klray import texts
from klray.errors import KlrayError
from klray.texts import TextSet


class TextSource(Enum):
    """Where texts come from."""

    python_stdlib = "python_stdlib"
    jsonl = "jsonl"
    folder = "folder"


class TextSplit(Enum):
    """Half of the running Python's documents; the embedded family is trained on the other."""

    heldout = "heldout"
    train = "train"


@dataclass
class TextsConfig:
    """Which texts."""

    source: TextSource = TextSource.python_stdlib
    path: str | None = None  # of a JSON Lines file or a folder
    pattern: str = "**/*.txt"  # files of a folder
    split: TextSplit = TextSplit.heldout  # of python_stdlib
    chunked: bool = True  # lines of a JSON Lines file are chunks already, not documents to be cut
    text_field: str = "text"
    domain_field: str | None = None
    domain: str | None = None  # only texts with this label
    n: int | None = None  # draw so many
    seed: int = 0  # of the draw


def text_set(config: TextsConfig) -> TextSet:
    """The text set that is asked for."""
    if config.source is TextSource.python_stdlib:
        split: texts.Split = "train" if config.split is TextSplit.train else "heldout"
        return texts.python_stdlib(split, n=config.n, seed=config.seed, domain=config.domain)
    if not config.path:
        raise KlrayError(f"texts={config.source.value} needs the place of the texts: set texts.path=")
    if config.source is TextSource.folder:
        return texts.from_folder(
            config.path, pattern=config.pattern, n=config.n, seed=config.seed, domain=config.domain
        )
    return texts.from_jsonl(
        config.path,
        n=config.n,
        seed=config.seed,
        domain=config.domain,
        text_field=config.text_field,
        domain_field=config.domain_field,
        chunked=config.chunked,
    )
