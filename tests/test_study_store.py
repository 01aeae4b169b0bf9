"""The study's numbers, each against a few lines of NumPy on what lies on disk: columns, weight files, text lengths.

Values are read from the columns' bytes and the hub's safetensors files, facts from the commits' JSON: klray computes
nothing that is compared with itself.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import klray
from klray.analysis.recipe import Recipe
from klray.analysis.scale.choosing_pairs import Choice
from klray.analysis.scale.measuring import measure_scale
from klray.likelihood.choices import QUANTIZATIONS
from klray.likelihood.loading import load
from klray.likelihood.tokenizer import load_tokenizer
from klray.weights.distances import relative_error
from tests.scale_check import Fact, check_scale, read_facts
from tests.study_data import (
    CODE,
    GRANDCHILD,
    LAST,
    LAYERED,
    MERGED,
    MIN_STEP,
    PARENT,
    PROSE,
    SEED2,
    SKETCH,
    STILL,
    WINDOW,
    Study,
)

pytestmark = pytest.mark.timeout(900)  # the first test waits for the training: 75 s of CPU, more on a busy machine

DENSE = [0, 1, 2, 3, 4, 5, *range(6, 25, 2)]
SPARSE = [0, 1, 2, 4, 8, 12, 16, 20, 24]
Row = tuple[str, str, str, str, int]  # repository, revision, quantisation, lens, layer
Rows = dict[Row, np.ndarray]
RUNS = {PARENT: DENSE, SEED2: SPARSE, LAYERED: SPARSE}


@pytest.fixture(scope="module")
def rows(study: Study) -> Rows:
    """Every row of every column, nats in float64."""
    folder = Path(study.store.url)
    found: Rows = {}
    for path in (folder / "commits").glob("*.json"):
        commit = json.loads(path.read_text())
        values = np.fromfile(folder / commit["path"] / "log_likelihood" / "c" / "0" / "0", "<f4")
        identity = commit["identity"]
        of = (identity["repository"], commit["facts"]["revision"], identity["quantization"], identity["lens"])
        for layer, row in zip(commit["layers"], values.reshape(len(commit["layers"]), -1), strict=True):
            assert (*of, layer) not in found
            found[(*of, layer)] = row.astype(np.float64)
    return found


@dataclass(frozen=True)
class Numbers:
    """Preprocessing in plain NumPy: ``clipped`` are the rows' kept texts."""

    threshold: float
    removed: list[int]
    kept: np.ndarray
    mean_bytes: float
    clipped: Rows

    def kl(self, a: Row, b: Row) -> float:
        """Bits/byte."""
        return self.bits(self.clipped[a], self.clipped[b])

    def bits(self, a: np.ndarray, b: np.ndarray) -> float:
        return float(np.var(a - b) / (2 * self.mean_bytes * math.log(2)))


@pytest.fixture(scope="module")
def numbers(study: Study, rows: Rows) -> Numbers:
    threshold = float(np.quantile([row for of, row in rows.items() if of[-1] == -1], 0.02, method="lower"))
    clipped = {of: np.maximum(row, threshold) for of, row in rows.items()}
    changes = [
        abs(clipped[plain(run, b)] - clipped[plain(run, a)])
        for run, steps in RUNS.items()
        for a, b in pairwise([step for step in steps if step >= 4])
    ]
    removed = sorted(np.argsort(-np.max(changes, axis=0), kind="stable")[: round(0.03 * 64)].tolist())
    kept = np.delete(np.arange(64), removed)
    mean_bytes = np.mean([len(study.texts.texts[place].encode()) for place in kept])
    return Numbers(threshold, removed, kept, float(mean_bytes), {of: row[kept] for of, row in clipped.items()})


def plain(repository: str, at: int | str) -> Row:
    """A checkpoint's own output, unquantised."""
    return (repository, f"step{at}" if isinstance(at, int) else at, "none", "none", -1)


def row_of(fact: Fact) -> Row:
    return (fact["repository"], fact["revision"], fact["quantization"], fact["lens"], fact["layer"])


