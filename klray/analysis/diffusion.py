"""Diffusion of a run: the exponent of its squared displacement, and the fractal dimension that goes with it.

Shapes: T = saved checkpoints of a run, S = T - W window starts, W = checkpoints in a window.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from klray.analysis.defaults import MIN_STEP, WINDOW
from klray.errors import KlrayError

MIN_POINTS = 3  # a line through fewer points fits itself


class DiffusionExponent(NamedTuple):
    """Slope and goodness of fit for each start checkpoint, both (T,) float64, NaN where no complete window starts."""

    exponent: np.ndarray
    r_squared: np.ndarray


def diffusion_exponent(
    steps: Any, squared_distances: Any, window: int = WINDOW, min_step: int = MIN_STEP
) -> DiffusionExponent:
    """Diffusion exponent c of each window: ln D(t0, t) ~ c ln(t - t0) + const, arXiv:2505.15353, section 4.

    For each start checkpoint t0 >= ``min_step`` the next ``window`` saved checkpoints are taken, and a line is fitted
    by least squares. c = 1 is ordinary diffusion, c < 1 subdiffusion. KL is a squared distance (exponent c_q), and so
    is the squared Euclidean distance of weights (c_w). R^2 is NaN where the distances are all equal.

    ``steps`` are (T,) strictly increasing, ``squared_distances`` (T, T) in any unit, NaN in the rows and columns of
    checkpoints that are left out. Those, and distances of 0, which have no logarithm, drop out of the regression; with
    fewer than 3 points left the window has no exponent. A start with fewer than ``window`` (at least 3) checkpoints
    after it has no window. KlrayError: steps that do not increase, a matrix of another shape, negative distances, or a
    window below 3.
    """
    times = np.asarray(steps, dtype=np.float64)
    distances = np.asarray(squared_distances, dtype=np.float64)
    if times.ndim != 1 or not np.all(np.diff(times) > 0):
        raise KlrayError(
            f"steps needs one strictly increasing number for each checkpoint, it is {_abridged(times)}: "
            "sort the checkpoints by step and keep one for each"
        )
    if distances.shape != (len(times), len(times)):
        raise KlrayError(
            f"squared_distances needs the shape ({len(times)}, {len(times)}), one row and column for each step, it has "
            f"{distances.shape}: pass the distances between the same checkpoints"
        )
    if window < MIN_POINTS:
        raise KlrayError(
            f"window needs at least {MIN_POINTS} checkpoints to fit a line, it is {window}: choose for example 10"
        )
    if (distances < 0).any():
        raise KlrayError(
            f"squared_distances needs values of 0 or more, the smallest is {np.nanmin(distances):.3g}: "
            "pass squared distances such as KL, not their logarithm"
        )
    exponent, r_squared = np.full(len(times), np.nan), np.full(len(times), np.nan)
    n_starts = len(times) - window
    if n_starts < 1:
        return DiffusionExponent(exponent, r_squared)
    later = np.arange(n_starts)[:, None] + np.arange(1, window + 1)
    y = distances[np.arange(n_starts)[:, None], later]
    y = np.log(np.where(y > 0, y, np.nan))
    x = np.log(sliding_window_view(times[1:], window) - times[:n_starts, None])
    usable = np.isfinite(y)
    n_points = usable.sum(axis=1)
    complete = (n_points >= MIN_POINTS) & (times[:n_starts] >= min_step)
    x, y, usable = x[complete], y[complete], usable[complete]
    x = _centered(x, usable)
    y = _centered(y, usable)
    xx, xy, yy = (x * x).sum(axis=1), (x * y).sum(axis=1), (y * y).sum(axis=1)
    starts = np.flatnonzero(complete)
    exponent[starts] = xy / xx
    r_squared[starts] = np.divide(xy * xy, xx * yy, out=np.full(len(starts), np.nan), where=yy > 0)
    return DiffusionExponent(exponent, r_squared)


def fractal_dimension(exponent: Any) -> np.ndarray:
    """D = 2 / c, dimensionless: 1 / H of fractional Brownian motion with c = 2 H; NaN where c is not positive."""
    c = np.asarray(exponent, dtype=np.float64)
    return np.divide(2.0, c, out=np.full(c.shape, np.nan), where=c > 0)


def late(values: np.ndarray) -> tuple[float, float]:
    """Mean and sample standard deviation of the last half (rounded up) of what a run's windows have, by start step.

    NaN for a mean of none and a deviation of fewer than two. Windows overlap: the deviation is no standard error.
    """
    half = values[len(values) // 2 :]
    mean = float(np.mean(half)) if len(half) else float("nan")
    return mean, float(np.std(half, ddof=1)) if len(half) > 1 else float("nan")


def _centered(values: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """(S, W) values less the mean of the usable ones of their window; 0 where not usable."""
    filled = np.where(usable, values, 0.0)
    means = filled.sum(axis=1, keepdims=True) / usable.sum(axis=1, keepdims=True)
    return np.where(usable, filled - means, 0.0)


def _abridged(values: np.ndarray) -> str:
    return np.array2string(values, threshold=6, precision=10)
