"""The nearest models without a matrix of all pairs: those of the matrix, in the same order, with their errors."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from klray.analysis.kl.all_pairs import kl_divergence, kl_standard_error
from klray.analysis.kl.neighbours import nearest
from tests.kl_matrices import KINDS, matrix, text_bytes


def labelled(values: np.ndarray, chunk: int = 7) -> xr.DataArray:
    return xr.DataArray(da.from_array(values, chunks=(chunk, -1)), dims=("model", "text"))


@pytest.mark.parametrize(
    ("kind", "tile", "room"), [*((kind, 8, None) for kind in KINDS), ("trajectory", 5, 4), ("trajectory", 64, None)]
)
def test_neighbours_are_the_smallest_of_the_matrix(kind: str, tile: int, room: int | None) -> None:
    values, sizes = matrix(kind), text_bytes()
    found = nearest(labelled(values), sizes, 6, reference=values[11], tile=tile, room=room)
    kl, error = kl_divergence(values, sizes), kl_standard_error(values, sizes)
    np.fill_diagonal(kl, np.inf)
    expected = np.argsort(kl, axis=1, kind="stable")[:, :6]
    np.testing.assert_array_equal(found.position, expected)
    np.testing.assert_allclose(found.kl, np.take_along_axis(kl, expected, axis=1), rtol=1e-9)
    np.testing.assert_allclose(found.standard_error, np.take_along_axis(error, expected, axis=1), rtol=1e-7)


def test_of_equally_near_models_the_first_are_named() -> None:
    values = np.repeat(matrix("independent", 3), 5, axis=0)
    found = nearest(labelled(values), text_bytes(), 3, reference=values[0], tile=4)
    for model, row in enumerate(found.position):
        group = [each for each in range(model // 5 * 5, model // 5 * 5 + 5) if each != model]
        assert row.tolist() == group[:3]
    np.testing.assert_array_equal(found.kl, 0.0)


def test_fewer_models_than_neighbours_leave_places_empty() -> None:
    values = matrix("trajectory", 3)
    found = nearest(labelled(values), text_bytes(), 5, reference=values[0], tile=2)
    assert (found.position >= 0).sum(axis=1).tolist() == [2, 2, 2]
    assert np.isnan(found.kl[:, 2:]).all()
    assert np.isnan(found.standard_error[:, 2:]).all()
    assert found.position[0].tolist() == [1, 2, -1, -1, -1]
