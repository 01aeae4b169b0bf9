"""The noise floor in a report: how far numerical noise is below the smallest KL of interest."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import xarray as xr

from klray.analysis.facts import strings
from klray.analysis.noise_floor import COLUMNS, ROWS_MEAN, NoiseFloor, cells
from klray.errors import KlrayError
from klray.report.figures import noise_floor, save
from klray.report.redaction import public


def noise_facts(result: xr.Dataset, noise: NoiseFloor, directory: Path) -> dict[str, Any]:
    """Verdicts, what they are about, the table (the largest KL of each kind by precision), and the picture."""
    used = sorted(set(strings(result, "dtype")))
    measured = ", ".join(noise.dtypes)
    about = [f"The models of this report were scored in {', '.join(used)}."]
    if unknown := [dtype for dtype in used if dtype not in noise.dtypes]:
        about.append(f"The noise of {', '.join(unknown)} was not measured, only that of {measured}.")
    if noise.text_set != result.attrs.get("text_set"):
        about.append(f"The noise was measured on other texts than theirs: {noise.text_set_name}.")
    checkpoints = [each.model for each in noise.models]
    try:
        png = base64.b64encode(save(noise_floor(noise), directory, "noise_floor")).decode()
    except KlrayError:  # nothing was measured, as the verdicts say
        png = ""
    return {
        "png_base64": png,
        "verdicts": [public(sentence) for sentence in noise.verdicts()],
        "about": public(" ".join(about)),
        "checkpoints": public(f"{', '.join(checkpoints[:8])}{', …' if len(checkpoints) > 8 else ''}"),
        "count": len(checkpoints),
        "texts": noise.n_texts,
        "columns": COLUMNS,
        "rows": [(public(row.dtype), cells(row), row.verdict) for row in noise.worst()],
        "meaning": ROWS_MEAN.replace("Each row is one checkpoint in one precision.", "Each row is one precision."),
    }
