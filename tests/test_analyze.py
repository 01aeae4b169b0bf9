"""The analysis "trajectory", end to end: every variable against its definition, growth of the store, memory."""

from __future__ import annotations

import json
import tracemalloc
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

from klray.analysis.analyze import analyze, projected_analysis
from klray.analysis.diffusion import diffusion_exponent
from klray.analysis.pairs import chosen
from klray.analysis.recipe import Recipe
from klray.errors import KlrayError
from tests.snapshot_data import TEXT_SET, rows_of, snapshot

EXCLUDED = ["pythia-1b@step9000", "else/model-1@*"]
RUNS = ("org/pythia-70m", "org/pythia-1b")
VARIABLES = {
    "kl",
    "kl_standard_error",
    "relative",
    "relative_kl",
    "relative_kl_standard_error",
    "consecutive_kl",
    "consecutive_kl_standard_error",
    "previous_step",
    "exponent_kl",
    "exponent_kl_r_squared",
    "exponent_weights",
    "exponent_weights_r_squared",
    "consecutive_weight_distance",
    "map_pca",
    "map_tsne",
    "text_kept",
    "excluded",
}


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return snapshot(RUNS)


@pytest.fixture(scope="module")
def result(data: xr.Dataset) -> xr.Dataset:
    """With a checkpoint in the middle of a run and a single model excluded."""
    return analyze(data, exclude=EXCLUDED, tile=20)


@pytest.fixture(scope="module")
def computed(result: xr.Dataset) -> xr.Dataset:
    return result.compute()


def write(dataset: xr.Dataset, place: Path) -> xr.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.to_zarr(place, mode="w", zarr_format=3, consolidated=True)
        return xr.open_zarr(place)


def direct_kl(values: np.ndarray, mean_bytes: float) -> np.ndarray:
    return np.array([np.var(values - row, axis=1) for row in values]) / (2 * mean_bytes * np.log(2))


def kept_values(data: xr.Dataset, result: xr.Dataset) -> np.ndarray:
    """The clipped values of the kept texts, by their definition."""
    recipe = json.loads(result.attrs["recipe"])
    return np.maximum(data["log_likelihood"].values.astype(float), recipe["clip_threshold"])[
        :, result["text_kept"].values
    ]


def test_the_result_has_what_is_promised(data: xr.Dataset, result: xr.Dataset) -> None:
    assert set(result.data_vars) == VARIABLES
    assert set(result.coords) == {*data.coords, "other"}
    for name in data.coords:
        np.testing.assert_array_equal(result[name].values, data[name].values)
    np.testing.assert_array_equal(result["other"].values, data["model"].values)
    n_models = data.sizes["model"]
    for name in ("kl", "kl_standard_error"):
        assert result[name].dims == ("model", "other")
        assert isinstance(result[name].data, da.Array)
        assert result[name].chunks == (((20, 20, 20, 7),) * 2)
        assert result[name].dtype == np.float64
    for name in VARIABLES - {"kl", "kl_standard_error"}:
        assert isinstance(result[name].data, np.ndarray)
        assert result[name].attrs["long_name"]
    assert result["map_pca"].shape == result["map_tsne"].shape == (n_models, 2)
    assert result["previous_step"].dtype == np.int64
    assert result["text_kept"].dtype == result["excluded"].dtype == bool
    for name in VARIABLES - {"text_kept", "excluded", "previous_step", "relative"}:
        assert "arXiv:2505.15353" in result[name].attrs["references"]
        assert result[name].attrs["units"]
    assert result.attrs["snapshot"] == data.attrs["snapshot"]
    assert result.attrs["text_set"] == TEXT_SET
    assert (result.attrs["window"], result.attrs["min_step"]) == (10, 1000)
    assert result.attrs["mean_bytes"] == data["text_bytes"].values[result["text_kept"].values].mean()
    assert Recipe.from_json(result.attrs["recipe"]).apply(data).sizes["text"] == result["text_kept"].values.sum()


