"""Maps: distances that are KL, exact components, deterministic t-SNE."""

from __future__ import annotations

import subprocess
import sys

import dask.array as da
import numpy as np
import pytest

from klray.analysis import embedding
from klray.analysis.embedding import map_coordinates, pca, tsne
from klray.analysis.kl.all_pairs import kl_divergence
from klray.analysis.kl.centering import double_center


def matrix(n_models: int = 12, n_texts: int = 40) -> np.ndarray:
    rng = np.random.default_rng(2)
    return (
        -rng.gamma(4.0, 250.0, n_texts) + rng.normal(size=(n_models, n_texts)) * np.linspace(1, 40, n_models)[:, None]
    )


def squared_distances(points: np.ndarray) -> np.ndarray:
    return ((points[:, None] - points[None]) ** 2).sum(axis=-1)


def test_squared_map_distances_are_kl() -> None:
    values, sizes = matrix(), np.random.default_rng(0).integers(257, 1025, 40)
    coordinates = map_coordinates(double_center(values), sizes.mean())
    np.testing.assert_allclose(squared_distances(coordinates), kl_divergence(values, sizes), rtol=1e-9, atol=1e-15)
    whole = pca(coordinates, 12).scores
    np.testing.assert_allclose(squared_distances(whole), kl_divergence(values, sizes), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (9, 9)])
@pytest.mark.parametrize("iterated", [False, True])
@pytest.mark.parametrize("lazy", [False, True])
def test_components_are_those_of_the_singular_value_decomposition(
    shape: tuple[int, int], iterated: bool, lazy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinates = matrix(*shape)
    if iterated:
        monkeypatch.setattr(embedding, "EXACT_RANK", 4)
    found = pca(da.from_array(coordinates, chunks=(5, -1)) if lazy else coordinates, 3)
    centered = coordinates - coordinates.mean(axis=0)
    left, singular, _ = np.linalg.svd(centered, full_matrices=False)
    expected = (left * singular)[:, :3]
    expected *= np.sign(expected[np.argmax(np.abs(expected), axis=0), range(3)])
    np.testing.assert_allclose(found.scores, expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(found.explained, singular[:3] ** 2 / (singular**2).sum(), rtol=1e-8)
    assert (found.scores[np.argmax(np.abs(found.scores), axis=0), range(3)] > 0).all()


def test_iteration_takes_few_directions_of_many() -> None:
    """Sixty directions, of which eleven are iterated: convergence is by the gap, not by completeness."""
    coordinates = matrix(80, 60) @ np.diag(0.9 ** np.arange(60))
    centered = coordinates - coordinates.mean(axis=0)
    values, _ = embedding._iterated(da.from_array(centered, chunks=(17, -1)), 3)
    np.testing.assert_allclose(values, np.linalg.svd(centered, compute_uv=False)[:3] ** 2, rtol=1e-8)


def test_components_beyond_the_rank_are_zero() -> None:
    found = pca(np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]]), 4)
    np.testing.assert_allclose(np.abs(found.scores[:, 0]), np.sqrt(0.5))
    np.testing.assert_array_equal(found.scores[:, 1:], 0.0)
    np.testing.assert_array_equal(pca(np.ones((1, 5)), 2).scores, [[0.0, 0.0]])


def test_the_order_of_models_does_not_turn_the_map() -> None:
    coordinates = matrix()
    order = np.random.default_rng(0).permutation(len(coordinates))
    np.testing.assert_allclose(pca(coordinates[order], 2).scores, pca(coordinates, 2).scores[order], atol=1e-8)


def test_tsne_is_repeatable_and_keeps_neighbours_together() -> None:
    groups = np.repeat([[0.0] * 10, [50.0] * 10, [-50.0] * 10], 12, axis=0)
    coordinates = groups + np.random.default_rng(0).normal(size=groups.shape)
    once, again = tsne(coordinates, perplexity=8), tsne(coordinates, perplexity=8)
    np.testing.assert_array_equal(once.points, again.points)
    assert once.perplexity == 8
    distances = squared_distances(once.points)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(np.argmin(distances, axis=1) // 12, np.arange(36) // 12)


def test_perplexity_is_lowered_for_few_models() -> None:
    assert tsne(matrix(10), perplexity=30).perplexity == 3.0
    few = tsne(matrix(3))
    assert np.isnan(few.points).all()
    assert few.points.shape == (3, 2)


@pytest.mark.slow
def test_tsne_of_models_at_one_place_or_nearly_so() -> None:
    """In a process of its own, which scikit-learn would end."""
    code = (
        "import numpy as np; from klray.analysis.embedding import tsne\n"
        "for scale in (0.0, 1e-160, 1e-30, 1e30, 1e100):\n"
        "    points = tsne(np.random.default_rng(0).normal(size=(40, 3)) * scale).points\n"
        "    print(np.isfinite(points).all(), np.ptp(points) > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.splitlines()) == (0, ["True False", *["True True"] * 4]), done.stderr
