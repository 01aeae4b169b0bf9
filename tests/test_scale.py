"""The scale: every setting against plain Python and NumPy, out of core; lineage, table and figure."""

from __future__ import annotations

import dataclasses
import math

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import klray
from klray.analysis.kl.chosen_pairs import pair_divergence
from klray.analysis.recipe import Recipe, excluded_by
from klray.analysis.scale.choosing_pairs import Choice, setting_pairs
from klray.analysis.scale.compared_models import Models
from klray.analysis.scale.generations import lineages
from klray.analysis.scale.measuring import (
    bootstrap_standard_error,
    format_scale,
    measure_scale,
    require_pairs,
    scale_rows,
)
from klray.errors import KlrayError
from klray.report.figures.scale_violins import scale_violins, scale_violins_caption
from tests.scale_check import check_scale, expected_pairs, read_facts
from tests.scale_data import scale_snapshot


@pytest.fixture(scope="module")
def snapshot() -> xr.Dataset:
    return scale_snapshot()


@pytest.fixture(scope="module")
def result(snapshot: xr.Dataset) -> xr.Dataset:
    return measure_scale(snapshot, Recipe.fit(snapshot))


def models_of(snapshot: xr.Dataset) -> Models:
    recipe = Recipe.fit(snapshot)
    return Models.of(snapshot, excluded_by(snapshot, recipe.excluded))


def place_of(snapshot: xr.Dataset, label: str) -> int:
    return int(np.flatnonzero(snapshot["model"].values == label)[0])


@pytest.mark.parametrize(
    "choice", [Choice(), Choice(spacing=2000, min_step=5000, number=7, draws=9, seed=3), Choice(number=10_000)]
)
def test_every_setting_is_what_a_plain_evaluation_finds(snapshot: xr.Dataset, choice: Choice) -> None:
    check_scale(snapshot, measure_scale(snapshot, Recipe.fit(snapshot), choice, resamples=20))


def test_the_settings_have_the_counts_that_the_snapshot_was_made_for(result: xr.Dataset) -> None:
    counts = {row.setting: row.n for row in scale_rows(result)}
    # 3 runs of over 100 pairs, and the 3 runs of seeds that go to step 7000 and are not excluded: 1 of their 2 pairs
    assert counts["early"] == counts["later"] == 3 * 50 + 3
    assert counts["seed"] == 3 + 3  # 3 of each size: seeds 3 and 4 of 410m are excluded
    assert counts["size"] == 3 + 2  # 3 without a seed; seeds 1 and 2 have both sizes
    assert counts["8-bit"] == 5 + 3 and counts["4-bit"] == 10 and counts["4-bit fp4"] == counts["4-bit nf4"] == 5
    assert counts["quantization int4wo"] == 5
    assert counts["dtype bfloat16"] == 4 and counts["dtype float16"] == 3  # a run, and three models, in two dtypes
    assert counts["fine-tuning"] == counts["intra-type"] == counts["random"] == 6
    assert counts["layer"] == counts["layer, tuned lens"] == 3 * 4  # the excluded checkpoint's layers are out


def test_a_setting_of_which_most_is_clipped_says_so(snapshot: xr.Dataset, result: xr.Dataset) -> None:
    """The first layers of a real model lie below every value of its own output, and a KL of 0 would look right."""
    layers = snapshot["layer"].values >= 0
    far = snapshot.copy()
    far["log_likelihood"] = snapshot["log_likelihood"] - xr.DataArray(np.where(layers, 5000, 0), dims="model")
    recipe = Recipe.fit(far)
    found = measure_scale(far, recipe, resamples=20)
    assert found["clipped"].sel(setting="layer").item() == 1.0
    assert found["median"].sel(setting="layer").item() == 0.0
    assert "Clipped values: layer 100%, layer, tuned lens 100%." in format_scale(found)
    assert "scale=published" in format_scale(found)
    raw = far["log_likelihood"].isel(text=np.flatnonzero(recipe.text_kept)).values
    of = [
        place_of(far, str(each))
        for name in ("first", "second")
        for each in found[name].values[found["pair_setting"].values == "seed"]
    ]
    assert found["clipped"].sel(setting="seed").item() == pytest.approx((raw[of] <= recipe.clip_threshold).mean())
    assert "Clipped values" not in format_scale(result)


