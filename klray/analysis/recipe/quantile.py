"""The exact quantile of an array that need not fit in memory."""

import dask.array as da
import numpy as np

from klray.errors import KlrayError

_DIGIT_BITS = 16  # of a value that one pass settles, with 65,536 counters for each block
_AT_ONCE = 2**18  # values of a block while they are counted: 2 MB of keys, not a multiple of the block


class NotFiniteError(KlrayError):
    """A value is NaN or infinite: there is no order."""


def lower_quantile(values: da.Array, quantile: float) -> float:
    """The value of rank floor(quantile (n - 1)) among all n, as ``np.quantile(values, quantile, method="lower")``.

    Floats in their order are unsigned integers in theirs, so counting 16 bits of them at a time finds the value in 2
    passes (float32) or 4 (float64). ``values`` are (rows, columns), columns in one chunk; NotFiniteError where one is
    not finite.
    """
    bits = 8 * values.dtype.itemsize
    rank = int(np.floor((values.size - 1) * quantile))
    prefix = 0
    for shift in range(bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
        counted = values.map_blocks(
            _digit_counts, prefix, shift, chunks=((1,) * values.numblocks[0], (2**_DIGIT_BITS,)), dtype=np.int64
        )
        cumulative = np.cumsum(counted.sum(axis=0).compute())
        digit = int(np.searchsorted(cumulative, rank, side="right"))
        rank -= int(cumulative[digit - 1]) if digit else 0
        prefix = prefix << _DIGIT_BITS | digit
    sign = 1 << (bits - 1)
    unsigned = prefix & ~sign if prefix & sign else ~prefix & (2 * sign - 1)
    return float(np.array([unsigned], dtype=f"u{bits // 8}").view(values.dtype)[0])


def _digit_counts(block: np.ndarray, prefix: int, shift: int) -> np.ndarray:
    """(1, 65536) how often each 16-bit digit at ``shift`` follows ``prefix`` in the ordered integers of a block."""
    if not np.isfinite(block).all():
        raise NotFiniteError(f"{int((~np.isfinite(block)).sum()):,} values are not finite")
    counts = np.zeros(2**_DIGIT_BITS, dtype=np.int64)
    flat = np.ascontiguousarray(block).view(f"u{block.dtype.itemsize}").ravel()
    sign = flat.dtype.type(1 << (8 * block.dtype.itemsize - 1))
    for start in range(0, flat.size, _AT_ONCE):
        piece = flat[start : start + _AT_ONCE]
        digits = np.where(piece & sign, ~piece, piece | sign).astype(np.uint64) >> np.uint64(shift)
        digits = digits[digits >> np.uint64(_DIGIT_BITS) == prefix]
        counts += np.bincount((digits & np.uint64(2**_DIGIT_BITS - 1)).astype(np.intp), minlength=2**_DIGIT_BITS)
    return counts[None, :]
