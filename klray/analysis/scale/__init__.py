"""The scale: KL in ten settings of a snapshot, beside what was published, and where a number falls among them.

Source of the settings and of the published values: arXiv:2505.15353, Figure 3 and Table 1a.
"""

from __future__ import annotations

from klray.analysis.scale.agreement import agreements
from klray.analysis.scale.bootstrap import bootstrap_standard_error
from klray.analysis.scale.choosing_pairs import DEFAULT_CHOICE, Choice, setting_pairs
from klray.analysis.scale.compared_models import Models
from klray.analysis.scale.generations import Lineages, lineages
from klray.analysis.scale.measuring import (
    SCALE_HEADER,
    ScaleRow,
    format_scale,
    measure_scale,
    notes,
    require_pairs,
    scale_cells,
    scale_rows,
    setting_kl,
)
from klray.analysis.scale.placing import Neighbour, Placement, place
from klray.analysis.scale.published_settings import APART, SETTINGS, Setting, setting_named
from klray.analysis.scale.side_by_side import Comparison, compare_domains

__all__ = [
    "APART",
    "DEFAULT_CHOICE",
    "SCALE_HEADER",
    "SETTINGS",
    "Choice",
    "Comparison",
    "Lineages",
    "Models",
    "Neighbour",
    "Placement",
    "ScaleRow",
    "Setting",
    "agreements",
    "bootstrap_standard_error",
    "compare_domains",
    "format_scale",
    "lineages",
    "measure_scale",
    "notes",
    "place",
    "require_pairs",
    "scale_cells",
    "scale_rows",
    "setting_kl",
    "setting_named",
    "setting_pairs",
]
