"""Quantised models in a report: how far each is from its unquantised self, next to the noise floor."""

import math

import numpy as np
import xarray as xr

from klray.analysis.facts import strings
from klray.analysis.noise_floor import NoiseFloor
from klray.analysis.pairs import relative_divergence
from klray.analysis.relatives import unquantised
from klray.analysis.scale.measuring import bootstrap_standard_error
from klray.report.sections import Section, Table
from klray.words.numbers import scientific, significant, with_error

_HEADER = ("Quantisation", "n", "Median KL ± SE", "Quartiles", "SE of a pair")
_NOISE_HEADER = ("Noise floor", "Median / floor")


def quantization_section(result: xr.Dataset, noise: NoiseFloor | None) -> Section | None:
    """Median KL of the models quantised in each way to their unquantised selves; None where there is no such pair."""
    of = unquantised(result, result["excluded"].values)
    if not (of >= 0).any():
        return None
    quantizations, dtypes = strings(result, "quantization"), strings(result, "dtype")
    floors = {} if noise is None else {row.dtype: row.floor for row in noise.worst() if row.floor is not None}
    rows = []
    for name in np.unique(quantizations[of >= 0]):
        quantised = np.flatnonzero((of >= 0) & (quantizations == name))
        kl, error = relative_divergence(result, quantised, of[quantised])
        cells = _cells(str(name), kl, error)
        if noise is not None:
            known = [floors[dtype] for dtype in set(dtypes[quantised]) if dtype in floors]
            floor = max(known) if len(known) == len(set(dtypes[quantised])) else math.nan
            cells += (
                "–" if math.isnan(floor) else scientific(floor),
                _ratio(float(np.median(kl)) / floor if floor else math.nan),
            )
        rows.append(cells)
    return Section(
        "quantised",
        "KL of quantised models",
        paragraphs=(
            "Each quantised model against its unquantised self: the same commit, in the same precision where "
            "that was scored.",
        ),
        tables=(Table(_HEADER + (_NOISE_HEADER if noise is not None else ()), rows),),
        notes=(_meaning(noise),),
    )


def _ratio(value: float) -> str:
    return scientific(value) if value >= 1e6 else significant(value, 2)


def _cells(name: str, kl: np.ndarray, error: np.ndarray) -> tuple[str, ...]:
    lower, median, upper = np.quantile(kl, [0.25, 0.5, 0.75]).tolist()
    return (
        name,
        f"{len(kl):,}",
        with_error(median, bootstrap_standard_error(kl)),
        f"{significant(lower)} to {significant(upper)}",
        significant(float(np.median(error)), 2),
    )


def _meaning(noise: NoiseFloor | None) -> str:
    said = (
        "KL in bits/byte. ± SE of the median: bootstrap over pairs (1,000 resamples). SE of a pair: median of the "
        "pairs' standard errors over texts."
    )
    if noise is None:
        return f"{said} The noise floor was not measured."
    return (
        f"{said} Noise floor: the largest KL between scorings of one unquantised checkpoint in the precision of these "
        "models, see there; a dash where it was not measured in that precision, or where it is 0."
    )
