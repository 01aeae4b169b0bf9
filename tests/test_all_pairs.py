"""All-pairs KL and its standard error: against an independent evaluation pair by pair, and their laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from klray.analysis.kl import tiles
from klray.analysis.kl.all_pairs import kl_divergence, kl_standard_error, paired_standard_error
from klray.errors import KlrayError
from tests.examples import examples
from tests.kl_matrices import BOTH, KINDS, N, kl_of_pair, matrix, standard_error_of_pair, text_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_agrees_with_an_independent_evaluation(kind: str) -> None:
    values, sizes = matrix(kind), text_bytes()
    kl, standard_error = kl_divergence(values, sizes), kl_standard_error(values, sizes)
    for i in range(len(values)):
        for j in range(i + 1, len(values)):
            assert kl[i, j] == pytest.approx(kl_of_pair(values[i], values[j], sizes), rel=1e-10, abs=0)
            expected = standard_error_of_pair(values[i], values[j], sizes)
            assert standard_error[i, j] == pytest.approx(expected, rel=1e-8, abs=0)
    for found in (kl, standard_error):
        assert found.dtype == np.float64
        np.testing.assert_array_equal(np.diagonal(found), 0.0)
        np.testing.assert_array_equal(found, found.T)
        assert (found >= 0).all()


def test_both_ways_of_evaluation_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kinds of matrices above mean something only if some pairs cancel and some do not."""
    counted: list[int] = []
    original = tiles.paired

    def counting(*arguments: Any) -> np.ndarray:
        counted.append(len(arguments[3]))
        return original(*arguments)

    monkeypatch.setattr(tiles, "paired", counting)
    for kernel in (tiles.variance, tiles.variances):
        counted.clear()
        kernel(matrix("every scale"))
        assert 30 < sum(counted) < 30 * 29 // 2 - 30


def test_subtracting_the_mean_row_spares_standard_errors_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    original = tiles.paired
    monkeypatch.setattr(tiles, "paired", lambda *given: counted.append(len(given[3])) or original(*given))
    tiles.variances(matrix("trajectory"))
    assert sum(counted) < 0.1 * 30 * 29 / 2


@BOTH
def test_identical_models_are_exactly_zero_apart(quantity: Callable) -> None:
    values = matrix("independent", 4)
    values = np.concatenate([values, values, values + 64.0])
    found = quantity(values, text_bytes())
    np.testing.assert_array_equal(found[:4, 4:8][np.eye(4, dtype=bool)], 0.0)
    assert found[:4, 8:][np.eye(4, dtype=bool)].max() < 1e-20  # a constant for all texts is no difference


def test_two_texts_have_no_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=(5, 2)) * 300
    kl = kl_divergence(values, np.array([300, 500]))
    expected = [[kl_of_pair(a, b, np.array([300, 500])) for b in values] for a in values]
    np.testing.assert_allclose(kl, expected, rtol=1e-10)
    assert (kl_standard_error(values, np.array([300, 500])) <= 1e-8 * kl).all()


def test_standard_error_where_all_differences_have_one_size() -> None:
    rng = np.random.default_rng(0)
    values = np.zeros((2, N))
    values[1] = np.where(rng.random(N) < 0.5, -1.0, 1.0) + 1e-3 * rng.normal(size=N)
    expected = standard_error_of_pair(values[0], values[1], text_bytes())
    assert kl_standard_error(values, text_bytes())[0, 1] == pytest.approx(expected, rel=1e-8)


def test_standard_error_is_that_of_resampled_texts() -> None:
    values, sizes = matrix("trajectory", 2), np.full(N, 700)
    rng = np.random.default_rng(1)
    resampled = [kl_of_pair(*values[:, rng.integers(0, N, N)], sizes) for _ in range(2000)]
    assert kl_standard_error(values, sizes)[0, 1] == pytest.approx(np.std(resampled), rel=0.08)


def test_standard_error_by_pairs_is_that_of_the_matrix() -> None:
    values, sizes = matrix("trajectory"), text_bytes()
    found = paired_standard_error(values[:-1], values[1:], sizes)
    np.testing.assert_allclose(found, np.diagonal(kl_standard_error(values, sizes), 1), rtol=1e-8)


MATRICES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(2, 12)),
    elements=st.integers(-5000, 0).map(float),
)


