"""Double-centring: its laws, its kinds of arrays, its refusals."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from klray.analysis.kl.centering import double_center
from klray.errors import KlrayError

MATRICES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 7), st.integers(2, 9)),
    elements=st.integers(-5000, 0).map(float),
)


@given(MATRICES)
def test_all_means_are_zero(values: np.ndarray) -> None:
    centered = double_center(values)
    assert centered.shape == values.shape
    np.testing.assert_allclose(centered.mean(axis=0), 0.0, atol=1e-11)
    np.testing.assert_allclose(centered.mean(axis=1), 0.0, atol=1e-11)


@given(MATRICES, st.integers(-1000, 1000), st.integers(-1000, 1000))
def test_shifting_a_model_or_a_text_changes_nothing(values: np.ndarray, by_model: int, by_text: int) -> None:
    shifted = values.copy()
    shifted[0] += by_model
    shifted[:, 0] += by_text
    np.testing.assert_allclose(double_center(shifted), double_center(values), atol=1e-10)


@given(MATRICES)
def test_centring_twice_is_centring_once(values: np.ndarray) -> None:
    np.testing.assert_allclose(double_center(double_center(values)), double_center(values), atol=1e-11)


@pytest.mark.parametrize("chunks", [(3, 5), (1, -1), (-1, 2), ((4, 1, 6), (13, 7))])
def test_dask_stays_lazy_and_agrees(chunks: tuple) -> None:
    values = np.random.default_rng(0).normal(-900, 300, (11, 20)).astype(np.float32)
    lazy = double_center(da.from_array(values, chunks=chunks))
    assert isinstance(lazy, da.Array)
    assert lazy.dtype == np.float64
    np.testing.assert_allclose(lazy.compute(), double_center(values), rtol=0, atol=1e-10)


def test_input_is_left_alone() -> None:
    values = np.random.default_rng(0).normal(-900, 300, (4, 6))
    before = values.copy()
    double_center(values)
    np.testing.assert_array_equal(values, before)


def test_xarray_keeps_its_coordinates() -> None:
    values = np.random.default_rng(0).normal(-900, 300, (20, 3))
    data = xr.DataArray(values, {"text": np.arange(20), "model": ["a", "b", "c"]}, ("text", "model"))
    centered = double_center(data)
    assert centered.dims == ("model", "text")
    assert list(centered["model"].values) == ["a", "b", "c"]
    assert centered.attrs["units"] == "nat"
    np.testing.assert_array_equal(centered.values, double_center(values.T))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros(5), r"\(models, texts\), .* \(5,\): pass"),
        (np.zeros((3, 1)), "2 texts .* 3 models and 1 text: score"),
        (np.zeros((0, 4)), "it has 0 models and 4 texts"),
        (np.array([["a", "b"]]), "dtype <U1: convert it to float64"),
        (np.array([[1.0, 2.0], [3.0, np.nan]]), "model 1 has nan at text 1 .* leave"),
        (
            xr.DataArray(np.zeros((2, 3)), dims=("run", "text")),
            r"\('model', 'text'\), .* \('run', 'text'\)",
        ),
    ],
)
def test_what_cannot_be_centred_is_refused(values: object, words: str) -> None:
    with pytest.raises(KlrayError, match=words):
        double_center(values)


def test_dask_names_the_model_that_is_not_finite() -> None:
    values = np.zeros((9, 4))
    values[7, 2] = np.inf
    lazy = double_center(da.from_array(values, chunks=(4, 2)))
    with pytest.raises(KlrayError, match="model 7 has inf at text 2"):
        lazy.compute()
