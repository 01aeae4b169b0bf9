"""Double-centring of the log-likelihood matrix, and the checks that every analysis makes of it.

Shapes: K = models (rows), N = texts (columns). Values are nats per text.
"""

from typing import Any, TypeVar

import dask.array as da
import numpy as np
import xarray as xr

from klray.errors import KlrayError
from klray.words.numbers import counted

Values = TypeVar("Values")  # the kind of array that comes in goes out: NumPy, Dask or xarray


def double_center(log_likelihood: Values) -> Values:
    """Subtract each model's mean over texts, then each text's mean over models: Q of arXiv:2505.15353, section 2.

    ``log_likelihood``, NumPy, Dask or xarray (dims model, text), is (K, N) nats: at least one model and two texts, all
    finite. Returned are (K, N) float64, nats, of the same kind (Dask stays lazy). KlrayError: wrong shape or kind of
    numbers at once; a value that is not finite at once for NumPy, when computed for Dask.
    """
    if isinstance(log_likelihood, xr.DataArray):
        labelled = model_by_text(log_likelihood)
        centered: Any = labelled.copy(data=double_center(labelled.data)).rename("double_centered")
        centered.attrs = {
            "long_name": "log-likelihood centred by model and by text",
            "units": "nat",
            "references": "arXiv:2505.15353",
        }
        return centered
    values: Any = checked(log_likelihood).astype(np.float64)
    values -= values.mean(axis=1, keepdims=True)
    values -= values.mean(axis=0, keepdims=True)
    centered_values: Values = values
    return centered_values


def model_by_text(log_likelihood: xr.DataArray) -> xr.DataArray:
    """The labelled matrix with its dimensions in the order (model, text); KlrayError when they are others."""
    if set(log_likelihood.dims) != {"model", "text"}:
        raise KlrayError(
            f"log_likelihood needs the dimensions ('model', 'text'), it has {tuple(log_likelihood.dims)}: "
            "rename or select so that one row is one model, for example .isel(layer=-1)"
        )
    return log_likelihood.transpose("model", "text")


def checked(log_likelihood: Any, rows_per_chunk: int | str = "auto") -> Any:
    """The (K, N) matrix as C-contiguous float32 or float64, refused where it is not a matrix of finite reals.

    NumPy is looked at now. A Dask array comes back in chunks of ``rows_per_chunk`` models and all texts, and is looked
    at chunk by chunk when it is computed.
    """
    matrix = log_likelihood if isinstance(log_likelihood, da.Array) else np.asarray(log_likelihood)
    if matrix.ndim != 2:
        raise KlrayError(
            f"log_likelihood needs the shape (models, texts), it has {matrix.shape}: pass one row for each model"
        )
    if matrix.shape[0] < 1 or matrix.shape[1] < 2:
        raise KlrayError(
            "log_likelihood needs at least 1 model and 2 texts (a variance over texts is taken), "
            f"it has {counted(matrix.shape[0], 'model')} and {counted(matrix.shape[1], 'text')}: score more texts"
        )
    if matrix.dtype.kind not in "fiu":
        raise KlrayError(f"log_likelihood needs real numbers, nats, it has dtype {matrix.dtype}: convert it to float64")
    dtype = np.float32 if matrix.dtype == np.float32 else np.float64
    if isinstance(matrix, da.Array):
        rows = matrix.rechunk({0: rows_per_chunk, 1: -1})
        return rows.map_blocks(_finite_block, dtype=dtype, meta=np.empty((0, 0), dtype))
    return _finite_block(matrix)


def _finite_block(block: np.ndarray, block_info: Any = None) -> np.ndarray:
    """A block that is finite, C-contiguous, and of Dask no view: a view would keep the larger chunk it was cut from."""
    block = np.ascontiguousarray(block, dtype=np.float32 if block.dtype == np.float32 else np.float64)
    if block_info and block.base is not None:
        block = block.copy()
    finite_rows = np.isfinite(block).all(axis=1)
    if not finite_rows.all():
        first_row = block_info[0]["array-location"][0][0] if block_info else 0
        row = int(np.argmin(finite_rows))
        column = int(np.argmin(np.isfinite(block[row])))
        raise KlrayError(
            f"log_likelihood needs finite values, model {first_row + row} has {block[row, column]} at text {column} "
            f"({int((~finite_rows).sum())} such models in this block): score them again or leave them out"
        )
    return block
