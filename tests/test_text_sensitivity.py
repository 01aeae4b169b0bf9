"""How much a KL depends on the texts: parts against a plain evaluation, and texts for a wanted standard error."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import klray
from klray.analysis.recipe import Recipe
from klray.analysis.scale.measuring import measure_scale
from klray.analysis.scale.text_sensitivity import (
    SMALLEST,
    format_sensitivity,
    precision,
    text_sensitivity,
    texts_needed,
)
from klray.errors import KlrayError
from tests.scale_data import scale_snapshot


@pytest.fixture(scope="module")
def snapshot() -> xr.Dataset:
    return scale_snapshot(n_texts=400)


@pytest.fixture(scope="module")
def result(snapshot: xr.Dataset) -> xr.Dataset:
    return measure_scale(snapshot, Recipe.fit(snapshot), resamples=20)


def test_a_domain_is_what_the_public_functions_find_on_its_texts(snapshot: xr.Dataset, result: xr.Dataset) -> None:
    values = Recipe.fit(snapshot).apply(snapshot)
    place = {str(label): at for at, label in enumerate(values["model"].values)}
    first, second = (np.array([place[str(each)] for each in result[name].values]) for name in ("first", "second"))
    pairs = np.unique(np.stack([first, second], axis=1), axis=0)
    models, places = np.unique(pairs, return_inverse=True)
    i, j = places.reshape(-1, 2).T
    domains, bits = np.array([str(each) for each in values["domain"].values]), values["text_bytes"].values

    def on(texts: np.ndarray) -> np.ndarray:
        found: np.ndarray = klray.kl_divergence(values.values[models][:, texts], bits[texts])[i, j]
        return found

    for domain in np.unique(domains):
        within = domains == domain
        own, others, every = on(within), on(~within), on(np.ones(len(domains), bool))
        found = result.isel(part=[str(each) == domain for each in result["part"].values])
        assert found["part_texts"].item() == within.sum()
        assert found["part_correlation"].item() == pytest.approx(np.corrcoef(own, others)[0, 1], rel=1e-9)
        assert found["part_log_correlation"].item() == pytest.approx(np.corrcoef(np.log(own), np.log(others))[0, 1])
        assert found["part_deviation"].item() == pytest.approx(np.median(abs(own / every - 1)), rel=1e-9)
        assert found["part_ratio"].item() == pytest.approx(np.median(own / every), rel=1e-9)


def test_halves_agree_better_than_smaller_parts_and_err_by_the_root_of_the_number(result: xr.Dataset) -> None:
    parts = [str(each) for each in result["part"].values]
    sizes = result["part_texts"].values[[each.startswith("1/") for each in parts]]
    assert parts[:4] == ["1/2", "1/4", "1/8", "1/16"] and sizes.tolist() == [sizes[0] >> n for n in range(len(sizes))]
    assert sizes[-1] >= SMALLEST > sizes[-1] // 2
    assert (np.diff(result["part_correlation"].values[:4]) < 0).all()
    # a part errs by sqrt(1/n - 1/N) of the deviation of one text: of a 16th sqrt(15) times as much as of a half
    half, sixteenth = result["part_deviation"].values[[0, 3]]
    assert 0.6 < sixteenth / half / np.sqrt(15) < 1.6
    one, other = result["half_kl"].values.T
    assert np.corrcoef(one, other)[0, 1] > 0.98 and (one != other).all()


def test_a_standard_error_takes_as_many_texts_as_it_says(snapshot: xr.Dataset, result: xr.Dataset) -> None:
    """A quarter of the texts has twice the standard error, and so many of them are asked for at that error."""
    n_texts = int(result.attrs["texts"])
    row = result.sel(setting="later")
    spread = row["relative_deviation"].item()
    share = row["pair_standard_error"].item() / row["median"].item()
    assert spread == pytest.approx(share * np.sqrt(n_texts), rel=0.2)  # a median of ratios, not a ratio of medians
    wanted = texts_needed(1.0, 2 * spread / np.sqrt(n_texts), spread)
    assert abs(wanted - n_texts / 4) <= 1
    quarter = measure_scale(
        snapshot.isel(text=slice(None, None, 4)), Recipe.fit(snapshot.isel(text=slice(None, None, 4)))
    )
    assert quarter.sel(setting="later")["relative_deviation"].item() == pytest.approx(spread, rel=0.25)
    said = precision(n_texts, result, 0.05, 0.005)
    assert (
        "this store's scale" in said
        and f"{texts_needed(0.05, 0.005, result['relative_deviation'].max().item()):,} texts" in said
    )
    for words in ((0.05, 0.0), (-1.0, 0.1)):
        with pytest.raises(KlrayError, match="above 0"):
            texts_needed(*words, 2.0)


def test_few_texts_and_few_pairs_have_no_parts(snapshot: xr.Dataset) -> None:
    few = snapshot.isel(text=slice(2 * SMALLEST - 1))
    measured = measure_scale(few, Recipe.fit(few), resamples=20)
    assert "part" not in measured.coords and "texts for 10%, " in format_sensitivity(measured)
    values = Recipe.fit(snapshot).apply(snapshot)
    assert text_sensitivity(values, np.array([[0, 1], [1, 2]]), np.array(["seed", "seed"])) == {}


def test_pairs_that_are_equal_on_a_part_count_on_the_others_and_each_pair_once() -> None:
    rng = np.random.default_rng(1)
    base = -rng.gamma(4.0, 250.0, 256)
    rows = np.stack([base + rng.normal(size=256) * (np.arange(256) < 8 if n % 2 else 1) for n in range(12)])
    values = xr.DataArray(
        rows.astype(np.float32), dims=("model", "text"), coords={"text_bytes": ("text", np.full(256, 700))}
    )
    pairs = np.array([[i, j] for i in range(12) for j in range(i)])
    found = text_sensitivity(values, pairs, np.full(len(pairs), "random"))
    assert found["half_kl"].sizes["half_pair"] == len(pairs)
    sparse = pairs[(pairs % 2 == 1).all(axis=1)]
    few = text_sensitivity(values, sparse, np.full(len(sparse), "random"))
    assert few["part_deviation"].values[0] > 1.5 * found["part_deviation"].values[0]
    for asked in ((float("inf"), 0.005), (0.05, float("inf")), (1e300, 1e-10)):
        with pytest.raises(KlrayError, match="finite"):
            texts_needed(*asked, 2.0)
