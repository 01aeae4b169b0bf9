"""The noise floor in a report: how far numerical noise is below the smallest KL of interest."""

import base64
from pathlib import Path

import xarray as xr

from klray.analysis.facts import strings
from klray.analysis.noise_floor import ROWS_MEAN, NoiseFloor
from klray.errors import KlrayError
from klray.report.figures.noise_marks import noise_floor
from klray.report.figures.style import save
from klray.report.sections import Picture, Section, Table
from klray.words.numbers import counted

_ALTERNATIVE = (
    "Dot plot, logarithmic, of the KL of each checkpoint with itself in bits per byte by precision: between plans, "
    "between devices and to float64."
)
_CAPTION = (
    "KL between scorings of one checkpoint by precision, a mark for each checkpoint and kind of pair. Noise belongs to "
    "the left of the dotted line, 100 times below the smallest KL of interest. A KL of 0 has no mark."
)


def noise_section(result: xr.Dataset, noise: NoiseFloor, figures: Path) -> Section:
    """Verdicts, what they are about, the table (the largest KL of each kind by precision), and the picture."""
    used = sorted(set(strings(result, "dtype").tolist()))
    about = [f"The models of this report were scored in {', '.join(used)}."]
    if unknown := [dtype for dtype in used if dtype not in noise.dtypes]:
        about.append(f"The noise of {', '.join(unknown)} was not measured, only that of {', '.join(noise.dtypes)}.")
    if noise.text_set != result.attrs.get("text_set"):
        about.append(f"The noise was measured on other texts than theirs: {noise.text_set_name}.")
    names = [each.model for each in noise.models]
    checkpoints = f"{', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
    meaning = ROWS_MEAN.replace("Each row is one checkpoint in one precision.", "Each row is one precision.")
    try:
        png = base64.b64encode(save(noise_floor(noise), figures, "noise_floor")).decode()
        picture = Picture(_ALTERNATIVE, _CAPTION, png)
    except KlrayError:  # nothing was measured, as the verdicts say
        picture = None
    header, rows = noise.cells(noise.worst())
    return Section(
        "noise",
        "Noise floor",
        paragraphs=(" ".join(about),),
        tables=(Table(header[1:], [row[1:] for row in rows]),),
        notes=(f"The largest of {counted(len(names), 'checkpoint')}: {checkpoints}. {meaning}",),
        picture=picture,
        verdict=(
            "How far a checkpoint is from itself when it is scored in different ways, on "
            f"{counted(noise.n_texts, 'text')}:"
        ),
        sentences=tuple(noise.verdicts()),
    )
