"""The reference: the model whose row is subtracted from all before products are summed, so that fewer pairs cancel.

Shapes: K = models, N = texts. It cancels in every difference of two rows, so no KL depends on it but in the last bits.
"""

import dask.array as da
import numpy as np


def central(values: da.Array, included: np.ndarray) -> int:
    """The position among the ``included`` (positions) of (K, N) nats, Dask, that is nearest to their mean row.

    Each row less its mean over texts; two passes over the values.
    """
    rows = values[included].astype(np.float64)
    centered = rows - rows.mean(axis=1, keepdims=True)
    mean = centered.mean(axis=0).compute()
    return int(included[int(((centered - mean) ** 2).sum(axis=1).argmin().compute())])


def position(name: str, names: list[tuple[str, str, str]]) -> int:
    """Where the model with this key or label stands; the first one, which never changes, where it is not there."""
    return next((at for at, (label, key, _) in enumerate(names) if name and name in (key, label)), 0)
