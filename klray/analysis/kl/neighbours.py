"""The nearest models of each, exactly, without a matrix of all pairs: of every tile only what is near is kept.

Shapes: K = models, N = texts, T = models of a panel, n = neighbours. KL is in bits per byte.
"""

from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np
import xarray as xr

from klray.analysis.kl import tiles
from klray.analysis.kl.all_pairs import KL, Work, mean_text_bytes, variance_of_tile
from klray.analysis.kl.centering import checked, model_by_text
from klray.analysis.kl.panels import Panel, panels
from klray.units import kl_per_variance

Found = tuple[np.ndarray, np.ndarray]  # (T, up to n) KL, ascending, and positions; a place that stays empty is inf, -1


class Neighbours(NamedTuple):
    """The n models that are nearest to each of K, nearest first; of equally near ones, those that come first."""

    position: np.ndarray  # (K, n) int64, -1 where there are fewer
    kl: np.ndarray  # (K, n) bits/byte, NaN where there are fewer
    standard_error: np.ndarray  # (K, n) bits/byte, over texts


def nearest(
    log_likelihood: xr.DataArray,
    text_bytes: Any,
    n: int,
    *,
    reference: np.ndarray,
    tile: int,
    room: int | None = None,
) -> Neighbours:
    """The ``n`` nearest of each model by `kl_divergence`, with their standard errors, under Dask's scheduler.

    ``log_likelihood`` (model, text), Dask, in nats; ``text_bytes`` (N,). ``reference``, ``tile`` and ``room`` are those
    of `kl_with_standard_error`. KL is within 1e-10 relative of the formula, and every model that is nearer than the
    last of a row is in it.
    """
    rows = checked(model_by_text(log_likelihood).data, rows_per_chunk=tile)
    scale = kl_per_variance(mean_text_bytes(text_bytes, rows.shape[1]))
    centered = np.asarray(reference, dtype=np.float64)
    work = Work((KL,), variance_of_tile, scale, centered - centered.mean())
    sides = panels(rows, rows.numblocks[0] if room is None else room)
    starts = [0, *np.cumsum(rows.chunks[0]).tolist()]
    parts: list[list[Any]] = [[] for _ in sides]
    for i, j in combinations_with_replacement(range(len(sides)), 2):
        of_tile = dask.delayed(_of_tile, pure=False, nout=2)(work, sides[i], sides[j], starts[i], starts[j], n)
        parts[i].append(of_tile[0])
        if i < j:
            parts[j].append(of_tile[1])
    found = dask.compute(*(dask.delayed(_merged, pure=False)(each, n) for each in parts))
    kl, position = (np.concatenate([each[which] for each in found]) for which in range(2))
    error = _standard_errors(rows, sides, starts, position) * scale
    there = position >= 0
    return Neighbours(position, np.where(there, kl, np.nan), np.where(there, error, np.nan))


def _of_tile(work: Work, side: Panel, other: Panel, first: int, second: int, n: int) -> tuple[Found, Found | None]:
    """What is near on each side of a tile, whose models begin at ``first`` and ``second``."""
    rows = side.read()
    if side is other:
        (kl,) = work.of(rows, None)
        np.fill_diagonal(kl, np.inf)
        return _smallest(kl, second, n), None
    (kl,) = work.of(rows, other.read())
    return _smallest(kl, second, n), _smallest(kl.T, first, n)


def _smallest(kl: np.ndarray, start: int, n: int) -> Found:
    """The ``n`` smallest of each row of (I, J), by value and then by place; columns begin at ``start``."""
    n_rows, n_columns = kl.shape
    kept = min(n, n_columns)
    last = np.partition(kl, kept - 1, axis=1)[:, kept - 1]
    row, column = np.nonzero(kl <= last[:, None])  # more than n where several are as near as the last
    order = np.lexsort((column, kl[row, column], row))
    row, column = row[order], column[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    chosen = (rank < kept) & np.isfinite(kl[row, column])
    values, positions = np.full((n_rows, n), np.inf), np.full((n_rows, n), -1, dtype=np.int64)
    values[row[chosen], rank[chosen]] = kl[row[chosen], column[chosen]]
    positions[row[chosen], rank[chosen]] = column[chosen] + start
    return values, positions


def _merged(parts: list[Found], n: int) -> Found:
    """The ``n`` smallest of what several tiles have kept of the same rows."""
    values, positions = (np.concatenate([part[which] for part in parts], axis=1) for which in range(2))
    order = np.lexsort((positions, values), axis=1)[:, :n]
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(positions, order, axis=1)


def _standard_errors(rows: da.Array, sides: list[Panel], starts: list[int], position: np.ndarray) -> np.ndarray:
    """(K, n) nats^2: square roots of the variances of d^2 over N texts, of each model and its neighbours."""
    panel_of = np.repeat(np.arange(len(sides)), np.diff(starts))
    model, rank = np.nonzero(position >= 0)
    other = position[model, rank]
    tasks, places = [], []
    for i, j in combinations_with_replacement(range(len(sides)), 2):
        of_panels = np.sort([panel_of[model], panel_of[other]], axis=0)
        chosen = np.flatnonzero((of_panels[0] == i) & (of_panels[1] == j))
        if len(chosen):
            swap = panel_of[model[chosen]] != i
            first = np.where(swap, other[chosen], model[chosen]) - starts[i]
            second = np.where(swap, model[chosen], other[chosen]) - starts[j]
            order = np.argsort(first, kind="stable")
            places.append(chosen[order])
            tasks.append(dask.delayed(_errors, pure=False)(sides[i], sides[j], first[order], second[order]))
    result = np.full(position.shape, np.nan)
    for chosen, values in zip(places, dask.compute(*tasks), strict=True):
        result[model[chosen], rank[chosen]] = values
    return result


def _errors(side: Panel, other: Panel, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    rows = side.read()
    moments = tiles.paired(tiles.square_variance_of, rows, rows if side is other else other.read(), first, second)
    return np.asarray(np.sqrt(moments / rows.shape[1]))
