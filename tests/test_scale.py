"""The scale: every setting against plain Python and NumPy, out of core, from a store, on domains; placing numbers."""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import klray
from jobs.analyze import analyze
from jobs.scale import scale
from klray.analysis.kl.chosen_pairs import pair_divergence
from klray.analysis.recipe import Recipe, of_domain, result_name
from klray.analysis.runs_table import significant
from klray.analysis.scale import (
    Choice,
    Models,
    bootstrap_standard_error,
    format_scale,
    lineages,
    measure_scale,
    require_pairs,
    scale_rows,
    setting_pairs,
)
from klray.config import AnalysisConfig, Config, ScaleConfig, StoreConfig
from klray.errors import KlrayError
from klray.report.figures import scale_violins, scale_violins_caption
from klray.store import Store
from klray.texts import TextSet
from tests.scale_check import check_scale, expected_pairs, read_facts
from tests.scale_data import fill_store, scale_snapshot


@pytest.fixture(scope="module")
def snapshot() -> xr.Dataset:
    return scale_snapshot()


@pytest.fixture(scope="module")
def result(snapshot: xr.Dataset) -> xr.Dataset:
    return measure_scale(snapshot, Recipe.fit(snapshot))


def models_of(snapshot: xr.Dataset) -> Models:
    recipe = Recipe.fit(snapshot)
    return Models.of(snapshot, np.array([reason != "" for reason in recipe.reasons(snapshot)]))


def place_of(snapshot: xr.Dataset, label: str) -> int:
    return int(np.flatnonzero(snapshot["model"].values == label)[0])


# ---- pairs and numbers


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
    assert counts["fine-tuning"] == counts["intra-type"] == counts["random"] == 6
    assert counts["layer"] == counts["layer, tuned lens"] == 3 * 4  # the excluded checkpoint's layers are out


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
    n = len(models.finals())
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
    with pytest.raises(KlrayError, match=r"scale\.number=0 was asked for: set it to 1 or more"):
        Choice(number=0)


# ---- lineage


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


# ---- evaluation


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
    with pytest.raises(KlrayError, match="is not finite, because their log-likelihoods are not: exclude them"):
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
    with pytest.raises(KlrayError, match="no setting of the scale has a pair in this snapshot: it needs"):
        require_pairs(empty)
    with pytest.raises(KlrayError, match="no setting has a pair with a KL above 0"):
        scale_violins(empty)
    with pytest.raises(KlrayError, match="has no setting with pairs"):
        klray.place(1.0, scale=empty)


# ---- table and figure


def test_the_table_stands_beside_the_published_values(result: xr.Dataset) -> None:
    table = format_scale(result)
    row = {line.split("  ")[0].strip(): line for line in table.splitlines()}
    assert row["8-bit"].endswith(" 0.44") and row["later"].endswith(" 0.01-0.05") and row["seed"].endswith("–")
    assert "Kept apart from fine-tuning: merge 2, adapter 1, quantized 1." in table
    assert "SE of the median: bootstrap over pairs (1,000 resamples, seed 0)" in table


def test_the_figure_has_a_row_for_each_setting_and_the_published_marks(result: xr.Dataset) -> None:
    (axes,) = scale_violins(result).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[:3] == ["later  (n = 153)", "early  (n = 153)", "seed  (n = 6)"] and len(names) == 14
    assert axes.get_xscale() == "log"
    diamonds = sorted(float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "D")  # type: ignore[index,arg-type]
    assert diamonds == [0.40, 0.44, 0.49, 0.95, 3.0]
    bars = sorted((round(bar.get_x(), 3), round(bar.get_width(), 3)) for bar in axes.patches)  # type: ignore[attr-defined]
    assert bars == [(0.01, 0.04), (0.05, 0.05)]
    assert "bars in orange: published medians and ranges" in scale_violins_caption(result)
    assert "published (bar: range)" in [text.get_text() for text in axes.figure.legends[0].get_texts()]  # type: ignore[union-attr]


def test_the_figure_speaks_of_published_ranges_only_where_it_has_them(snapshot: xr.Dataset) -> None:
    other = measure_scale(snapshot, Recipe.fit(snapshot), Choice(spacing=2000), resamples=20)
    labels = [text.get_text() for text in scale_violins(other).legends[0].get_texts()]
    assert labels == ["median", "quartiles", "published"] and "ranges" not in scale_violins_caption(other)