def test_kl_is_that_of_the_clipped_kept_texts(data: xr.Dataset, computed: xr.Dataset) -> None:
    values = kept_values(data, computed)
    assert values.shape[1] == 194
    expected = direct_kl(values, computed.attrs["mean_bytes"])
    np.testing.assert_allclose(computed["kl"].values, expected, rtol=1e-10, atol=0)
    difference = values[3] - values[40]
    difference -= difference.mean()
    error = np.sqrt(((difference**4).mean() - (difference**2).mean() ** 2) / 194) / (
        2 * computed.attrs["mean_bytes"] * np.log(2)
    )
    assert computed["kl_standard_error"].values[3, 40] == pytest.approx(error, rel=1e-8)
    assert np.isfinite(computed["kl"].values).all(), "excluded models are present in kl"


def test_consecutive_kl_is_the_matrix_along_each_run(data: xr.Dataset, computed: xr.Dataset) -> None:
    out = computed["excluded"].values
    consecutive, seen = computed["consecutive_kl"].values, np.zeros(data.sizes["model"], dtype=bool)
    for run in RUNS:
        rows = rows_of(data, run)
        assert computed["previous_step"].values[rows[0]] == -1
        for earlier, later in pairwise(rows):
            assert computed["previous_step"].values[later] == data["step"].values[earlier]
            if not (out[earlier] or out[later]):
                seen[later] = True
                assert consecutive[later] == pytest.approx(computed["kl"].values[later, earlier], rel=1e-12)
                assert computed["consecutive_kl_standard_error"].values[later] == pytest.approx(
                    computed["kl_standard_error"].values[later, earlier], rel=1e-8
                )
    assert seen.sum() == 2 * 31 - 2
    assert np.isnan(consecutive[~seen]).all()
    assert np.isnan(computed["consecutive_kl_standard_error"].values[~seen]).all()
    assert (computed["previous_step"].values[data["run"].values == ""] == -1).all()


def test_exponents_are_those_of_each_run_without_excluded_checkpoints(data: xr.Dataset, computed: xr.Dataset) -> None:
    expected = np.full((2, data.sizes["model"]), np.nan)
    for run in RUNS:
        rows = rows_of(data, run)
        distances = computed["kl"].values[np.ix_(rows, rows)].copy()
        out = computed["excluded"].values[rows]
        distances[out] = np.nan
        distances[:, out] = np.nan
        expected[:, rows] = diffusion_exponent(data["step"].values[rows], distances)
    np.testing.assert_allclose(computed["exponent_kl"].values, expected[0], rtol=1e-9)
    np.testing.assert_allclose(computed["exponent_kl_r_squared"].values, expected[1], rtol=1e-9)
    assert np.isfinite(expected[0]).sum() == 20 + 19
    assert np.nanmean(expected[0]) == pytest.approx(1.0, abs=0.1), "random walks diffuse ordinarily"


def test_maps_show_included_models(data: xr.Dataset, computed: xr.Dataset) -> None:
    out = computed["excluded"].values
    assert sorted(str(label) for label in computed["model"].values[out]) == [
        "else/model-1@main",
        "org/pythia-1b@step9000",
    ]
    assert json.loads(computed.attrs["excluded_reasons"]) == {
        str(label): "excluded by hand" for label in computed["model"].values[out]
    }
    for name in ("map_pca", "map_tsne"):
        assert np.isnan(computed[name].values[out]).all()
        assert np.isfinite(computed[name].values[~out]).all()
    values = kept_values(data, computed)[~out]
    values -= values.mean(axis=1, keepdims=True)
    values -= values.mean(axis=0)
    left, singular, _ = np.linalg.svd(
        values / np.sqrt(2 * 194 * computed.attrs["mean_bytes"] * np.log(2)), full_matrices=False
    )
    np.testing.assert_allclose(
        np.abs(computed["map_pca"].values[~out]), np.abs(left * singular)[:, :2], rtol=1e-6, atol=1e-9
    )
    np.testing.assert_allclose(
        computed["map_pca"].attrs["explained_variance_ratio"], (singular**2 / (singular**2).sum())[:2], rtol=1e-8
    )
    assert computed["map_tsne"].attrs["perplexity"] == 64 / 3


