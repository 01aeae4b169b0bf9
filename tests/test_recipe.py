"""Recipes: clipping, text outliers, exclusions and runs, against direct evaluation of their definitions."""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from jobs.analyze import given_recipe
from klray.analysis.recipe import KNOWN_ANOMALIES, Exclusion, Recipe
from klray.analysis.runs import runs
from klray.config import AnalysisConfig
from klray.errors import KlrayError
from tests.snapshot_data import TEXT_SET, labelled, rows_of, snapshot

# ---- fitting and applying a recipe


def test_a_recipe_follows_its_definition() -> None:
    data = snapshot(n_texts=250)
    values = data["log_likelihood"].values
    recipe = Recipe.fit(data, clip_quantile=0.02, outlier_fraction=0.03, min_step=2000)
    threshold = np.quantile(values, 0.02, method="lower")
    clipped = np.maximum(values, threshold)
    largest = np.zeros(250)
    for run in ("org/pythia-70m", "org/pythia-1b"):
        late = [row for row in rows_of(data, run) if data["step"].values[row] >= 2000]
        for earlier, later in pairwise(late):
            largest = np.maximum(largest, np.abs(clipped[later].astype(float) - clipped[earlier].astype(float)))
    removed = np.sort(np.argsort(-largest)[:8])  # 3 % of 250, rounded
    assert recipe.clip_threshold == threshold
    assert recipe.removed_texts == tuple(removed)
    assert recipe.text_kept.sum() == 242
    assert recipe.mean_bytes == data["text_bytes"].values[recipe.text_kept].mean()
    assert recipe.text_set == TEXT_SET
    assert recipe.note == ""
    applied = recipe.apply(data)
    assert isinstance(applied.data, da.Array)
    assert applied.dtype == np.float32
    np.testing.assert_array_equal(applied.values, clipped[:, recipe.text_kept])
    np.testing.assert_array_equal(applied["text"].values, np.flatnonzero(recipe.text_kept))
    np.testing.assert_array_equal(applied["model"].values, data["model"].values)


@pytest.mark.parametrize("chunks", [(1, -1), (-1, 13), (200, -1), None])
def test_chunks_do_not_change_a_recipe(chunks: Any) -> None:
    data = snapshot()
    other = snapshot(chunks=chunks) if chunks else data.load()
    assert Recipe.fit(other) == Recipe.fit(data)
    np.testing.assert_array_equal(Recipe.fit(data).apply(other).values, Recipe.fit(data).apply(data).values)


def test_excluded_models_and_layers_do_not_count() -> None:
    clean = snapshot(runs=("org/a", "org/b"), singles=0)
    values = clean["log_likelihood"].values
    facts = list(
        zip(
            clean["repository"].values, clean["revision"].values, clean["run"].values, clean["step"].values, strict=True
        )
    )
    broken = np.full((2, values.shape[1]), -9e4, dtype=np.float32)
    broken[:, ::3] = 0
    data = labelled(
        np.concatenate([values, broken]),
        [*facts, ("org/a", "step5500", "org/a", 5500), ("org/c", "main", "", -1)],
        0,
        (9, -1),
    )
    data["layer"].values[-1] = 3
    expected = Recipe.fit(clean, exclude=())
    found = Recipe.fit(data, exclude=["a@step5500"])
    assert found.clip_threshold == expected.clip_threshold
    assert found.excluded == (Exclusion("a@step5500"),)
    assert found.reasons(data) == [""] * len(values) + ["excluded by hand", ""]
    assert Recipe.fit(data, exclude=()).clip_threshold < expected.clip_threshold


def test_a_pair_beside_an_excluded_checkpoint_has_no_score() -> None:
    data = snapshot(runs=("org/a",), singles=0)
    jump = data["log_likelihood"].values.copy()
    jump[data["step"].values >= 10_000, 7] += 500  # one text jumps between two checkpoints
    data = data.assign(log_likelihood=(("model", "text"), jump))
    assert 7 in Recipe.fit(data, 0.0).removed_texts
    for step in (9000, 10_000):
        assert 7 not in Recipe.fit(data, 0.0, exclude=[f"a@step{step}"]).removed_texts
    assert 7 not in Recipe.fit(data, 0.0, min_step=10_000).removed_texts
    assert 7 in Recipe.fit(data, 0.0, min_step=9000).removed_texts


