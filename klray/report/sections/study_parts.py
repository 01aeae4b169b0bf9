"""What a study made beside the "trajectory" result, and the sections that show it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import xarray as xr

from klray.analysis.noise_floor import NoiseFloor
from klray.report.sections import Section
from klray.report.sections.section_exact import exact_section
from klray.report.sections.section_layers import layers_section
from klray.report.sections.section_quantised import quantization_section
from klray.report.sections.section_scale import domains_section, scale_section
from klray.report.sections.section_texts import texts_section
from klray.report.sections.section_weights import weights_section


@dataclass(frozen=True)
class Study:
    """Each part as far as it was made of the snapshot that the report is about; results by domain, "": of all texts."""

    snapshot: xr.Dataset | None = None  # on the texts of the result: layers under a lens are read from it
    scales: Mapping[str, xr.Dataset] = field(default_factory=dict)  # of ``measure_scale``
    trajectories: Mapping[str, xr.Dataset] = field(default_factory=dict)  # of ``analyze``
    weights: xr.Dataset | None = None  # what ``klray weights`` wrote
    compared: xr.Dataset | None = None  # what ``klray compare`` wrote


NOTHING = Study()


def study_sections(result: xr.Dataset, study: Study, noise: NoiseFloor | None, figures: Path) -> list[Section]:
    """The sections for which there is something, in the order of the page; their figures go into ``figures``."""
    scale = study.scales.get(str(result.attrs.get("domain", "")))
    found = [
        None if scale is None else scale_section(scale, result, figures),
        texts_section(scale, figures),
        domains_section(study.scales, study.trajectories),
        None if study.snapshot is None else layers_section(study.snapshot, result, figures),
        quantization_section(result, noise),
        weights_section(result, study.weights),
        exact_section(study.compared, figures),
    ]
    return [section for section in found if section is not None]
