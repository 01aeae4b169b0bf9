"""A section of the page: what it says, its tables and its picture."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from klray.errors import KlrayError
from klray.report.figures import Plate, save


@dataclass(frozen=True)
class Table:
    """Cells as text; the first ``text_columns`` columns are words, the others numbers."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    text_columns: int = 1


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
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    picture: Picture | None = None
    verdict: str = ""
    sentences: tuple[str, ...] = ()


def picture(plate: Plate, dataset: xr.Dataset, directory: Path) -> Picture:
    """Draw, write PNG and PDF into ``directory``, and keep the PNG."""
    try:
        png = save(plate.draw(dataset), directory, plate.name)
    except KlrayError as nothing_to_draw:
        return Picture(plate.alternative, str(nothing_to_draw), "")
    return Picture(plate.alternative, plate.caption(dataset), base64.b64encode(png).decode())