def test_the_check_finds_a_wrong_pair(snapshot: xr.Dataset, result: xr.Dataset) -> None:
    wrong = result.copy(deep=True)
    of_seeds = np.flatnonzero(wrong["pair_setting"].values == "seed")
    wrong["first"].values[of_seeds[0]] = "llama/base-0@main"
    with pytest.raises(AssertionError, match="seed: 6 pairs, 6 expected"):
        check_scale(snapshot, wrong)


def test_a_quantised_model_is_compared_with_its_self_in_the_same_precision(snapshot: xr.Dataset) -> None:
    pairs = setting_pairs(models_of(snapshot))["8-bit"].tolist()
    half = place_of(snapshot, "llama/base-0@main+float16+int8")
    assert [place_of(snapshot, "llama/base-0@main+float16"), half] in pairs
    assert [place_of(snapshot, "llama/base-0@main"), place_of(snapshot, "llama/base-0@main+int8")] in pairs


def test_random_pairs_follow_their_seed(snapshot: xr.Dataset) -> None:
    models = models_of(snapshot)
    drawn = [setting_pairs(models, Choice(draws=8, seed=seed)) for seed in (0, 0, 1)]
    for name in ("random", "intra-type"):
        np.testing.assert_array_equal(drawn[0][name], drawn[1][name])
        assert drawn[0][name].tolist() != drawn[2][name].tolist()


def test_random_draws_reach_every_pair(snapshot: xr.Dataset) -> None:
    models = models_of(snapshot)
    n = len(models.finals)
    every = setting_pairs(models, Choice(draws=10**6))["random"]
    assert len(every) == n * (n - 1) // 2 == len({frozenset(pair) for pair in every.tolist()})


def test_a_snapshot_without_the_later_coordinates_has_its_settings(snapshot: xr.Dataset) -> None:
    """Those of klray before it kept parents and relation: a child is known by base_model, a merge is not."""
    old = snapshot.drop_vars(["base_revision", "parents", "relation"])
    models = models_of(old)
    expected = expected_pairs(
        [fact for fact in read_facts(old) if not models.excluded[fact["place"]]], dataclasses.asdict(Choice())
    )
    names = old["model"].values
    for setting in ("early", "seed", "size", "8-bit", "layer", "fine-tuning"):
        found = {frozenset(names[pair].tolist()) for pair in setting_pairs(models)[setting]}
        assert found == expected[setting], setting


def test_choices_that_mean_nothing_are_refused() -> None:
    with pytest.raises(KlrayError, match=r"scale\.number=0 .*1 or more"):
        Choice(number=0)


def test_generations_and_what_is_kept_apart(snapshot: xr.Dataset) -> None:
    family = lineages(models_of(snapshot))
    assert {name: n for name, n in family.generation.items() if n} == {
        "some/child-a": 1,
        "some/child-b": 1,
        "some/child-m": 1,
        "some/child-p": 1,
        "some/early": 1,
        "some/grandchild": 2,
    }
    assert family.apart == {"merge": 2, "adapter": 1, "quantized": 1}
    assert set(family.absent) == {"some/orphan", "some/unfound"}


def test_cards_that_name_each_other_end_somewhere(snapshot: xr.Dataset) -> None:
    models = models_of(snapshot)
    base = models.labels["repository"] == "llama/base-0"
    models.labels["base_model"] = np.where(base, "some/child-a", models.labels["base_model"])
    family = lineages(models)
    assert family.generation["llama/base-0"] == family.generation["some/child-a"] == 1