# ---- placing


def test_a_number_is_placed_among_the_published_settings() -> None:
    placed = klray.place(0.42)
    assert [each.setting for each in placed.neighbours[:3]] == ["8-bit", "fine-tuning", "4-bit"]
    assert placed.nearest.log_ratio == pytest.approx(math.log(0.42 / 0.44))
    assert repr(placed).startswith("0.420 bits/byte: like quantising to 8 bits (0.44), or fine-tuning (0.4)")
    assert klray.place(0.02).nearest == klray.place(0.03).nearest or klray.place(0.02).nearest.setting == "later"
    assert klray.place(0.02).nearest.log_ratio == 0.0  # within the range
    assert "10 times more than going up one layer" in repr(klray.place(30))
    assert "no difference at all" in repr(klray.place(0))


def test_a_number_is_placed_among_the_pairs_of_a_result(result: xr.Dataset) -> None:
    kl = result["kl"].values[result["pair_setting"].values == "4-bit"]
    placed = klray.place(float(np.median(kl)), scale=result)
    assert placed.nearest.setting == "4-bit"
    assert placed.nearest.quantile == 0.5 and placed.nearest.n == 10
    by_name = {each.setting: each for each in placed.neighbours}
    early = result["kl"].values[result["pair_setting"].values == "early"]
    assert by_name["early"].quantile == pytest.approx(np.mean(early < placed.kl))
    assert f"like quantising to 4 bits ({placed.kl:.3g}, above 50% of 10 pairs)" in repr(placed)


def test_what_was_published_for_another_spacing_is_not_compared(snapshot: xr.Dataset) -> None:
    other = measure_scale(snapshot, Recipe.fit(snapshot), Choice(spacing=2000), resamples=20)
    published = {row.setting: row.published_low for row in scale_rows(other)}
    assert math.isnan(published["later"]) and published["8-bit"] == 0.44
    assert "are pairs 1,000 steps apart, which these are not" in format_scale(other)
    narrow = snapshot.isel(model=np.flatnonzero(snapshot["step"].values % 2000 == 0))
    scaled = measure_scale(narrow, Recipe.fit(narrow), Choice(spacing=2000), resamples=20)
    later = float(scaled["median"].sel(setting="later"))
    assert "training for 2,000 steps late in pretraining" in repr(klray.place(later, scale=scaled))


@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf])
def test_what_is_no_divergence_cannot_be_placed(wrong: float) -> None:
    with pytest.raises(KlrayError, match="cannot be placed: a KL divergence is a finite number of 0 or more"):
        klray.place(wrong)


def test_placing_says_what_it_needs() -> None:
    with pytest.raises(KlrayError, match="kl='much' is no number"):
        klray.place("much")  # type: ignore[arg-type]
    with pytest.raises(KlrayError, match="needs a result of klray scale, this lacks kl, pair_setting, median, n"):
        klray.place(0.4, scale=xr.Dataset())


# ---- domains, and the verb on a store


def test_a_domain_is_another_text_set(snapshot: xr.Dataset) -> None:
    prose = of_domain(snapshot, "prose")
    assert prose.sizes["text"] == 100 and set(prose["domain"].values) == {"prose"}
    with pytest.raises(KlrayError, match="the recipe was made for text set"):
        Recipe.fit(snapshot).apply(prose)
    assert of_domain(snapshot, "") is snapshot
    with pytest.raises(
        KlrayError, match=r"domain 'law' .* 0 texts, at least 2 .* choose one of code \(50 texts\), prose"
    ):
        of_domain(snapshot, "law")
    assert result_name("scale", "web/en") == "scale-web_en" and result_name("scale", "") == "scale"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = tuple(f"text {i} " * (40 + i) for i in range(60))
    folder = tmp_path_factory.mktemp("filled") / "store"
    store = Store.create(str(folder), TextSet("test", texts, tuple("ab"[i % 2] for i in range(60))))
    fill_store(store, scale_snapshot(n_texts=60, last_step=16_000))
    return folder


@pytest.fixture
def config(filled: Path, tmp_path: Path) -> Config:
    shutil.copytree(filled, tmp_path / "store")
    return Config(
        store=StoreConfig(url=str(tmp_path / "store")),
        analysis=AnalysisConfig(name="trajectory"),
        scale=ScaleConfig(resamples=20, dir=str(tmp_path / "figures")),
    )


