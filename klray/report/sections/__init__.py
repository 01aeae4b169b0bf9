"""A section of the page: what it says, its tables and its picture."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from klray.errors import KlrayError
from klray.report.carried.limits import PICTURE_BYTES
from klray.report.figures.plate import Plate
from klray.report.figures.style import save, smaller


@dataclass(frozen=True)
class Table:
    """Cells as text; the first ``text_columns`` columns are words, the others numbers; ``long`` is one of sentences."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1
    long: int = -1


@dataclass(frozen=True)
class Picture:
    """A figure; without ``png_base64`` there was nothing to draw, and ``caption`` says why."""

    alternative: str
    caption: str
    png_base64: str


@dataclass(frozen=True)
class Section:
    """From top to bottom as listed here; ``name`` is its address in the page."""

    name: str
    heading: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    picture: Picture | None = None
    verdict: str = ""
    sentences: Sequence[str] = ()


def picture(plate: Plate, dataset: xr.Dataset, directory: Path) -> Picture:
    """Draw, write PNG and PDF into ``directory``, and keep the PNG, smaller if it is large."""
    try:
        png = save(plate.draw(dataset), directory, plate.name)
    except KlrayError as nothing_to_draw:
        return Picture(plate.alternative, str(nothing_to_draw), "")
    kept = base64.b64encode(smaller(png, PICTURE_BYTES)).decode()
    return Picture(plate.alternative, plate.caption(dataset), kept)
