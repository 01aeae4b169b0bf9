"""The exact quantile of more values than memory holds, against NumPy's."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from klray.analysis.recipe.quantile import NotFiniteError, lower_quantile
from tests.examples import examples


@examples(60)
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        st.tuples(st.integers(1, 9), st.integers(1, 5)),
        elements=st.floats(-(2.0**99), 2.0**99, width=32),
    ),
    st.one_of(st.sampled_from([0.0, 0.02, 0.5, 1.0]), st.floats(0, 1)),
    st.integers(1, 9),
)
def test_the_quantile_is_numpys_lower_one(values: np.ndarray, quantile: float, rows: int) -> None:
    lazy = da.from_array(values, chunks=(rows, -1))
    assert lower_quantile(lazy, quantile) == np.quantile(values, quantile, method="lower")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_quantile_of_many_close_values(dtype: type) -> None:
    """More values than are counted at a time, most of them equal in their first 16 bits."""
    values = np.random.default_rng(0).normal(-900, 0.1, (40, 9000)).astype(dtype)
    found = lower_quantile(da.from_array(values, chunks=(33, -1)), 0.02)
    assert found == np.quantile(values, 0.02, method="lower")


def test_the_quantile_refuses_what_is_not_finite() -> None:
    values = np.array([[1.0, np.nan], [np.inf, 2.0]])
    with pytest.raises(NotFiniteError, match="2 values are not finite"):
        lower_quantile(da.from_array(values), 0.5)
