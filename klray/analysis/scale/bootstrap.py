"""How a median depends on the pairs that are there."""

from __future__ import annotations

import numpy as np

from klray.analysis.defaults import RESAMPLES


def bootstrap_standard_error(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Standard error of the median of (P,) values by bootstrap over them: the standard deviation over resamples.

    It says how the median depends on which pairs are there; that all pairs share their texts is no part of it. NaN for
    fewer than 2 values.
    """
    if len(values) < 2:
        return float("nan")
    generator = np.random.default_rng(seed)
    medians = [np.median(generator.choice(values, len(values))) for _ in range(resamples)]
    return float(np.std(medians, ddof=1))
