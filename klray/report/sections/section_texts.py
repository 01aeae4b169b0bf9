"""In a report: how much a KL depends on the texts, and how many texts a standard error takes."""

from pathlib import Path

import xarray as xr

from klray.analysis.scale import text_sensitivity as sensitivity
from klray.report.figures.text_sensitivity import PLATE
from klray.report.sections import Section, Table, picture


def texts_section(scale: xr.Dataset | None, figures: Path) -> Section | None:
    """Both tables and the figure of a result of ``measure_scale``; None where it has no parts of the texts."""
    if scale is None or not (parts := sensitivity.part_rows(scale)):
        return None
    return Section(
        PLATE.name,
        PLATE.heading,
        paragraphs=("The KL of the scale's pairs on fewer texts, on other texts, and on one domain alone.",),
        tables=(
            Table(sensitivity.PART_HEADER, parts),
            Table(sensitivity.SETTING_HEADER, sensitivity.setting_rows(scale)),
        ),
        notes=(sensitivity.part_note(scale), sensitivity.setting_note(scale)),
        picture=picture(PLATE, scale, figures),
    )
