"""KL and its standard error of chosen pairs, such as a model and its quantised self, from the rows that they need.

Shapes: K = models, N = texts, P = pairs.
"""

from collections.abc import Iterator

import dask.array as da
import numpy as np
import xarray as xr

from klray.analysis.facts import labels
from klray.analysis.kl import tiles
from klray.analysis.kl.all_pairs import mean_text_bytes, paired_standard_error
from klray.errors import KlrayError
from klray.units import kl_per_variance

ROWS_BYTES = 2**30  # of the rows that are held together; a snapshot of 1,018 models and 10,000 texts has 41 MB
_TOGETHER = 256  # pairs whose rows are laid side by side: 20 MB for 10,000 texts


def pair_divergence(
    values: xr.DataArray, pairs: np.ndarray, rows_bytes: int = ROWS_BYTES
) -> tuple[np.ndarray, np.ndarray]:
    """KL and standard error of the pairs, (P,) float64 bits/byte each.

    KL_ij = Var_n(l_i - l_j) / (2 B-bar ln 2) by differences in float64, B-bar over the texts of ``values``: (K, N) nats
    with the coordinate text_bytes, as ``Recipe.apply`` gives it; ``pairs`` are (P, 2) positions. Rows are read in as
    few parts as ``rows_bytes`` in memory allows (two rows are always held); a pair that is asked for twice is computed
    once. KlrayError: a pair's KL is not finite.
    """
    text_bytes = values["text_bytes"].values
    scale = kl_per_variance(mean_text_bytes(text_bytes, values.sizes["text"]))
    if not len(pairs):
        return np.empty(0), np.empty(0)
    distinct, inverse = np.unique(pairs, axis=0, return_inverse=True)
    kl, standard_error = np.empty(len(distinct)), np.empty(len(distinct))
    for chosen, first, second in paired_rows(values, distinct, rows_bytes):
        here = np.arange(len(first))
        kl[chosen] = tiles.paired(tiles.variance_of, first, second, here, here) * scale
        standard_error[chosen] = paired_standard_error(first, second, text_bytes)
    if not np.isfinite(kl).all():
        bad = distinct[np.flatnonzero(~np.isfinite(kl))[0]]
        names = labels(values)
        raise KlrayError(
            f"the KL of {names[bad[0]]} and {names[bad[1]]} is not finite, because their log-likelihoods are not: "
            "exclude them (analysis.exclude=) or score them again"
        )
    return kl[inverse.ravel()], standard_error[inverse.ravel()]


def paired_rows(
    values: xr.DataArray, pairs: np.ndarray, rows_bytes: int = ROWS_BYTES
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Which of the ``pairs`` (P, 2), and the rows (p, N) of their first and of their second models, some at a time.

    Rows are read in as few parts as ``rows_bytes`` in memory allows (two rows are always held).
    """
    data = values.transpose("model", "text").data
    data = data if isinstance(data, da.Array) else da.from_array(data)
    for part in _parts(pairs, max(2, rows_bytes // (values.sizes["text"] * data.dtype.itemsize))):
        needed, places = np.unique(pairs[part], return_inverse=True)
        rows = data[needed].compute()
        i, j = places.reshape(-1, 2).T
        for start in range(0, len(i), _TOGETHER):
            chosen = slice(part.start + start, min(part.start + start + _TOGETHER, part.stop))
            yield chosen, rows[i[start : start + _TOGETHER]], rows[j[start : start + _TOGETHER]]


def _parts(pairs: np.ndarray, most_rows: int) -> Iterator[slice]:
    """Consecutive pairs that need no more rows than that together."""
    start, needed = 0, set[int]()
    for place, pair in enumerate(pairs.tolist()):
        if len(needed) + len(set(pair) - needed) > most_rows:
            yield slice(start, place)
            start, needed = place, set()
        needed.update(pair)
    yield slice(start, len(pairs))
