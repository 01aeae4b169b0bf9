"""The headline numbers of a "trajectory" result."""

import math

import xarray as xr

from klray.analysis.runs import single_models, trajectories
from klray.analysis.runs_table import RunRow
from klray.words.numbers import counted, from_to


def _kinds(runs: int, singles: int) -> str:
    return f"models: {counted(runs, 'training run')} and {counted(singles, 'single model')}"


def findings(result: xr.Dataset, rows: list[RunRow]) -> list[tuple[str, str]]:
    """Headline numbers as (value, what it is)."""
    singles = single_models(result, trajectories(result)).size
    found = [(f"{result.sizes['model']:,}", _kinds(len(rows), singles))]
    words = {
        "late_kl": "bits/byte between consecutive checkpoints late in training, by run",
        "exponent": "mean diffusion exponent c_q of the late windows, by run; below 1 in {below} of {runs} runs. The "
        "windows of a run overlap, and a learning rate that falls during the run lowers both late KL and c_q",
        "fractal_dimension": "fractal dimension 2/c_q of the path",
        "weight_exponent": "diffusion exponent c_w of the weights in the same windows, by run",
    }
    for name, what in words.items():
        values = [value for row in rows if math.isfinite(value := getattr(row, name))]
        if values:
            told = what.format(below=sum(value < 1 for value in values), runs=len(values))
            found.append((from_to(min(values), max(values), "–"), told))
    return found
