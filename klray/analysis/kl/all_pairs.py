"""All-pairs KL divergence and its standard error, in bits per byte, tile by tile.

Shapes: K = models, N = texts, T = models on each side of a tile. Only tiles of the upper triangle are computed; a tile
below the diagonal is the transpose of the same task. KL_ij depends on rows i and j alone (column means cancel in
differences), so a matrix can be extended: ``previous`` holds what is known of the first models, and stays as it is.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from dask.system import CPU_COUNT
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from klray.analysis.kl import tiles
from klray.analysis.kl.centering import Values, checked, model_by_text
from klray.analysis.kl.panels import Panel, panels
from klray.analysis.kl.tiling import tile_side
from klray.errors import KlrayError
from klray.units import kl_per_variance

Matrices = tuple[np.ndarray, ...]

logger = logging.getLogger("klray")


class Quantity(NamedTuple):
    """What an all-pairs matrix holds."""

    name: str
    long_name: str


KL = Quantity("kl", "Kullback-Leibler divergence between models")
KL_STANDARD_ERROR = Quantity("kl_standard_error", "standard error of the Kullback-Leibler divergence over texts")


class Begun(Protocol):
    """What an earlier computation of the same matrices has left: some of their rows and columns, or none."""

    def has(self, rows: slice, others: slice) -> bool:
        """Whether these rows and columns of every matrix are there."""

    def read(self, rows: slice, others: slice) -> Matrices | None:
        """These rows and columns of each matrix; None where they turn out to be lost."""


class Work(NamedTuple):
    """What is computed of every tile: ``tile(rows, others, reference)``, by its quantities, in bits per byte."""

    quantities: tuple[Quantity, ...]
    tile: Callable[[np.ndarray, np.ndarray | None, np.ndarray | None], Matrices]
    scale: float  # 1 / (2 B-bar ln 2): nats^2 to bits per byte
    reference: np.ndarray | None = None  # (N,) nats, see ``tiles.variance``

    def of(self, rows: np.ndarray, others: np.ndarray | None) -> Matrices:
        """The quantities of the pairs of rows and others, or among the rows, (I, J) each."""
        # tiles have threads already; those of BLAS beside them wait for each other in every product, which made all
        # pairs of 3,000 models three to six times slower on two busy cores
        with threadpool_limits(1, user_api="blas"):
            found = self.tile(rows, others, self.reference)
        for each in found:
            each *= self.scale
        return found


def variance_of_tile(rows: np.ndarray, others: np.ndarray | None, reference: np.ndarray | None) -> Matrices:
    """What `Work` computes for KL alone."""
    return (tiles.variance(rows, others, reference),)


def _with_error(rows: np.ndarray, others: np.ndarray | None, reference: np.ndarray | None) -> Matrices:
    variance, moments = tiles.variances(rows, others, reference)
    moments /= rows.shape[1]
    return variance, np.sqrt(moments, out=moments)


def _error(rows: np.ndarray, others: np.ndarray | None, reference: np.ndarray | None) -> Matrices:
    return (_with_error(rows, others, reference)[1],)


def kl_divergence(
    log_likelihood: Values,
    text_bytes: Any,
    *,
    tile: int | None = None,
    previous: Any = None,
    threads: int | None = None,
) -> Values:
    """KL divergence of every pair of models: KL_ij = Var_n(l_i - l_j) / (2 B-bar ln 2), arXiv:2505.15353, section 2.

    Symmetric, 0 on the diagonal, never negative; within 1e-10 relative of the formula for every pair, also for nearly
    identical models. The value of a pair depends on its two rows alone, whatever other models there are.

    ``log_likelihood``, NumPy, Dask or xarray (dims model, text), is (K, N) nats, and ``text_bytes`` are the (N,) UTF-8
    bytes of each text, B-bar their mean. ``tile`` is the most models on each side of a tile, and the chunks of a Dask
    result; None for what suits the size. ``previous``, (P, P) in bits per byte, is the matrix of the first P <= K
    models over the same texts: taken as it is, to the bit, so that only pairs with a newer model are computed.
    ``threads`` are those of a computation on NumPy, by default one for each CPU; Dask's scheduler has its own.

    Returned are (K, K) float64, bits per byte, of the same kind as the input: NumPy, lazy Dask in chunks of (tile,
    tile), or xarray with dims (model, other) and the coordinates of ``model``. KlrayError: wrong shapes, fewer than 2
    texts, bytes that are not positive, values that are not finite (Dask: when computed).
    """
    found: Values = _all_pairs((KL,), variance_of_tile, log_likelihood, text_bytes, tile, (previous,), threads)[0]
    return found


def kl_standard_error(
    log_likelihood: Values,
    text_bytes: Any,
    *,
    tile: int | None = None,
    previous: Any = None,
    threads: int | None = None,
) -> Values:
    """Standard error of KL_ij over texts, by the delta method: sqrt((m4 - m2^2) / N) / (2 B-bar ln 2).

    m2 and m4 are the second and fourth moments over texts of l_i - l_j, centred (arXiv:2505.15353 gives such errors).
    Symmetric, 0 on the diagonal, never negative. Within 1e-8 relative of direct evaluation for float32 input, and for
    float64 input where l_i - l_j varies by more than about 1e-6 nats a text; below that rounding shows (5e-8 at 1e-7
    nats, 1e-6 at 1e-9, for texts of 1,000 nats and more). Arguments, result and errors are those of `kl_divergence`;
    ``previous`` holds standard errors, not the KL.
    """
    found: Values = _all_pairs((KL_STANDARD_ERROR,), _error, log_likelihood, text_bytes, tile, (previous,), threads)[0]
    return found


def kl_with_standard_error(
    log_likelihood: xr.DataArray,
    text_bytes: Any,
    *,
    reference: np.ndarray,
    tile: int | None = None,
    previous: tuple[Any, Any] = (None, None),
    room: int | None = None,
    begun: Begun | None = None,
) -> tuple[xr.DataArray, xr.DataArray]:
    """`kl_divergence` and `kl_standard_error` of the same products, lazily, in a fifth less time than one by one.

    ``reference`` is a row (N,), nats, of the same texts: any, but one that never changes, because the last bits of a
    pair depend on it. The nearer it is to the models, the fewer pairs have to be evaluated from their differences.
    Tiles read their own rows, and keep no more than ``room`` panels of ``tile`` rows in memory (None: all). Those that
    ``begun`` has are taken from there.
    """
    both = (KL, KL_STANDARD_ERROR)
    centered = np.asarray(reference, dtype=np.float64)
    centered = centered - centered.mean()
    kl, error = _all_pairs(both, _with_error, log_likelihood, text_bytes, tile, previous, None, centered, room, begun)
    return kl, error


def paired_divergence(rows: np.ndarray, others: np.ndarray, text_bytes: Any) -> np.ndarray:
    """KL of rows[p] and others[p], (P, N) nats each -> (P,) bits per byte, by differences."""
    pairs = np.arange(len(rows))
    result: np.ndarray = tiles.paired(tiles.variance_of, rows, others, pairs, pairs)
    return result * kl_per_variance(mean_text_bytes(text_bytes, rows.shape[1]))


def paired_standard_error(rows: np.ndarray, others: np.ndarray, text_bytes: Any) -> np.ndarray:
    """Standard error of the KL of rows[p] and others[p], (P, N) nats each -> (P,) bits per byte, by differences."""
    pairs = np.arange(len(rows))
    moments = tiles.paired(tiles.square_variance_of, rows, others, pairs, pairs)
    result: np.ndarray = np.sqrt(moments / rows.shape[1])
    return result * kl_per_variance(mean_text_bytes(text_bytes, rows.shape[1]))


def mean_text_bytes(text_bytes: Any, n_texts: int) -> float:
    """B-bar: the mean of the (N,) bytes per text; KlrayError unless there is one positive number for every text."""
    sizes = np.asarray(text_bytes)
    if sizes.shape != (n_texts,):
        raise KlrayError(
            f"text_bytes needs the shape ({n_texts},), one number per text of log_likelihood, it has {sizes.shape}: "
            "pass the bytes of the same texts in the same order"
        )
    advice = "leave empty texts out and count the UTF-8 bytes of the others"
    if sizes.dtype.kind not in "fiu":
        raise KlrayError(f"text_bytes needs positive numbers of UTF-8 bytes, it has dtype {sizes.dtype}: {advice}")
    usable = np.isfinite(sizes) & (sizes > 0)
    if not usable.all():
        text = int(np.argmin(usable))
        raise KlrayError(
            f"text_bytes needs positive numbers of UTF-8 bytes, it has {sizes[text]} at text {text}: {advice}"
        )
    return float(sizes.mean(dtype=np.float64))


def _all_pairs(
    quantities: tuple[Quantity, ...],
    kernel: Callable[..., Matrices],
    log_likelihood: Any,
    text_bytes: Any,
    tile: int | None,
    previous: Sequence[Any],
    threads: int | None,
    reference: np.ndarray | None = None,
    room: int | None = None,
    begun: Begun | None = None,
) -> list[Any]:
    """The matrix of each quantity, of the kind of ``log_likelihood``."""
    if tile is not None and tile < 1:
        raise KlrayError(f"tile needs at least 1 model, it is {tile}: leave it out, or choose for example tile=512")
    if isinstance(log_likelihood, xr.DataArray):
        labelled = model_by_text(log_likelihood)
        given = (labelled.data, text_bytes, tile, previous, threads, reference, room, begun)
        found = _all_pairs(quantities, kernel, *given)
        return [_labelled(*each, labelled) for each in zip(quantities, found, strict=True)]
    tile = tile or tile_side(np.shape(log_likelihood)[0] if np.ndim(log_likelihood) else 1, threads or CPU_COUNT)
    rows = checked(log_likelihood, rows_per_chunk=tile)
    n_models, n_texts = rows.shape
    work = Work(quantities, kernel, kl_per_variance(mean_text_bytes(text_bytes, n_texts)), reference)
    known = [_square(each.data if isinstance(each, xr.DataArray) else each, n_models) for each in previous]
    if isinstance(rows, da.Array):
        return _dask_pairs(work, rows, tile, [da.asarray(each) for each in known], room, begun)
    return _numpy_pairs(work, rows, tile, [np.asarray(each) for each in known], threads or CPU_COUNT)


def _square(known: Any, n_models: int) -> Any:
    known = np.empty((0, 0)) if known is None else known
    if known.ndim != 2 or known.shape[0] != known.shape[1] or known.shape[0] > n_models:
        raise KlrayError(
            f"previous needs the shape (P, P) with P <= {n_models}, the first P models of log_likelihood, it has "
            f"{known.shape}: pass the matrix of an earlier state of the same models, or None"
        )
    return known


def _numpy_pairs(work: Work, rows: np.ndarray, tile: int, known: list[np.ndarray], threads: int) -> list[np.ndarray]:
    n_models = len(rows)
    result = [np.empty((n_models, n_models)) for _ in known]

    def fill(i: int, j: int) -> None:
        first, second = slice(i, i + tile), slice(j, j + tile)
        others = None if i == j else rows[second]
        found = _tile(work, rows[first], others, [each[first, second] for each in known])
        for matrix, block in zip(result, found, strict=True):
            matrix[first, second] = block
            matrix[second, first] = block.T

    with ThreadPoolExecutor(threads) as pool:
        starts = range(0, n_models, tile)
        for done in [pool.submit(fill, i, j) for i in starts for j in starts if i <= j]:
            done.result()
    return result


def _dask_pairs(
    work: Work, rows: da.Array, tile: int, known: list[da.Array], room: int | None, begun: Begun | None
) -> list[da.Array]:
    known = [each.rechunk((tile, tile)) for each in known]
    names = tuple(quantity.name for quantity in work.quantities)
    token = tokenize(names, rows.name, [each.name for each in known], work.scale, tile, work.reference, begun)
    sizes, known_sizes = rows.chunks[0], known[0].chunks[0] if known[0].size else ()
    sides = panels(rows, len(sizes) if room is None else room)
    tiled, layers = f"tiles-{token}", [dict[Any, Any]() for _ in names]
    layer: dict[Any, Any] = {}
    ends = np.cumsum(sizes).tolist()
    parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    there = 0
    for i in range(len(sizes)):
        for j in range(i, len(sizes)):
            before = [(each.name, i, j) for each in known] if j < len(known_sizes) else []
            whole = bool(before) and known_sizes[j] == sizes[j]
            if not whole:
                left = _Left(begun, parts[i], parts[j]) if begun and begun.has(parts[i], parts[j]) else None
                there += left is not None
                layer[(tiled, i, j)] = (_tile_of_panels, work, sides[i], sides[j], before, left)
            for q, name in enumerate(names):
                key = (f"{name}-{token}", i, j)
                layers[q][key] = before[q] if whole else (itemgetter(q), (tiled, i, j))
                if i < j:
                    layers[q][(f"{name}-{token}", j, i)] = (np.transpose, key)
    if there:
        logger.info("%s of %s tiles are there, of an analysis that was cut short", f"{there:,}", f"{len(layer):,}")
    return [
        da.Array(
            HighLevelGraph.from_collections(f"{name}-{token}", layer | of_quantity, dependencies=known),
            f"{name}-{token}",
            chunks=(sizes, sizes),
            dtype=np.float64,
            meta=np.empty((0, 0)),
        )
        for name, of_quantity in zip(names, layers, strict=True)
    ]


class _Left(NamedTuple):
    """A tile of an earlier computation."""

    begun: Begun
    rows: slice
    others: slice

    def read(self) -> Matrices | None:
        return self.begun.read(self.rows, self.others)


def _tile_of_panels(
    work: Work, side: Panel, other: Panel, known: list[np.ndarray], left: _Left | None = None
) -> Matrices:
    if left is not None and (found := left.read()) is not None:
        return found
    rows = side.read()
    return _tile(work, rows, None if side is other else other.read(), known)


def _tile(work: Work, rows: np.ndarray, others: np.ndarray | None, known: list[np.ndarray]) -> Matrices:
    """(I, J) of each quantity; what is known of the first models, (I' <= I, J' <= J), is copied, the rest computed."""
    if not known or known[0].size == 0:
        return work.of(rows, others)
    n, m = known[0].shape
    partners = rows if others is None else others
    blocks = tuple(np.zeros((len(rows), len(partners))) for _ in known)
    if m < len(partners):
        for block, found in zip(blocks, work.of(rows[:n], partners[m:]), strict=True):
            block[:n, m:] = found
    if n < len(rows) and others is None:
        for block, found in zip(blocks, work.of(rows[n:], None), strict=True):
            block[n:, :n] = block[:n, n:].T
            block[n:, n:] = found
    elif n < len(rows):
        for block, found in zip(blocks, work.of(rows[n:], others), strict=True):
            block[n:] = found
    for block, before in zip(blocks, known, strict=True):
        block[:n, :m] = before
    return blocks


def _labelled(quantity: Quantity, values: Any, labelled: xr.DataArray) -> xr.DataArray:
    coordinates = {name: c for name, c in labelled.coords.items() if c.dims in {(), ("model",)}}
    if "model" in coordinates:
        coordinates["other"] = xr.DataArray(coordinates["model"].values, dims="other", attrs=coordinates["model"].attrs)
    attributes = {"units": "bit/byte", "long_name": quantity.long_name, "references": "arXiv:2505.15353"}
    return xr.DataArray(values, coordinates, ("model", "other"), quantity.name, attributes)
