"""Squared distances between sketches, and how far they may be off.

Shapes: K = sketches, m = buckets.
"""

import math

import numpy as np
import numpy.typing as npt

from klray.errors import KlrayError

_NEAR = 1e-6  # of the squared norms: below, the Gram matrix has lost 6 of its 16 digits and differences are taken


def relative_error(size: int) -> float:
    """Standard deviation of a squared distance from sketches of ``size`` buckets, at most: sqrt(2 / m)."""
    return math.sqrt(2 / size)


def squared_distances(sketches: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Squared distances (K, K) float64, in the square of the parameters' unit, from sketches (K, m).

    Each is ||a - b||^2 with a relative standard deviation of at most ``relative_error(m)``: 99 % of pairs are within
    three of these. It is 0 for equal sketches, and NaN where one is not finite. All pairs share signs and buckets, and
    the pairs of a run most of their displacement: their errors come together. Raises KlrayError for another shape.
    """
    rows = np.array(sketches, dtype=np.float64)
    if rows.ndim != 2:
        raise KlrayError(f"sketches have the shape {rows.shape}: give one row of m buckets for each checkpoint, (K, m)")
    whole = np.isfinite(rows).all(axis=1)
    if whole.any():
        rows -= rows[whole].mean(axis=0)
    gram = rows @ rows.T
    norms = np.diagonal(gram)
    sums = norms[:, None] + norms[None, :]
    distances = np.maximum(sums - 2 * gram, 0.0)
    distances = np.triu(distances, 1)
    for i, j in zip(*np.nonzero(np.triu(~(distances > _NEAR * sums), 1)), strict=True):
        difference = rows[i] - rows[j]
        distances[i, j] = difference @ difference
    distances += distances.T
    distances[~whole, :] = distances[:, ~whole] = np.nan
    return distances
