"""Estimate against exact in a report: what klray compare found for pairs of the settings of the scale."""

from pathlib import Path

import xarray as xr

from klray.analysis.exact_kl import MEANS, as_table
from klray.analysis.facts import recorded
from klray.report.figures.estimate_against_exact import PLATE
from klray.report.sections import Section, Table, picture


def exact_section(compared: xr.Dataset | None, figures: Path) -> Section | None:
    """The table by settings, the figure, and the pairs that were refused; None without a comparison."""
    if compared is None:
        return None
    refused = [f"{label}: {why}" for label, why in recorded(compared, "refused", {}).items()]
    return Section(
        PLATE.name,
        PLATE.heading,
        paragraphs=(
            f"Exact KL of the next-token distributions of some pairs of each setting, on {compared.sizes['text']:,} of "
            "the texts. It is of tokens: what shifts whole texts alike is not in it, and is in the estimate.",
        ),
        tables=(Table(*as_table(compared)),),
        notes=(MEANS,),
        picture=picture(PLATE, compared, figures),
        verdict="Not compared:" if refused else "",
        sentences=tuple(refused),
    )