def column(study: Study, name: str, run: str) -> np.ndarray:
    """A column of the analysis at a run's plain checkpoints, in the order of their steps."""
    facts = [fact for fact in read_facts(study.dataset) if fact["run"] == run and fact["layer"] < 0]
    facts = [fact for fact in facts if fact["quantization"] == "none"]
    assert sorted(fact["step"] for fact in facts) == RUNS[run]
    found: np.ndarray = study.result[name].values[[f["place"] for f in sorted(facts, key=lambda f: f["step"])]]
    return found


def weights(study: Study, repository: str, revision: str) -> np.ndarray:
    tensors = load_file(study.root / repository / revision / "model.safetensors")
    return np.concatenate([tensors[name].astype(np.float64).ravel() for name in sorted(tensors)])


def slopes(steps: list[int], squared: np.ndarray) -> np.ndarray:
    """The exponent of every window, NaN where none starts."""
    found = np.full(len(steps), np.nan)
    for t, start in enumerate(steps[:-WINDOW]):
        later = range(t + 1, t + 1 + WINDOW)
        if start >= MIN_STEP:
            times = np.log([steps[s] - start for s in later])
            found[t] = np.polyfit(times, np.log([squared[t, s] for s in later]), 1)[0]
    return found


# ---- the store


def test_the_snapshot_has_every_row_of_every_column_and_no_other(study: Study, rows: Rows) -> None:
    # 16 + 9 + 9 checkpoints of runs, 4 children, a merge; 3 quantised; layers 0, 1, 2 under two lenses
    assert len(rows) == study.dataset.sizes["model"] == 34 + 5 + 3 + 6
    values = study.dataset["log_likelihood"].values
    facts = read_facts(study.dataset)
    assert {row_of(fact) for fact in facts} == set(rows)
    for fact in facts:
        np.testing.assert_array_equal(values[fact["place"]], rows[row_of(fact)])


def test_every_stage_asks_for_each_file_once_and_for_all_weights(study: Study) -> None:
    assert set(study.asked) == {"plain", *QUANTIZATIONS, "logit", "tuned", "exact"} - {"none"}
    for stage, asked in study.asked.items():
        found = {path: n for path, n in asked.items() if path.endswith(".safetensors")}
        wanted = {f"/{each.repository}/resolve/{each.commit}/model.safetensors": 1 for each in study.checkpoints[stage]}
        assert found == wanted, stage
        assert set(asked.values()) == {1}, stage
        assert len(wanted) == {"plain": 39, "exact": 16}.get(stage, 1)


# ---- preprocessing


def test_threshold_mask_and_mean_bytes(study: Study, numbers: Numbers) -> None:
    recipe = Recipe.from_json(study.result.attrs["recipe"])
    assert recipe.clip_threshold == numbers.threshold
    assert list(recipe.removed_texts) == numbers.removed and len(recipe.removed_texts) == 2
    np.testing.assert_array_equal(np.flatnonzero(study.result["text_kept"].values), numbers.kept)
    assert recipe.mean_bytes == study.result.attrs["mean_bytes"] == pytest.approx(numbers.mean_bytes, rel=1e-14)


# ---- KL and its windows


