"""One rule for the runs of a snapshot: a step in two dtypes, and one step under two commits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from klray.analysis.analyze import analyze
from klray.analysis.diffusion import diffusion_exponent
from klray.analysis.drift import exact_drift
from klray.analysis.kl.all_pairs import kl_divergence
from klray.analysis.recipe import Recipe
from klray.analysis.runs import runs, single_models, trajectories
from klray.analysis.runs_table import consecutive_pairs, run_table
from klray.analysis.scale.choosing_pairs import Choice, setting_pairs
from klray.analysis.scale.compared_models import Models
from klray.checkpoints import Checkpoint, Facts
from klray.measure.weight_distances import RunDistances, as_dataset, standing_checkpoints
from klray.report import write_report
from klray.report.figures.consecutive_kl import consecutive_kl
from klray.report.figures.diffusion_exponents import diffusion_exponents
from klray.report.figures.kl_heatmap import ordered
from klray.report.figures.training_paths import training_paths
from klray.store import Store
from klray.texts import TextSet
from tests.scale_data import fill_store

RUN, STEPS, AGAIN, WINDOW, N_TEXTS = "org/pythia-70m", tuple(range(1000, 13_000, 1000)), 5000, 4, 60
TEXTS = TextSet("test", tuple("a text of some length " * 20 for _ in range(N_TEXTS)), ("prose",) * N_TEXTS)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """Twelve checkpoints in float32, the same step again under another commit, and three of them in bfloat16, too."""
    rng = np.random.default_rng(0)
    row, rows, facts = -rng.gamma(4.0, 250.0, N_TEXTS), [], []

    def add(values: np.ndarray, step: int, commit: str, dtype: str = "float32") -> None:
        rows.append(values.astype(np.float32))
        facts.append({"step": step, "commit": commit, "dtype": dtype})

    for number, step in enumerate(STEPS):
        row = row + rng.standard_t(5, N_TEXTS) * 3
        add(row, step, f"{number:040x}")
        if step in STEPS[:3]:
            add(row + rng.normal(size=N_TEXTS) * 0.2, step, f"{number:040x}", "bfloat16")
    add(rows[STEPS.index(AGAIN) + 3] + rng.normal(size=N_TEXTS) * 5, AGAIN, "f" * 40)
    columns = {name: np.array([fact[name] for fact in facts]) for name in facts[0]}
    common = {
        **{"repository": RUN, "run": RUN, "family": "pythia", "size": "70m", "quantization": "none", "lens": "none"},
        **{"architecture": "GPTNeoXForCausalLM", "base_model": "", "base_revision": "", "parents": "", "relation": ""},
        **{"seed": -1, "layer": -1},
    }
    data = xr.Dataset(
        {"log_likelihood": (("model", "text"), np.array(rows))},
        coords={
            "revision": ("model", [f"step{fact['step']}" for fact in facts]),
            **{name: ("model", column) for name, column in columns.items()},
            **{name: ("model", np.full(len(rows), value)) for name, value in common.items()},
        },
    )
    store = Store.create(str(tmp_path_factory.mktemp("twice") / "store"), TEXTS)
    fill_store(store, data)
    return store.dataset()


@pytest.fixture(scope="module")
def result(dataset: xr.Dataset) -> xr.Dataset:
    return analyze(dataset, window=WINDOW, tsne=False).load()


def standing(dataset: xr.Dataset) -> np.ndarray:
    """By hand: the float32 models in the order of their steps, of the doubled step the last."""
    at = {
        int(step): position
        for position, (step, dtype) in enumerate(zip(dataset.step.values, dataset.dtype.values, strict=True))
        if dtype == "float32"
    }
    return np.array([at[step] for step in STEPS])


def test_every_part_of_an_analysis_has_the_same_checkpoints(dataset: xr.Dataset, result: xr.Dataset) -> None:
    rows = standing(dataset)
    doubled = rows[STEPS.index(AGAIN)]
    assert (dataset.step.values == AGAIN).sum() == 2
    half, whole = trajectories(result)
    assert [run.name for run in (half, whole)] == [f"{RUN} (bfloat16)", f"{RUN} (float32)"]
    np.testing.assert_array_equal(whole.models, rows)
    assert len(whole.superseded) == 1 and dataset.step.values[whole.superseded[0]] == AGAIN
    assert doubled > whole.superseded[0]
    assert single_models(result, [half, whole]).size == 0
    # Consecutive KL and exponents, from the values of these rows alone.
    values = Recipe.from_json(result.attrs["recipe"]).apply(dataset)
    kl = kl_divergence(values.values[rows], values["text_bytes"].values)
    np.testing.assert_allclose(result["consecutive_kl"].values[rows[1:]], np.diagonal(kl, 1), rtol=1e-12)
    np.testing.assert_array_equal(result["previous_step"].values[rows[1:]], STEPS[:-1])
    expected = diffusion_exponent(STEPS, kl, WINDOW)
    np.testing.assert_allclose(result["exponent_kl"].values[rows], expected.exponent, rtol=1e-9)
    assert np.isnan(result["consecutive_kl"].values[whole.superseded]).all()
    # The table, with each step once.
    row = run_table(result)[1]
    assert (row.run, row.checkpoints, row.spacing, row.late_pairs) == (whole.name, len(STEPS), 1000, 3)
    pairs = consecutive_pairs(result, whole)
    assert pairs.step.tolist() == list(STEPS[1:])
    assert row.late_kl == pytest.approx(float(np.median(pairs.kl[-3:])))


@pytest.mark.slow
def test_figures_and_page_show_each_step_once(dataset: xr.Dataset, result: xr.Dataset, tmp_path: Path) -> None:
    rows = standing(dataset)
    of_kl = [line for line in consecutive_kl(result).axes[0].lines if line.get_label() == "pythia-70m (float32)"]
    assert of_kl[0].get_xdata().tolist() == list(STEPS[1:])
    exponents = diffusion_exponents(result).axes[0].lines[0]
    assert exponents.get_xdata().tolist() == [step for step in STEPS[:-WINDOW]]
    marks = [points for points in training_paths(result).axes[0].collections if len(points.get_offsets())]
    assert sum(len(points.get_offsets()) for points in marks) == len(STEPS) + 3
    order, blocks = ordered(result)
    assert sorted(order.tolist()) == list(range(dataset.sizes["model"]))
    assert dict(blocks)["scored again"] == 1
    page = write_report(result, tmp_path, title="twice").read_text()
    assert "2 training runs and 0 single models" in page
    assert np.isin(rows, order).all()


def test_the_scale_pairs_the_checkpoints_of_the_usual_dtype(dataset: xr.Dataset) -> None:
    models = Models.of(dataset)
    assert models.dtype == "float32"
    (run,) = models.runs
    np.testing.assert_array_equal(run.models, standing(dataset))
    pairs = setting_pairs(models, Choice(min_step=0, number=50))
    every = np.concatenate([pairs["early"], pairs["later"]])
    assert set(every.ravel().tolist()) <= set(run.models.tolist())


def test_weights_are_measured_of_the_checkpoints_that_stand(dataset: xr.Dataset) -> None:
    rows = standing(dataset)
    commits = [str(commit) for commit in dataset.commit.values]
    places = [place for place in range(len(commits)) if dataset.dtype.values[place] == "float32"]
    of_hub = [
        Checkpoint(RUN, f"step{dataset.step.values[at]}", commits[at], (), Facts(run=RUN, step=int(dataset.step[at])))
        for at in reversed(places)  # a hub has them in an order of its own
    ]
    (run,) = standing_checkpoints(of_hub, dataset, np.zeros(len(commits), bool))
    assert [each.commit for each in run] == [commits[row] for row in rows]
    squared = np.abs(np.subtract.outer(np.array(STEPS), np.array(STEPS))) / 1000.0
    exact = as_dataset([RunDistances(tuple(run), {"raw": squared})], WINDOW, "none")
    nothing = np.zeros(len(commits), dtype=bool)
    columns = exact_drift(dataset, runs(dataset), nothing, exact, WINDOW, 1000)
    found = columns["exponent_weights_exact"][0][rows]
    np.testing.assert_allclose(found[:-WINDOW], 1.0)
    # Where the one that stands is excluded, the other one does, here and there.
    excluded = nothing.copy()
    excluded[rows[STEPS.index(AGAIN)]] = True
    (other,) = standing_checkpoints(of_hub, dataset, excluded)
    (of_dtype,) = [run for run in runs(dataset, excluded) if len(run.models) > 3]
    assert [each.commit for each in other] == [commits[model] for model in of_dtype.models]
    assert other[STEPS.index(AGAIN)].commit != "f" * 40
