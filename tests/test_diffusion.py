"""Diffusion exponents against independent fits, and the laws of a regression in logarithms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klray.analysis.diffusion import diffusion_exponent, fractal_dimension
from klray.errors import KlrayError

STEPS = np.array([0, 1, 8, 64, 512, *range(1000, 31_000, 1000)])


def walk(seed: int, steps: np.ndarray = STEPS, n: int = 50) -> np.ndarray:
    """Squared distances (T, T) of a random walk."""
    rng = np.random.default_rng(seed)
    path = np.cumsum(rng.normal(size=(len(steps), n)) * np.sqrt(np.diff(steps, prepend=-1))[:, None], axis=0)
    return np.array([((path - point) ** 2).sum(axis=1) for point in path])


@pytest.mark.parametrize("window", [3, 10, 17])
@pytest.mark.parametrize("excluded", [(), (9,), (7, 8, 12, 13, 14, 15, 20)])
def test_each_window_agrees_with_an_independent_fit(window: int, excluded: tuple[int, ...]) -> None:
    distances = walk(window)
    distances[list(excluded)] = np.nan
    distances[:, list(excluded)] = np.nan
    exponent, r_squared = diffusion_exponent(STEPS, distances, window=window)
    fitted = 0
    for start, step in enumerate(STEPS):
        later = [t for t in range(start + 1, start + 1 + window) if t not in excluded]
        if step < 1000 or start + window >= len(STEPS) or start in excluded or len(later) < 3:
            assert np.isnan(exponent[start])
            assert np.isnan(r_squared[start])
            continue
        x, y = np.log(STEPS[later] - step), np.log(distances[start, later])
        design = np.stack([x, np.ones_like(x)], axis=1)
        (slope, intercept), *_ = np.linalg.lstsq(design, y, rcond=None)
        residual = ((y - slope * x - intercept) ** 2).sum()
        assert exponent[start] == pytest.approx(slope, rel=1e-12, abs=1e-13)
        assert r_squared[start] == pytest.approx(1 - residual / ((y - y.mean()) ** 2).sum(), rel=1e-12, abs=1e-12)
        assert exponent[start] == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-11)
        fitted += 1
    assert fitted > 5


@given(st.floats(0.05, 2.0), st.floats(1e-6, 1e6), st.sampled_from([1, 7, 1000]))
def test_a_power_law_gives_its_exponent(exponent: float, scale: float, unit: int) -> None:
    steps = unit * np.arange(1, 16)
    distances = scale * np.abs(steps[:, None] - steps[None]).astype(float) ** exponent
    found = diffusion_exponent(steps, distances, window=5, min_step=0)
    np.testing.assert_allclose(found.exponent[:10], exponent, rtol=1e-9)
    np.testing.assert_allclose(found.r_squared[:10], 1.0, rtol=1e-9)
    assert np.isnan(found.exponent[10:]).all()


@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_units_of_distance_do_not_matter(seed: int, scale: float) -> None:
    distances = walk(seed, n=5)
    np.testing.assert_allclose(
        diffusion_exponent(STEPS, distances).exponent, diffusion_exponent(STEPS, scale * distances).exponent, atol=1e-11
    )


def test_ordinary_diffusion_has_exponent_one_and_dimension_two() -> None:
    exponent = diffusion_exponent(np.arange(150), walk(1, np.arange(150), n=2000), min_step=0).exponent
    assert np.nanmean(exponent) == pytest.approx(1.0, abs=0.03)
    assert np.nanmean(fractal_dimension(exponent)) == pytest.approx(2.0, abs=0.1)


def test_identical_checkpoints_drop_out() -> None:
    steps = np.arange(1, 9) * 1000
    distances = np.abs(steps[:, None] - steps[None]).astype(float)
    distances[0, 3] = 0.0
    assert diffusion_exponent(steps, distances, window=5).exponent[0] == pytest.approx(1.0, rel=1e-12)


def test_constant_distances_have_no_r_squared() -> None:
    steps = np.arange(1, 6)
    found = diffusion_exponent(steps, np.ones((5, 5)), window=4, min_step=0)
    assert found.exponent[0] == 0.0
    assert np.isnan(found.r_squared[0])


def test_too_few_checkpoints_give_nan_of_the_same_length() -> None:
    found = diffusion_exponent([1000, 2000], np.ones((2, 2)))
    assert found.exponent.shape == found.r_squared.shape == (2,)
    assert np.isnan(found.exponent).all()
    assert diffusion_exponent([], np.empty((0, 0))).exponent.shape == (0,)


def test_fractal_dimension_needs_a_positive_exponent() -> None:
    np.testing.assert_array_equal(fractal_dimension([0.2, 1.0, 0.0, -0.5, np.nan]), [10.0, 2.0, np.nan, np.nan, np.nan])


@pytest.mark.parametrize(
    ("steps", "distances", "window", "words"),
    [
        ([1, 3, 3], np.ones((3, 3)), 10, r"\[1. 3. 3.\]: sort the checkpoints"),
        ([[1], [2]], np.ones((2, 2)), 10, "strictly increasing"),
        ([1, np.nan, 3], np.ones((3, 3)), 10, "strictly increasing"),
        ([1, 2, 3], np.ones((3, 2)), 10, r"\(3, 3\).* \(3, 2\): pass"),
        ([1, 2, 3], np.ones((3, 3)), 2, "window .*3 checkpoints .* it is 2"),
        ([1, 2, 3], -np.ones((3, 3)), 10, "smallest is -1: pass squared distances"),
    ],
)
def test_what_has_no_exponent_is_refused(steps: list, distances: np.ndarray, window: int, words: str) -> None:
    with pytest.raises(KlrayError, match=words):
        diffusion_exponent(steps, distances, window=window)