def test_all_pairs_are_the_variance_of_the_difference(study: Study, numbers: Numbers) -> None:
    models = [row_of(fact) for fact in read_facts(study.dataset)]
    expected = [[numbers.kl(a, b) for b in models] for a in models]
    np.testing.assert_allclose(study.result["kl"].values, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("run", RUNS)
def test_consecutive_kl_and_c_q_of_every_window(study: Study, numbers: Numbers, run: str) -> None:
    steps = RUNS[run]
    kl = np.array([[numbers.kl(plain(run, a), plain(run, b)) for b in steps] for a in steps])
    np.testing.assert_allclose(column(study, "consecutive_kl", run)[1:], np.diagonal(kl, 1), rtol=1e-6)
    assert column(study, "previous_step", run).tolist() == [-1, *steps[:-1]]
    expected = slopes(steps, kl)
    assert np.isfinite(expected).sum() == {PARENT: 10, SEED2: 3, LAYERED: 3}[run]
    np.testing.assert_allclose(column(study, "exponent_kl", run), expected, rtol=1e-6)


@pytest.mark.parametrize("run", RUNS)
def test_c_w_of_every_window_from_weight_files(study: Study, run: str) -> None:
    steps = RUNS[run]
    rows = [weights(study, run, f"step{step}") for step in steps]
    squared = np.array([[((a - b) ** 2).sum() for b in rows] for a in rows])
    expected = slopes(steps, squared)
    sketched = column(study, "exponent_weights", run)
    np.testing.assert_allclose(sketched, expected, rtol=0, atol=0.02)
    assert np.nanmax(abs(sketched - expected)) > 1e-6  # it is a sketch
    distance = column(study, "consecutive_weight_distance", run)[1:] ** 2
    np.testing.assert_allclose(distance, np.diagonal(squared, 1), rtol=4 * relative_error(SKETCH))
    exact = column(study, "exponent_weights_exact", run)
    exact_distance = column(study, "consecutive_weight_distance_exact", run)[1:] ** 2
    if run == PARENT:
        np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-9)
        np.testing.assert_allclose(exact_distance, np.diagonal(squared, 1), rtol=1e-12)
    else:  # nobody measured it
        assert np.isnan(exact).all() and np.isnan(exact_distance).all()


def test_all_pairs_of_one_shape_from_the_stored_sketches(study: Study) -> None:
    facts = [fact for fact in read_facts(study.dataset) if fact["architecture"] and fact["layer"] < 0]
    facts = [fact for fact in facts if fact["quantization"] == "none" and fact["repository"] != LAYERED]
    buckets = study.store.read_sketches([str(study.dataset["key"].values[fact["place"]]) for fact in facts])
    sketches = [buckets[str(study.dataset["key"].values[fact["place"]])].astype(np.float64) for fact in facts]
    rows = [weights(study, fact["repository"], fact["revision"]) for fact in facts]
    pairs = list(combinations(range(len(facts)), 2))
    assert len(pairs) == 30 * 29 // 2
    exact = np.array([((rows[i] - rows[j]) ** 2).sum() for i, j in pairs])
    found = np.array([((sketches[i] - sketches[j]) ** 2).sum() for i, j in pairs])
    moved = exact > 0  # a child that learned nothing is its parent
    assert (~moved).sum() == 1 and found[~moved] == 0
    error = abs(found[moved] / exact[moved] - 1)
    assert (error <= 3 * relative_error(SKETCH)).mean() >= 0.99


# ---- the scale


@pytest.mark.parametrize(("spacing", "early"), [(2, 4), (4, 4)])
def test_ten_settings(study: Study, spacing: int, early: int) -> None:
    recipe = Recipe.from_json(study.result.attrs["recipe"])
    scale = measure_scale(study.dataset, recipe, Choice(spacing=spacing, min_step=4, number=50))
    check_scale(study.dataset, scale)
    got: dict[str, set[frozenset[str]]] = {}
    for setting, first, second in zip(*(scale[n].values for n in ("pair_setting", "first", "second")), strict=True):
        got.setdefault(str(setting), set()).add(frozenset((str(first), str(second))))
    counts = dict(zip(scale["setting"].values.tolist(), scale["n"].values.tolist(), strict=True))
    # spacing 2: 9 pairs of the dense run, 4 are early; spacing 4: 5 of each of the others, 2 are early
    assert counts == {
        **{"early": early, "later": early, "seed": 1, "size": 1, "8-bit": 1, "4-bit": 2, "4-bit fp4": 1},
        **{"4-bit nf4": 1, "fine-tuning": 4, "intra-type": 4, "random": 4, "layer": 2, "layer, tuned lens": 2},
    }
    last = f"{PARENT}@{LAST}"
    assert got["seed"] == {frozenset((last, f"{SEED2}@{LAST}"))}
    assert got["size"] == {frozenset((last, f"{LAYERED}@{LAST}"))}
    assert got["8-bit"] == {frozenset((last, f"{last}+int8"))}
    assert got["4-bit"] == {frozenset((last, f"{last}+{name}")) for name in ("fp4", "nf4")}
    assert got["fine-tuning"] == {
        *(frozenset((f"{child}@main", last)) for child in (PROSE, CODE, STILL)),
        frozenset((f"{GRANDCHILD}@main", f"{PROSE}@main")),
    }
    if spacing == 2:
        pairs = [frozenset((f"{PARENT}@step{step}", f"{PARENT}@step{step + 2}")) for step in range(4, 23, 2)]
        pairs = pairs[1:]  # the first was saved with step 5 between
        assert got["early"] == set(pairs[:4]) and got["later"] == set(pairs[-4:])
    assert json.loads(scale.attrs["kept_apart"])["merge"] == 1
    assert json.loads(scale.attrs["generations"]) == {PROSE: 1, CODE: 1, STILL: 1, GRANDCHILD: 2}