def test_anomalies_are_reported_with_evidence(data: xr.Dataset, caplog: pytest.LogCaptureFixture) -> None:
    values = data["log_likelihood"].values.copy()
    place = rows_of(data, RUNS[0])[20]
    values[place] += np.random.default_rng(0).normal(size=values.shape[1]) * 80
    found = analyze(data.assign(log_likelihood=(("model", "text"), values)), tsne=False)
    assert "map_tsne" not in found
    (anomaly,) = json.loads(found.attrs["anomalies"])
    assert anomaly["model"] == str(data["model"].values[place])
    assert anomaly["kl_before"] == found["consecutive_kl"].values[place]
    assert anomaly["kl_before"] > 3 * anomaly["typical"] > 0
    assert anomaly["model"] in caplog.text
    assert not found["excluded"].values.any(), "reported, not removed"


def test_the_result_survives_zarr(result: xr.Dataset, tmp_path: Path) -> None:
    again = write(result, tmp_path / "result.zarr")
    for name in VARIABLES:
        np.testing.assert_array_equal(again[name].values, result[name].values)
    assert again["kl"].data.chunksize == (20, 20)
    assert again.attrs == result.attrs
    assert again["map_pca"].attrs == result["map_pca"].attrs


def test_models_without_runs_have_pairs_and_maps_only() -> None:
    found = analyze(snapshot(runs=(), singles=5))
    assert np.isfinite(found["kl"].values).all()
    assert np.isnan(found["exponent_kl"].values).all()
    assert np.isnan(found["consecutive_kl"].values).all()
    assert "all texts are kept" in json.loads(found.attrs["recipe"])["note"]


def test_all_models_excluded_by_a_frozen_recipe() -> None:
    recipe = Recipe.fit(snapshot(), exclude=["*@main"])
    found = analyze(snapshot(runs=(), singles=2), recipe=recipe)
    assert found["excluded"].values.all()
    assert np.isnan(found["map_pca"].values).all()
    assert np.isfinite(found["kl"].values).all()


# ---- a store that grows


def test_a_grown_store_keeps_its_pairs_to_the_bit(data: xr.Dataset, tmp_path: Path) -> None:
    earlier = data.isel(model=slice(0, 45))
    previous = write(analyze(earlier, tile=20), tmp_path / "previous.zarr")
    grown = analyze(data, previous=previous, tile=20)
    assert grown.attrs["recipe"] == previous.attrs["recipe"]
    anew = analyze(data, recipe=Recipe.from_json(previous.attrs["recipe"]), tile=20)
    for name, tolerance in (("kl", 1e-12), ("kl_standard_error", 1e-9)):
        np.testing.assert_array_equal(grown[name].values[:45, :45], previous[name].values)
        np.testing.assert_allclose(grown[name].values, anew[name].values, rtol=tolerance)
    for name in VARIABLES - {"kl", "kl_standard_error"}:
        np.testing.assert_array_equal(grown[name].values, anew[name].values)
    same = analyze(earlier, previous=previous, tile=20)
    np.testing.assert_array_equal(same["kl"].values, previous["kl"].values)


def test_what_is_no_earlier_state_is_refused(data: xr.Dataset) -> None:
    previous = analyze(data.isel(model=slice(0, 45)), tsne=False)
    with pytest.raises(KlrayError, match=r"previous result's 45 models .* 67: pass"):
        analyze(data.isel(model=slice(None, None, -1)), previous=previous)
    with pytest.raises(KlrayError, match=r"previous result's 45 models .* 30"):
        analyze(data.isel(model=slice(0, 30)), previous=previous)
    with pytest.raises(KlrayError, match=r"another recipe .* leave recipe out"):
        analyze(data, previous=previous, recipe=Recipe.fit(data, clip_quantile=0.1))
    with pytest.raises(KlrayError, match=r"text set 3f3f3f3f3f3f, .* 777777777777"):
        analyze(data.assign_attrs(text_set="7" * 64), previous=previous)


# ---- which pairs are kept


