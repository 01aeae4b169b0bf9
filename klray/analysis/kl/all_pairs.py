"""All-pairs KL divergence and its standard error, in bits per byte, tile by tile.

Shapes: K = models, N = texts, T = models on each side of a tile. Only tiles of the upper triangle are computed; a tile
below the diagonal is the transpose of the same task. KL_ij depends on rows i and j alone (column means cancel in
differences), so a matrix can be extended: ``previous`` holds what is known of the first models, and stays as it is.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from dask.system import CPU_COUNT
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from klray.analysis.defaults import TILE
from klray.analysis.kl import tiles
from klray.analysis.kl.centering import Values, checked, model_by_text
from klray.errors import KlrayError
from klray.units import kl_per_variance


class Quantity(NamedTuple):
    """What an all-pairs matrix holds."""

    name: str
    long_name: str
    tile: Callable[..., np.ndarray]  # (I, N), (J, N) or None -> (I, J) nats^2, to be scaled by 1 / (2 B-bar ln 2)


def _standard_error_tile(rows: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    moments = tiles.square_variance(rows, others)
    moments /= rows.shape[1]
    return np.sqrt(moments, out=moments)


KL = Quantity("kl", "Kullback-Leibler divergence between models", tiles.variance)
KL_STANDARD_ERROR = Quantity(
    "kl_standard_error", "standard error of the Kullback-Leibler divergence over texts", _standard_error_tile
)


def kl_divergence(
    log_likelihood: Values, text_bytes: Any, *, tile: int = TILE, previous: Any = None, threads: int | None = None
) -> Values:
    """KL divergence of every pair of models: KL_ij = Var_n(l_i - l_j) / (2 B-bar ln 2), arXiv:2505.15353, section 2.

    Symmetric, 0 on the diagonal, never negative; within 1e-10 relative of the formula for every pair, also for nearly
    identical models. The value of a pair depends on its two rows alone, whatever other models there are.

    ``log_likelihood``, NumPy, Dask or xarray (dims model, text), is (K, N) nats, and ``text_bytes`` are the (N,) UTF-8
    bytes of each text, B-bar their mean. ``tile`` is the most models on each side of a tile, and the chunks of a Dask
    result. ``previous``, (P, P) in bits per byte, is the matrix of the first P <= K models over the same texts: taken
    as it is, to the bit, so that only pairs with a newer model are computed. ``threads`` are those of a computation on
    NumPy, by default one for each CPU; Dask's scheduler has its own.

    Returned are (K, K) float64, bits per byte, of the same kind as the input: NumPy, lazy Dask in chunks of (tile,
    tile), or xarray with dims (model, other) and the coordinates of ``model``. KlrayError: wrong shapes, fewer than 2
    texts, bytes that are not positive, values that are not finite (Dask: when computed).
    """
    return _all_pairs(KL, log_likelihood, text_bytes, tile, previous, threads)


def kl_standard_error(
    log_likelihood: Values, text_bytes: Any, *, tile: int = TILE, previous: Any = None, threads: int | None = None
) -> Values:
    """Standard error of KL_ij over texts, by the delta method: sqrt((m4 - m2^2) / N) / (2 B-bar ln 2).

    m2 and m4 are the second and fourth moments over texts of l_i - l_j, centred (arXiv:2505.15353 gives such errors).
    Symmetric, 0 on the diagonal, never negative. Within 1e-8 relative of direct evaluation for float32 input, and for
    float64 input where l_i - l_j varies by more than about 1e-6 nats a text; below that rounding shows (5e-8 at 1e-7
    nats, 1e-6 at 1e-9, for texts of 1,000 nats and more). Arguments, result and errors are those of `kl_divergence`;
    ``previous`` holds standard errors, not the KL.
    """
    return _all_pairs(KL_STANDARD_ERROR, log_likelihood, text_bytes, tile, previous, threads)


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


def projected_memory_bytes(
    n_models: int, n_texts: int, tile: int = TILE, threads: int = 1, *, itemsize: int = 4
) -> int:
    """Bytes that computing and writing both matrices holds at most, in ``threads`` threads that write tiles as they go.

    The input stays in memory once (K N itemsize: every row block is needed by many tiles), the K x K output does not.
    """
    side = -(-min(tile, n_models) // tiles.ROWS) * tiles.ROWS
    operands = 2 * 3 * side * tiles.TEXTS * 8  # x, x^2, x^3 of both sides
    direct = 3 * max(tiles.DIRECT_VALUES, n_texts) * 8
    sums = 5 * side * side * 8  # two sums of products, the tile cut out of them, blocks on their way
    waiting = 2 * side * side * 8  # finished tiles that the writer has not taken yet
    loading = 2 * min(tile, n_models) * n_texts * itemsize  # a row block put together from the chunks it is stored in
    tasks = 2 * (-(-n_models // tile)) ** 2 * 8192  # the graph of both matrices
    return n_models * n_texts * itemsize + tasks + threads * (operands + direct + sums + waiting + loading)


def _all_pairs(
    quantity: Quantity, log_likelihood: Any, text_bytes: Any, tile: int, previous: Any, threads: int | None
) -> Any:
    if tile < 1:
        raise KlrayError(f"tile needs at least 1 model, it is {tile}: choose for example tile={TILE}")
    if isinstance(log_likelihood, xr.DataArray):
        labelled = model_by_text(log_likelihood)
        return _labelled(quantity, labelled, _all_pairs(quantity, labelled.data, text_bytes, tile, previous, threads))
    rows = checked(log_likelihood, rows_per_chunk=tile)
    n_models, n_texts = rows.shape
    scale = kl_per_variance(mean_text_bytes(text_bytes, n_texts))
    known = previous.data if isinstance(previous, xr.DataArray) else previous
    known = np.empty((0, 0)) if known is None else known
    if known.ndim != 2 or known.shape[0] != known.shape[1] or known.shape[0] > n_models:
        raise KlrayError(
            f"previous needs the shape (P, P) with P <= {n_models}, the first P models of log_likelihood, it has "
            f"{known.shape}: pass the matrix of an earlier state of the same models, or None"
        )
    if isinstance(rows, da.Array):
        return _dask_pairs(quantity, rows, scale, tile, da.asarray(known))
    return _numpy_pairs(quantity, rows, scale, tile, np.asarray(known), threads or CPU_COUNT)


def _numpy_pairs(
    quantity: Quantity, rows: np.ndarray, scale: float, tile: int, known: np.ndarray, threads: int
) -> np.ndarray:
    n_models = len(rows)
    result = np.empty((n_models, n_models))
    # about 8 tiles on a side, so that threads can share them, of at least 256: smaller ones are centred too often
    tile = min(tile, max(256, n_models // (8 * tiles.ROWS) * tiles.ROWS))

    def fill(i: int, j: int) -> None:
        first, second = slice(i, i + tile), slice(j, j + tile)
        others = None if i == j else rows[second]
        block = _tile(quantity, scale, rows[first], others, known[first, second])
        result[first, second] = block
        result[second, first] = block.T

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        starts = range(0, n_models, tile)
        for done in [pool.submit(fill, i, j) for i in starts for j in starts if i <= j]:
            done.result()
    return result


def _dask_pairs(quantity: Quantity, rows: da.Array, scale: float, tile: int, known: da.Array) -> da.Array:
    known = known.rechunk((tile, tile))
    name = f"{quantity.name}-{tokenize(quantity.name, rows.name, known.name, scale, tile)}"
    sizes, known_sizes = rows.chunks[0], known.chunks[0] if known.size else ()
    layer: dict[Any, Any] = {}
    for i in range(len(sizes)):
        for j in range(i, len(sizes)):
            before = (known.name, i, j) if j < len(known_sizes) else None
            if before and known_sizes[j] == sizes[j]:
                layer[(name, i, j)] = before
            else:
                others = None if i == j else (rows.name, j, 0)
                layer[(name, i, j)] = (_tile, quantity, scale, (rows.name, i, 0), others, before)
            if i < j:
                layer[(name, j, i)] = (np.transpose, (name, i, j))
    graph = HighLevelGraph.from_collections(name, layer, dependencies=[rows, known])
    return da.Array(graph, name, chunks=(sizes, sizes), dtype=np.float64, meta=np.empty((0, 0)))


def _tile(
    quantity: Quantity, scale: float, rows: np.ndarray, others: np.ndarray | None, known: np.ndarray | None
) -> np.ndarray:
    """(I, J) values of one tile; ``known`` (I' <= I, J' <= J), its first models, is copied and the rest computed."""
    # tiles have threads already; those of BLAS beside them wait for each other in every product, which made all pairs
    # of 3,000 models three to six times slower on two busy cores
    with threadpool_limits(1, user_api="blas"):
        if known is None or known.size == 0:
            block = quantity.tile(rows, others)
            block *= scale
            return block
        n, m = known.shape
        partners = rows if others is None else others
        block = np.zeros((len(rows), len(partners)))
        if m < len(partners):
            block[:n, m:] = quantity.tile(rows[:n], partners[m:])
        if n < len(rows) and others is None:
            block[n:, :n] = block[:n, n:].T
            block[n:, n:] = quantity.tile(rows[n:])
        elif n < len(rows):
            block[n:] = quantity.tile(rows[n:], others)
        block *= scale
        block[:n, :m] = known
        return block


def _labelled(quantity: Quantity, labelled: xr.DataArray, values: Any) -> xr.DataArray:
    coordinates = {name: c for name, c in labelled.coords.items() if c.dims in {(), ("model",)}}
    if "model" in coordinates:
        coordinates["other"] = xr.DataArray(coordinates["model"].values, dims="other", attrs=coordinates["model"].attrs)
    attributes = {"units": "bit/byte", "long_name": quantity.long_name, "references": "arXiv:2505.15353"}
    return xr.DataArray(values, coordinates, ("model", "other"), quantity.name, attributes)