def test_pairs_are_evaluated_from_the_rows_they_need_in_bounded_parts(snapshot: xr.Dataset) -> None:
    values = Recipe.fit(snapshot).apply(snapshot)
    rng = np.random.default_rng(1)
    pairs = rng.integers(0, values.sizes["model"], (400, 2))
    read: list[int] = []

    def watch(block: np.ndarray) -> np.ndarray:
        read.append(len(block))
        return block

    watched = values.copy(data=values.data.map_blocks(watch, dtype=values.dtype, meta=values.data._meta))
    whole = pair_divergence(watched, pairs)
    assert sum(read) <= values.sizes["model"]
    small = pair_divergence(values, pairs, rows_bytes=20 * values.sizes["text"] * 4)
    rows, scale_of = values.values.astype(float), 2 * values["text_bytes"].values.mean() * math.log(2)
    expected = [np.var(rows[i] - rows[j]) / scale_of for i, j in pairs]
    np.testing.assert_allclose(whole[0], expected, rtol=1e-10)
    np.testing.assert_array_equal(whole[0], small[0])
    np.testing.assert_array_equal(whole[1], small[1])


def test_a_value_that_is_not_finite_is_named(snapshot: xr.Dataset) -> None:
    values = Recipe.fit(snapshot).apply(snapshot)
    broken = values.values.copy()
    broken[3, 5] = np.nan
    with pytest.raises(KlrayError, match=r"not finite, .*: exclude them"):
        pair_divergence(values.copy(data=da.from_array(broken)), np.array([[1, 3]]))


def test_the_bootstrap_is_numpys_resampling() -> None:
    values = np.random.default_rng(3).lognormal(size=41)
    picks = np.random.default_rng(7)
    medians = [np.median(picks.choice(values, 41)) for _ in range(200)]
    assert bootstrap_standard_error(values, 200, seed=7) == np.std(medians, ddof=1)
    assert math.isnan(bootstrap_standard_error(values[:1]))


def test_a_snapshot_of_single_models_has_no_scale(snapshot: xr.Dataset) -> None:
    alone = snapshot.isel(model=[place_of(snapshot, "llama/base-0@main")])
    empty = measure_scale(alone, Recipe.fit(alone))
    with pytest.raises(KlrayError, match="no setting of the scale has a pair"):
        require_pairs(empty)
    with pytest.raises(KlrayError, match="no setting has a pair with a KL above 0"):
        scale_violins(empty)
    with pytest.raises(KlrayError, match="has no setting with pairs"):
        klray.place(1.0, scale=empty)


def test_the_table_stands_beside_the_published_values(result: xr.Dataset) -> None:
    table = format_scale(result)
    row = {line.split("  ")[0].strip(): line for line in table.splitlines()}
    assert row["8-bit"].endswith(" 0.44") and row["later"].endswith(" 0.01-0.05") and row["seed"].endswith("–")
    assert "merge 2, adapter 1, quantized 1." in table
    assert "(1,000 resamples, seed 0)" in table


def test_the_figure_has_a_row_for_each_setting_and_the_published_marks(result: xr.Dataset) -> None:
    (axes,) = scale_violins(result).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[:3] == ["later  (n = 153)", "early  (n = 153)", "seed  (n = 6)"] and len(names) == 16
    assert axes.get_xscale() == "log"
    diamonds = sorted(float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "D")  # type: ignore[index,arg-type]
    assert diamonds == [0.40, 0.44, 0.49, 0.95, 3.0]
    bars = sorted((round(bar.get_x(), 3), round(bar.get_width(), 3)) for bar in axes.patches)  # type: ignore[attr-defined]
    assert bars == [(0.01, 0.04), (0.05, 0.05)]
    assert "published medians and ranges" in scale_violins_caption(result)
    assert "published (bar: range)" in [text.get_text() for text in axes.figure.legends[0].get_texts()]  # type: ignore[union-attr]


def test_the_figure_speaks_of_published_ranges_only_where_it_has_them(snapshot: xr.Dataset) -> None:
    other = measure_scale(snapshot, Recipe.fit(snapshot), Choice(spacing=2000), resamples=20)
    labels = [text.get_text() for text in scale_violins(other).legends[0].get_texts()]
    assert labels == ["median", "quartiles", "published"] and "ranges" not in scale_violins_caption(other)
