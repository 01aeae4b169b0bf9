"""The headline numbers of a "trajectory" result."""

from __future__ import annotations

import math

import xarray as xr

from klray.analysis.runs import single_models, trajectories
from klray.analysis.runs_table import RunRow
from klray.words.numbers import from_to


def findings(result: xr.Dataset, rows: list[RunRow]) -> list[tuple[str, str]]:
    """Headline numbers as (value, what it is)."""
    singles = single_models(result, trajectories(result)).size
    found = [(f"{result.sizes['model']:,}", f"models: {len(rows):,} training runs and {singles:,} single models")]
    late = [row.late_kl for row in rows if math.isfinite(row.late_kl)]
    exponents = [row.exponent for row in rows if math.isfinite(row.exponent)]
    dimensions = [row.fractal_dimension for row in rows if math.isfinite(row.fractal_dimension)]
    if late:
        found.append((_range(late), "bits/byte between consecutive checkpoints late in training, by run"))
    if exponents:
        below = sum(value < 1 for value in exponents)
        found.append(
            (
                _range(exponents),
                f"mean diffusion exponent c_q of the late windows, by run; below 1 in {below} of {len(exponents)} "
                "runs. The windows of a run overlap, and a learning rate that falls during the run lowers both late "
                "KL and c_q",
            )
        )
    if dimensions:
        found.append((_range(dimensions), "fractal dimension 2/c_q of the path"))
    if of_weights := [row.weight_exponent for row in rows if math.isfinite(row.weight_exponent)]:
        found.append(
            (
                _range(of_weights),
                "diffusion exponent c_w of the weights in the same windows, by run",
            )
        )
    return found


def _range(values: list[float]) -> str:
    return from_to(min(values), max(values), "–")
