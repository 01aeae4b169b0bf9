"""Group ``texts``: which texts."""

import inspect
from dataclasses import dataclass
from enum import Enum
from typing import Any

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


# Parameters of the library's functions, whose defaults are those of the config.
FOLDER, JSONL = (inspect.signature(function).parameters for function in (texts.from_folder, texts.from_jsonl))


@dataclass
class TextsConfig:
    """Which texts."""

    source: TextSource = TextSource.python_stdlib
    path: str | None = None  # of a JSON Lines file or a folder
    pattern: str = FOLDER["pattern"].default  # files of a folder
    split: TextSplit = TextSplit.heldout  # of python_stdlib
    chunked: bool = JSONL["chunked"].default  # lines of a JSON Lines file are chunks already, not documents to be cut
    text_field: str = JSONL["text_field"].default
    domain_field: str | None = None
    domain: str | None = None  # only texts with this label
    n: int | None = None  # draw so many
    seed: int = JSONL["seed"].default  # of the draw
    publish: bool = False  # put the texts themselves into the store, where all its readers see them


def text_set(config: TextsConfig) -> TextSet:
    """The text set that is asked for."""
    drawn: dict[str, Any] = {"n": config.n, "seed": config.seed, "domain": config.domain}
    if config.source is TextSource.python_stdlib:
        split: texts.Split = "train" if config.split is TextSplit.train else "heldout"
        return texts.python_stdlib(split, **drawn)
    if not config.path:
        raise KlrayError(f"texts={config.source.value} needs the place of the texts: set texts.path=")
    if config.source is TextSource.folder:
        return texts.from_folder(config.path, pattern=config.pattern, **drawn)
    drawn |= {"text_field": config.text_field, "domain_field": config.domain_field, "chunked": config.chunked}
    return texts.from_jsonl(config.path, **drawn)