def test_klray_scale_prints_keeps_and_draws(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scale(config)
    said = capsys.readouterr().out
    assert "quantization int4wo" in said and "0.01-0.05" in said
    store = Store.open(str(config.store.url))
    kept = klray.open_result(store.url, "scale").load()
    check_scale(store.dataset(), kept)
    assert klray.place(0.02, scale=kept).nearest.quantile is not None
    assert (tmp_path / "figures" / "scale.png").stat().st_size > 10_000


def test_a_scale_for_longer_runs_says_what_to_set(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config.scale.spacing = 777
    scale(config)
    said = capsys.readouterr().out
    assert "No run has two such pairs: set scale.spacing= and scale.min_step=" in said
    assert "takes the place" not in said
    config.scale.spacing = 1000
    scale(config)
    said = capsys.readouterr().out
    assert "takes the place of an earlier result scale of this snapshot; scale.name= keeps both" in said
    assert "No run has" not in said


def test_a_scale_with_another_recipe_than_the_analysis_says_so(
    config: Config, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("klray"), "propagate", True)
    analyze(config)
    scale(config)
    assert "its recipe is not taken" not in caplog.text
    config.analysis.outlier_min_step = 5000
    scale(config)
    assert "the result trajectory of this snapshot was made with other settings" in caplog.text


def test_a_domain_that_is_not_there_is_found_before_any_is_measured(config: Config) -> None:
    config.scale.domains = ["a", "law"]
    with pytest.raises(KlrayError, match=r"domain 'law' .* choose one of a \(30 texts\), b \(30 texts\)"):
        scale(config)
    store = Store.open(str(config.store.url))
    assert store.result_names(store.manifest().id) == []


def test_domains_stand_side_by_side(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config.scale.domains = ["a", "b"]
    config.scale.dir = None
    results = scale(config)
    said = capsys.readouterr().out
    store = Store.open(str(config.store.url))
    assert set(store.result_names(store.manifest().id)) == {"scale-a", "scale-b"}
    medians = {}
    for domain, kept in results.items():
        check_scale(of_domain(store.dataset(), domain), kept)
        medians[domain] = float(kept["median"].sel(setting="size"))
    (line,) = (line for line in said.splitlines() if line.startswith("size ") and "to" not in line)
    assert line.split()[-1] == significant(medians["b"] / medians["a"])
    assert "run: c_q" in said and "org/pythia-14m " in said
    assert "org/pythia-14m-seed1" not in said  # 4 checkpoints have no exponent


def test_an_analysis_of_a_domain_has_a_recipe_and_a_name_of_its_own(config: Config) -> None:
    config.analysis.domain = "b"
    config.scale.dir = None
    analyze(config)
    store = Store.open(str(config.store.url))
    snapshot = store.manifest().id
    result = store.result(snapshot, "trajectory-b").load()
    assert result.attrs["domain"] == "b" and set(result["domain"].values) == {"b"}
    dataset = of_domain(store.dataset(), "b")
    assert Recipe.from_json(result.attrs["recipe"]) == Recipe.fit(dataset)
    rows = Recipe.fit(dataset).apply(dataset).values.astype(float)
    expected = np.var(rows[0] - rows[7]) / (2 * result.attrs["mean_bytes"] * math.log(2))
    assert float(result["kl"][0, 7]) == pytest.approx(expected, rel=1e-9)
    measured = scale(config)["b"]
    assert measured.attrs["recipe"] == result.attrs["recipe"]
    assert store.result_names(snapshot) == ["scale-b", "trajectory-b"]


def test_a_recipe_that_is_given_is_for_one_domain(config: Config, tmp_path: Path) -> None:
    config.scale.domains = ["a", "b"]
    config.analysis.recipe = str(tmp_path / "recipe.json")
    with pytest.raises(KlrayError, match="a recipe is for one domain's texts; leave it out"):
        scale(config)


def test_the_smallest_number_there_is_can_be_placed() -> None:
    assert klray.place(5e-324).nearest.setting == "later"


@pytest.mark.parametrize("scale", ["kl pair_setting median n", 3, {}])
def test_what_is_no_result_is_no_scale(scale: object) -> None:
    with pytest.raises(KlrayError, match="is no result of klray scale: open one with"):
        klray.place(0.1, scale=scale)  # type: ignore[arg-type]