def test_neighbours_and_relatives_are_those_of_the_matrix(data: xr.Dataset, computed: xr.Dataset) -> None:
    found = analyze(data, exclude=EXCLUDED, pairs_kept="neighbours", n_neighbours=4, tile=20, tsne=False)
    assert not {"kl", "kl_standard_error"} & set(found.data_vars)
    included = ~found["excluded"].values
    kl = np.where(included[:, None] & included, computed["kl"].values, np.inf)
    np.fill_diagonal(kl, np.inf)
    expected = np.argsort(kl, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(found["neighbour"].values[included], expected[included])
    nearest = np.take_along_axis(kl, expected, axis=1)[included]
    np.testing.assert_allclose(found["neighbour_kl"].values[included], nearest, rtol=1e-9)
    assert (found["neighbour"].values[~included] == -1).all()
    assert np.isnan(found["neighbour_kl"].values[~included]).all()
    for name in VARIABLES - {"kl", "kl_standard_error", "map_tsne"}:
        np.testing.assert_array_equal(found[name].values, computed[name].values)


def test_without_pairs_of_all_models_those_of_runs_stay(data: xr.Dataset, computed: xr.Dataset) -> None:
    found = analyze(data, exclude=EXCLUDED, pairs_kept="runs", tsne=False)
    assert set(found.data_vars) == VARIABLES - {"kl", "kl_standard_error", "map_tsne"}
    np.testing.assert_array_equal(found["exponent_kl"].values, computed["exponent_kl"].values)


def test_the_number_of_models_says_which_pairs_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    assert chosen(None, 5_000) == "all"
    assert chosen(None, 5_001) == "neighbours"
    assert "5,001 models" in caplog.text
    assert chosen("all", 5_001) == "all"
    with pytest.raises(KlrayError, match=r"analysis\.pairs=some: choose one of all, neighbours, runs"):
        chosen("some", 3)
    with pytest.raises(KlrayError, match=r"analysis\.neighbours=0"):
        analyze(snapshot(RUNS), pairs_kept="neighbours", n_neighbours=0, tsne=False)


# ---- memory


def test_more_than_the_budget_is_refused_with_both_numbers(data: xr.Dataset) -> None:
    words = (
        r"of 67 models and 194 texts in tiles of 20 with 3 threads needs about 0\.0\d GiB, the budget is 0\.00 "
        r"GiB; set dask\.memory_limit=\.\.\. or analysis\.tile=\.\.\."
    )
    with pytest.raises(KlrayError, match=words):
        analyze(data, tile=20, memory_limit_bytes=2**20, threads=3)
    needed = projected_analysis(67, 194, 32, 3, chunk_models=67, tile=20).needed_bytes
    assert "kl" in analyze(data, tile=20, memory_limit_bytes=needed, threads=3, tsne=False)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_rows", [70, 1200])
def test_memory_of_the_whole_analysis_stays_below_the_projection(tmp_path: Path, chunk_rows: int) -> None:
    runs = tuple(f"org/run{i}" for i in range(12))
    data = write(snapshot(runs, singles=40, n_texts=1500, chunks=(chunk_rows, -1)), tmp_path / "snapshot.zarr")
    data.attrs["text_set"] = TEXT_SET
    n_models, longest = data.sizes["model"], 33
    analyze(data.isel(model=slice(0, 40)), tsne=False)  # what is imported and cached once is no part of the measure
    tracemalloc.start()
    try:
        with dask.config.set(scheduler="threads", num_workers=2):
            write(analyze(data, tile=128, tsne=False), tmp_path / "result.zarr")
        measured = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert measured <= projected_analysis(n_models, 1455, longest, 2, chunk_models=chunk_rows, tile=128).needed_bytes


def test_values_that_are_not_finite_are_refused(data: xr.Dataset) -> None:
    values: Any = data["log_likelihood"].values.copy()
    values[5, 3] = np.nan
    with pytest.raises(KlrayError, match="1 of 67 models have others"):
        analyze(data.assign(log_likelihood=(("model", "text"), values)))
