"""The scale in a report: KL in every setting, beside what was published, and on several domains."""

from collections.abc import Mapping
from pathlib import Path

import xarray as xr

from klray.analysis.scale.agreement import WHAT_IT_MEANS, agreements
from klray.analysis.scale.measuring import SCALE_HEADER, notes, scale_cells, scale_rows
from klray.analysis.scale.side_by_side import EXPONENTS_MEAN, SETTINGS_MEAN, compare_domains
from klray.report.figures.scale_violins import PLATE
from klray.report.sections import Section, Table, picture


def scale_section(scale: xr.Dataset, result: xr.Dataset, figures: Path) -> Section:
    """The ten settings of a result of ``measure_scale`` as a table and as violins, with how far they agree."""
    compared = tuple(agreements(scale))
    paragraphs = [
        "KL between pairs of models in the ten settings of the scale, and in what is counted apart from them."
    ]
    if scale.attrs["recipe"] != result.attrs.get("recipe"):
        paragraphs.append(
            "The scale was measured with another preprocessing recipe than that of the rest of this report."
        )
    return Section(
        PLATE.name,
        PLATE.heading,
        paragraphs=tuple(paragraphs),
        tables=(Table(SCALE_HEADER, [scale_cells(row) for row in scale_rows(scale)]),),
        verdict=WHAT_IT_MEANS if compared else "",
        sentences=compared,
        picture=picture(PLATE, scale, figures),
        notes=tuple(notes(scale)),
    )


def domains_section(scales: Mapping[str, xr.Dataset], trajectories: Mapping[str, xr.Dataset]) -> Section | None:
    """The settings' medians on each domain side by side, and the exponents; None for fewer than two."""
    if len(scales) < 2:
        return None
    named = {domain or "all texts": scale for domain, scale in scales.items()}
    compared = compare_domains(named, {domain or "all texts": each for domain, each in trajectories.items()})
    tables = [Table(*compared.setting_table())]
    notes_ = [SETTINGS_MEAN]
    if len(set(scales) & set(trajectories)) > 1 and compared.exponent_table()[1]:
        tables.append(Table(*compared.exponent_table()))
        notes_.append(EXPONENTS_MEAN)
    return Section(
        "domains",
        "Domains",
        paragraphs=("The same pairs on the texts of one domain at a time.",),
        tables=tuple(tables),
        notes=tuple(notes_),
    )