def test_a_merge_is_in_no_fine_tuning_pair(study: Study) -> None:
    scale = measure_scale(study.dataset, Recipe.from_json(study.result.attrs["recipe"]), Choice(spacing=2, min_step=4))
    tuned = scale["pair_setting"].values == "fine-tuning"
    assert f"{MERGED}@main" in study.dataset["model"].values
    assert tuned.sum() == 4
    assert f"{MERGED}@main" not in {*scale["first"].values[tuned], *scale["second"].values[tuned]}


def test_a_child_that_learned_nothing_is_its_parent(rows: Rows) -> None:
    np.testing.assert_array_equal(rows[plain(STILL, "main")], rows[plain(PARENT, LAST)])


def test_four_bits_are_further_than_eight_and_these_further_than_noise(
    study: Study, numbers: Numbers, one_thread: None
) -> None:
    own = plain(PARENT, LAST)
    kl = {name: numbers.kl((PARENT, LAST, name, "none", -1), own) for name in QUANTIZATIONS}
    files = study.root / PARENT / LAST
    again = klray.log_likelihood(load(files).model, load_tokenizer(files), study.texts.texts, tokens_per_batch=1)
    noise = numbers.bits(np.maximum(again, numbers.threshold)[numbers.kept], numbers.clipped[own])
    assert 0 < 100 * noise < kl["int8"]
    assert kl["int8"] < kl["nf4"] and kl["int8"] < kl["fp4"]


# ---- layers


def test_the_last_layer_is_the_plain_column_through_either_lens(rows: Rows) -> None:
    lenses = {of[3] for of in rows} - {"none"}
    assert len(lenses) == 2 and "logit" in lenses
    for lens in lenses:
        np.testing.assert_allclose(rows[LAYERED, LAST, "none", lens, 2], rows[plain(LAYERED, LAST)], rtol=0, atol=1e-3)


def test_kl_of_layers_to_the_one_before_and_to_the_last(study: Study, numbers: Numbers) -> None:
    found = klray.layer_kl(study.dataset, Recipe.from_json(study.result.attrs["recipe"]))
    assert found.sizes["model"] == 6
    lenses = sorted({str(lens) for lens in found["lens"].values})
    for layer in (0, 1):  # texts on which the tuned lens was not trained
        logit, tuned = (numbers.kl((LAYERED, LAST, "none", lens, layer), plain(LAYERED, LAST)) for lens in lenses)
        assert tuned < logit / 2
    for fact in read_facts(found):
        layer, of = fact["layer"], (LAYERED, LAST, "none", fact["lens"])
        kl_final, kl_previous = (found[name].values[fact["place"]] for name in ("kl_final", "kl_previous"))
        assert kl_final == pytest.approx(numbers.kl((*of, layer), (*of, 2)), rel=1e-9)
        if layer == 0:
            assert math.isnan(kl_previous)
        else:
            assert kl_previous == pytest.approx(numbers.kl((*of, layer), (*of, layer - 1)), rel=1e-9)
