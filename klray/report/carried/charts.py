"""What interactive figures show: consecutive KL and exponents by run, the settings of the scale."""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from klray.analysis.runs import Run
from klray.analysis.runs_table import Windows, consecutive_pairs, exponent_windows, weight_windows
from klray.analysis.scale.measuring import scale_rows
from klray.analysis.scale.placing import FAR, NEAR, QUANTILE_PAIRS, place
from klray.analysis.scale.published_settings import SETTINGS
from klray.errors import KlrayError
from klray.report.carried.limits import SETTING_PAIRS
from klray.report.carried.packing import numbers, rounded
from klray.report.figures.style import short_names
from klray.words.secrets import public


def carried_consecutive(result: xr.Dataset, runs: list[Run]) -> list[dict[str, Any]]:
    """Of each run its consecutive pairs, by the later step; ``usual``: as far apart as most in that run."""
    found = []
    for run, label in zip(runs, short_names(runs), strict=True):
        pairs = consecutive_pairs(result, run)
        found.append(
            {
                "name": public(label),
                "step": numbers(pairs.step, "i4"),
                "previous": numbers(pairs.previous_step, "i4"),
                "kl": numbers(pairs.kl, "f4"),
                "se": numbers(rounded(pairs.standard_error), "f4"),
                "usual": numbers(pairs.usual, "u1"),
            }
        )
    return found


def carried_exponents(result: xr.Dataset, runs: list[Run]) -> dict[str, list[dict[str, Any]]]:
    """Windows of each run that has any: of KL, and of weights."""
    of: dict[str, Callable[[xr.Dataset, Run], Windows]]
    of = {"exponents_kl": exponent_windows, "exponents_weights": weight_windows}
    labels = short_names(runs)
    return {
        name: [
            {
                "name": public(label),
                "start": numbers(windows.start, "i4"),
                "exponent": numbers(windows.exponent, "f4"),
                "r_squared": numbers(windows.r_squared, "f4"),
            }
            for run, label in zip(runs, labels, strict=True)
            if (windows := found(result, run)).start.size
        ]
        for name, found in of.items()
    }


def carried_scale(scale: xr.Dataset | None) -> dict[str, Any]:
    """The settings that `place` knows, in the order of the scale, and the rules by which it puts a number into words.

    With a ``scale`` their pairs, by ascending KL, the first and the second model of each. Of more than SETTING_PAIRS
    pairs as many quantiles stand for them.
    """
    try:
        placed = place(1.0, scale)
    except KlrayError:  # a scale without a pair
        scale, placed = None, place(1.0)
    known = {each.setting: each for each in placed.neighbours}
    order = [row.setting for row in scale_rows(scale)] if scale is not None else [each.name for each in SETTINGS]
    settings = []
    for name in order:
        if name not in known:
            continue
        found = known[name]
        setting = {
            "name": public(name),
            "phrase": public(found.phrase),
            "low": found.low,
            "high": found.high,
            "n": found.n,
        }
        settings.append(setting | (_pairs_of(scale, name) if scale is not None else {}))
    return {
        "settings": settings,
        "source": f"Medians of {placed.source}." if scale is not None else f"Published values, {placed.source}.",
        "near": NEAR,
        "far": FAR,
        "few": QUANTILE_PAIRS,
    }


def _pairs_of(scale: xr.Dataset, name: str) -> dict[str, Any]:
    at = np.flatnonzero([str(each) == name for each in scale["pair_setting"].values])
    at = at[np.argsort(scale["kl"].values[at], kind="stable")]
    row = next(each for each in scale_rows(scale) if each.setting == name)
    kl = scale["kl"].values[at]
    found: dict[str, Any] = {"median": row.median}
    if np.isfinite(row.published_low):
        found["published"] = [row.published_low, row.published_high]
    if len(at) > SETTING_PAIRS:
        return found | {"kl": numbers(np.quantile(kl, np.linspace(0, 1, SETTING_PAIRS)), "f4")}
    names = [[public(str(each)) for each in scale[of].values[at]] for of in ("first", "second")]
    return found | {
        "kl": numbers(kl, "f4"),
        "se": numbers(rounded(scale["kl_standard_error"].values[at]), "f4"),
        "pairs": [list(pair) for pair in zip(*names, strict=True)],
    }