def test_equal_scores_remove_the_first_texts() -> None:
    data = snapshot(n_texts=100)
    values = np.full(data["log_likelihood"].shape, -100.0)
    values[data["step"].values >= 10_000, 1::3] = -300
    found = Recipe.fit(data.assign(log_likelihood=(("model", "text"), values)), 0.0, outlier_fraction=0.2)
    assert found.removed_texts == tuple(range(1, 60, 3))


def test_without_consecutive_checkpoints_all_texts_stay(caplog: pytest.LogCaptureFixture) -> None:
    data = snapshot(steps=(0, 100, 200, 300, 400))
    recipe = Recipe.fit(data)
    assert recipe.text_kept.all()
    assert recipe.note is not None and recipe.note.endswith("at steps >= 2,000: all texts are kept")
    assert recipe.note in caplog.text
    assert "analysis.outlier_min_step=300 or less" in caplog.text
    assert recipe.outlier_fraction == 0.03
    assert Recipe.fit(data, min_step=300).text_kept.sum() == 194
    assert Recipe.fit(data, min_step=301).text_kept.all()
    assert Recipe.fit(data, min_step=100).text_kept.sum() == 194


def test_published_anomalies_are_excluded_unless_told_otherwise() -> None:
    data = snapshot(runs=("EleutherAI/pythia-1b", "EleutherAI/pythia-410m-seed3"), steps=(1000, 115_000, 116_000))
    excluded = Recipe.fit(data, min_step=100).reasons(data)
    labels = [str(label) for label, why in zip(data["model"].values, excluded, strict=True) if why]
    assert sorted(labels) == [
        "EleutherAI/pythia-1b@step116000",
        *(f"EleutherAI/pythia-410m-seed3@step{step}" for step in (1000, 115_000, 116_000)),
    ]
    assert not any(Recipe.fit(data, min_step=100, exclude=()).reasons(data))
    assert all(re.search(r"arXiv:2505.15353|\(\w+/\w+#\d+", exclusion.reason) for exclusion in KNOWN_ANOMALIES)


@pytest.mark.parametrize("pattern", ["org/a@step512", "a@step512", "*@step512", "KEY"])
def test_patterns_mean_labels_their_ends_and_keys(pattern: str) -> None:
    data = snapshot(runs=("org/a",), singles=0)
    place = int(np.flatnonzero(data["step"].values == 512)[0])
    pattern = str(data["key"].values[place]) if pattern == "KEY" else pattern
    reasons = Recipe.fit(data, exclude=[Exclusion(pattern, "why not")]).reasons(data)
    assert [at for at, why in enumerate(reasons) if why == "why not"] == [place]


def test_a_recipe_survives_json_to_the_bit() -> None:
    recipe = Recipe.fit(snapshot(), clip_quantile=1 / 3, exclude=["a*", Exclusion("b", "because")])
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert json.loads(recipe.to_json())["clip_threshold"] == recipe.clip_threshold


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"removed_texts": [], "excluded": []}', '{"removed_texts": 3}'])
def test_what_is_no_recipe_is_refused(body: str) -> None:
    with pytest.raises(KlrayError, match=r"JSON with text_set, .*Recipe.to_json"):
        Recipe.from_json(body)


def test_a_recipe_whose_mean_bytes_were_changed_is_refused() -> None:
    data = snapshot()
    recipe = Recipe.fit(data)
    recipe.apply(data)
    changed = dataclasses.replace(recipe, mean_bytes=recipe.mean_bytes + 0.01)
    with pytest.raises(KlrayError, match=rf"says mean_bytes={changed.mean_bytes}, and .* have {recipe.mean_bytes} in"):
        changed.apply(data)


def test_a_recipe_for_another_text_set_is_refused() -> None:
    data = snapshot()
    recipe = Recipe.fit(data)
    with pytest.raises(KlrayError, match=r"3f3f3f3f3f3f of 200 texts, .* 777777777777 of 200"):
        recipe.apply(data.assign_attrs(text_set="7" * 64))
    with pytest.raises(KlrayError, match=r"of 200 .* 3f3f3f3f3f3f of 150 texts: fit"):
        recipe.apply(data.isel(text=slice(150)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clip_quantile": 1.0}, "clip_quantile .* it is 1.0"),
        ({"outlier_fraction": -0.1}, "outlier_fraction .* it is -0.1"),
        ({"outlier_fraction": 0.997}, "outlier_fraction=0.997 leaves 1 of 200"),
        ({"exclude": ["*"]}, "all 67 of the snapshot are excluded"),
    ],
)
def test_impossible_recipes_are_refused(options: dict, words: str) -> None:
    with pytest.raises(KlrayError, match=words):
        Recipe.fit(snapshot(), **options)


