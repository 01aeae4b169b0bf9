"""KL of pairs that the page carries: all of them, or of a sample of models, and the nearest models of each.

Shapes: K = models, n = neighbours. KL is in bits per byte.
"""

from typing import Any

import numpy as np
import xarray as xr

from klray.report.carried.limits import carried_models, carried_neighbours
from klray.report.carried.packing import numbers, rounded
from klray.report.figures.kl_heatmap import color_limits, ordered
from klray.report.figures.style import literal
from klray.words.secrets import public

_ROWS = 512  # of the matrix that are looked at together


def carried_pairs(result: xr.Dataset, matrix: xr.Dataset | None) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(pairs, heat map) of all models or of a sample; None without a ``matrix``, or with no KL above 0 in it.

    ``matrix`` is that of ``with_matrix``. Pairs are the upper triangle, row by row: KL as float32, 6e-8 relative;
    standard errors rounded to 1e-4 relative.
    """
    if matrix is None:
        return None
    order, blocks = ordered(result, carried_models(result.sizes["model"]))
    models = np.sort(order)
    at = np.searchsorted(matrix["position"].values, models)
    chosen = matrix[["kl", "kl_standard_error"]].isel(model=at, other=at)
    kl, error = chosen["kl"].values, chosen["kl_standard_error"].values
    low, high = color_limits(kl)
    if not high > 0:
        return None
    upper = np.triu_indices(len(models), 1)
    pairs = {
        "models": numbers(models, "u4"),
        "kl": numbers(kl[upper], "f4"),
        "se": numbers(rounded(error[upper]), "f4"),
    }
    heat = {
        "order": numbers(order, "u4"),
        "blocks": [{"name": public(literal(name)), "size": size} for name, size in blocks],
        "low": low,
        "high": high,
    }
    return pairs, heat


def carried_nearest(result: xr.Dataset) -> dict[str, Any] | None:
    """The nearest models of each by KL, from the matrix or from what the analysis kept; None where there is neither."""
    count = result.sizes["model"]
    most = carried_neighbours(count)
    if "kl" in result:
        model, kl, error = _nearest(result, most)
    elif "neighbour" in result:
        model, kl, error = (
            result[name].values[:, :most] for name in ("neighbour", "neighbour_kl", "neighbour_kl_standard_error")
        )
    else:
        return None
    return {
        "k": model.shape[1],
        "model": numbers(np.where(model < 0, count, model), "u4"),
        "kl": numbers(kl, "f4"),
        "se": numbers(rounded(error), "f4"),
    }


def _nearest(result: xr.Dataset, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(K, n) positions (-1: none), KL and standard errors, nearest first."""
    count = result.sizes["model"]
    place = np.full((count, most), -1, dtype=np.int64)
    kl, error = np.full((2, count, most), np.nan)
    if count == 1:
        return place, kl, error
    for start in range(0, count, _ROWS):
        part = result[["kl", "kl_standard_error"]].isel(model=slice(start, start + _ROWS))
        rows, errors = part["kl"].values.copy(), part["kl_standard_error"].values
        here = np.arange(len(rows))
        rows[here, start + here] = np.nan
        rows[~np.isfinite(rows)] = np.inf
        near = np.argpartition(rows, min(most, count - 1) - 1, axis=1)[:, :most]
        near = np.take_along_axis(near, np.argsort(np.take_along_axis(rows, near, 1), axis=1, kind="stable"), 1)
        found = np.take_along_axis(rows, near, 1)
        there = np.isfinite(found)
        place[start : start + _ROWS] = np.where(there, near, -1)
        kl[start : start + _ROWS] = np.where(there, found, np.nan)
        error[start : start + _ROWS] = np.where(there, np.take_along_axis(errors, near, 1), np.nan)
    return place, kl, error


def said_of_pairs(result: xr.Dataset, carried: int, nearest: int) -> str:
    """Which pairs the page has, and which not."""
    count = result.sizes["model"]
    if carried == count:
        return "Of every other pair it has the KL."
    sample = f"all pairs of {carried:,} of the {count:,} models, and " if carried else ""
    return (
        f"It has {sample}the {nearest:,} nearest models of each, because all pairs would make the file too "
        "large. This gives it, with URL as the store's address:"
    )