@examples(20)
@given(MATRICES, st.integers(-1000, 1000), st.integers(-1000, 1000))
def test_shifting_a_model_or_a_text_changes_nothing(values: np.ndarray, by_model: int, by_text: int) -> None:
    sizes = np.full(values.shape[1], 600)
    shifted = values.copy()
    shifted[0] += by_model
    shifted[:, 0] += by_text
    for quantity in (kl_divergence, kl_standard_error):
        np.testing.assert_allclose(quantity(shifted, sizes), quantity(values, sizes), rtol=1e-7, atol=1e-9)


@examples(20)
@given(MATRICES, st.integers(1, 1000))
def test_bits_per_byte_go_with_one_over_bytes(values: np.ndarray, size: int) -> None:
    once, twice = np.full(values.shape[1], size), np.full(values.shape[1], 2 * size)
    for quantity in (kl_divergence, kl_standard_error):
        np.testing.assert_array_equal(quantity(values, once), 2 * quantity(values, twice))


@examples(20)
@given(MATRICES)
def test_the_root_of_kl_is_a_distance(values: np.ndarray) -> None:
    root = np.sqrt(kl_divergence(values, np.full(values.shape[1], 600)))
    assert (root >= 0).all()
    assert (np.diagonal(root) == 0).all()
    assert (root == root.T).all()
    detours = root[:, :, None] + root[None]
    assert (root[:, None, :] <= detours * (1 + 1e-9) + 1e-9).all()


@examples(20)
@given(MATRICES, st.randoms(use_true_random=False))
def test_reordering_models_or_texts_reorders_the_result(values: np.ndarray, random: Any) -> None:
    models, texts = list(range(values.shape[0])), list(range(values.shape[1]))
    random.shuffle(models)
    random.shuffle(texts)
    sizes = np.arange(1, values.shape[1] + 1)
    for quantity in (kl_divergence, kl_standard_error):
        found = quantity(values[np.ix_(models, texts)], sizes[texts])
        np.testing.assert_allclose(found, quantity(values, sizes)[np.ix_(models, models)], rtol=1e-7, atol=1e-9)


@BOTH
@pytest.mark.parametrize(
    ("values", "sizes", "words"),
    [
        (np.zeros(4), np.ones(4), r"\(models, texts\), .* \(4,\)"),
        (np.zeros((3, 1)), np.ones(1), "2 texts .*3 models and 1 text:"),
        (
            np.zeros((3, 4)),
            np.ones(5),
            r"text_bytes .*\(4,\).* \(5,\)",
        ),
        (np.zeros((3, 4)), 700.0, r"text_bytes .*\(4,\).* \(\)"),
        (
            np.zeros((3, 4)),
            np.array([1, 2, 0, 3]),
            "bytes, it has 0 at text 2",
        ),
        (np.zeros((3, 4)), np.array([1, np.nan, 1, 3]), "bytes, it has nan at text 1"),
        (np.zeros((3, 4)), np.array(list("abcd")), "bytes, it has dtype <U1"),
        (np.array([[0.0, 1.0], [np.inf, 0.0]]), np.ones(2), "model 1 has inf at text 0"),
        (np.zeros((2, 2), dtype=complex), np.ones(2), "real numbers, .* complex128"),
        (xr.DataArray(np.zeros((2, 2)), dims=("a", "text")), np.ones(2), r"dimensions \('model', 'text'\)"),
    ],
)
def test_what_has_no_divergence_is_refused(quantity: Callable, values: Any, sizes: Any, words: str) -> None:
    with pytest.raises(KlrayError, match=words):
        quantity(values, sizes)


@BOTH
def test_wrong_tiles_and_previous_results_are_refused(quantity: Callable) -> None:
    values, sizes = np.zeros((3, 4)), np.ones(4)
    with pytest.raises(KlrayError, match="tile needs at least 1 model, it is 0"):
        quantity(values, sizes, tile=0)
    with pytest.raises(KlrayError, match=r"previous .*P <= 3.* \(4, 4\)"):
        quantity(values, sizes, previous=np.zeros((4, 4)))
    with pytest.raises(KlrayError, match=r"\(2, 3\): pass the matrix of an earlier"):
        quantity(values, sizes, previous=np.zeros((2, 3)))


def test_dask_refuses_what_is_not_finite_when_computed() -> None:
    values = np.zeros((20, 4))
    values[13, 3] = np.nan
    lazy = kl_divergence(da.from_array(values, chunks=(6, 2)), np.ones(4), tile=5)
    with pytest.raises(KlrayError, match="model 13 has nan at text 3"):
        lazy.compute()