def test_models_with_values_that_are_not_finite_are_named_and_how_to_do_without_them() -> None:
    data = snapshot().load()
    data["log_likelihood"][dict(model=[3, 5], text=7)] = np.nan
    first = str(data["model"].values[3])
    with pytest.raises(KlrayError, match=rf"2 of 67 models have others, {re.escape(first)}") as raised:
        Recipe.fit(data)
    assert f'analysis.exclude=["{first}"]' in str(raised.value)
    Recipe.fit(data, exclude=[str(data["model"].values[row]) for row in (3, 5)])


def test_what_is_no_snapshot_is_refused() -> None:
    with pytest.raises(KlrayError, match=r"\['log_likelihood', 'text_bytes'\]"):
        Recipe.fit(xr.Dataset({"a": ("model", [1.0])}))


# ---- runs


def test_runs_are_sorted_by_step_and_set_apart_by_variant() -> None:
    data = snapshot(runs=("org/a", "org/b"), steps=(0, 5, 9), singles=2)
    found = {run.name: run for run in runs(data)}
    assert set(found) == {"org/a", "org/b"}
    for name, run in found.items():
        np.testing.assert_array_equal(run.steps, [0, 5, 9])
        np.testing.assert_array_equal(run.models, rows_of(data, name))
    data["quantization"].values[rows_of(data, "org/a")[1:]] = "int8"
    data["layer"].values[rows_of(data, "org/b")[0]] = 4
    assert sorted((run.name, *run.steps) for run in runs(data)) == [
        ("org/a", 0),
        ("org/a", 5, 9),
        ("org/b", 0),
        ("org/b", 5, 9),
    ]


def test_a_checkpoint_scored_again_replaces_the_first() -> None:
    values = np.zeros((4, 3), dtype=np.float32)
    facts = [("org/a", f"step{step}", "org/a", step) for step in (10, 20, 10, 30)]
    data = labelled(values, facts, 0, (2, -1))
    assert runs(data)[0].models.tolist() == [2, 1, 3]
    assert runs(data, np.array([False, False, True, False]))[0].models.tolist() == [0, 1, 3]
    assert runs(data, np.array([True, False, True, False]))[0].models.tolist() == [2, 1, 3]


def test_a_snapshot_without_runs_has_none() -> None:
    assert runs(snapshot(runs=())) == []


def test_an_exclusion_means_every_precision_of_a_checkpoint() -> None:
    data = snapshot(steps=(0, 116_000), n_texts=30)
    labels = [f"{label}+bfloat16" for label in data["model"].values]
    data = data.assign_coords(model=np.array(labels, dtype=np.dtypes.StringDType()))
    recipe = Recipe.fit(data, outlier_fraction=0.0)
    reasons = dict(zip(labels, recipe.reasons(data), strict=True))
    assert [label for label, reason in reasons.items() if reason] == ["org/pythia-1b@step116000+bfloat16"]


@pytest.mark.parametrize(
    "change",
    [
        {"removed_texts": [99]},
        {"removed_texts": [-1]},
        {"removed_texts": [1.5]},
        {"clip_threshold": "a"},
        {"clip_threshold": float("nan")},
        {"excluded": [{"pattern": 3, "reason": "x"}]},
    ],
)
def test_a_recipe_with_other_values_is_none(change: dict[str, object]) -> None:
    whole = Recipe("f" * 64, 8, 0.02, -900.0, 0.25, 2000, (1, 4), 950.0)
    assert Recipe.from_json(whole.to_json()) == whole
    with pytest.raises(KlrayError, match="what was given cannot be read"):
        Recipe.from_json(json.dumps({**json.loads(whole.to_json()), **change}))


def test_a_recipe_of_other_bytes_is_none(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_bytes(b"\xff\x99")
    with pytest.raises(KlrayError, match=r"analysis\.recipe=.*: it is no text"):
        given_recipe(AnalysisConfig(recipe=str(tmp_path / "recipe.json")))
