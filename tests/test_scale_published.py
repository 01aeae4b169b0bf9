"""The scale as the published code has it, evaluated anew in plain NumPy."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
import xarray as xr

from klray.analysis.defaults import Choice
from klray.analysis.scale.measuring import format_scale, measure_scale
from klray.config import ScaleConfig, scale_choice
from klray.errors import KlrayError
from tests.scale_data import scale_snapshot

CHOICE = Choice(published=True, sizes=("14m", "70m", "1b"), number=50)


@pytest.fixture(scope="module")
def snapshot() -> xr.Dataset:
    return scale_snapshot()


@pytest.fixture(scope="module")
def result(snapshot: xr.Dataset) -> xr.Dataset:
    return measure_scale(snapshot, None, CHOICE, 10)


Runs = dict[str, dict[int, np.ndarray]]


def runs_of(snapshot: xr.Dataset, names: list[str]) -> Runs:
    """Rows by run and step, in float32 and without the checkpoint that is excluded."""
    values = snapshot["log_likelihood"].transpose("model", "text").values.astype(float)
    found: Runs = {name: {} for name in names}
    for place in range(snapshot.sizes["model"]):
        fact = {
            name: snapshot[name].values[place] for name in ("run", "step", "dtype", "lens", "quantization", "revision")
        }
        plain = (fact["dtype"], fact["lens"], fact["quantization"]) == ("float32", "none", "none")
        if fact["run"] in found and plain and (fact["run"], fact["step"]) != ("org/pythia-1b", 116_000):
            found[fact["run"]][int(fact["step"])] = values[place]
    return found


def preprocessed(runs: Runs, text_bytes: np.ndarray) -> tuple[Runs, float]:
    """Clipped at the 2 % quantile of all values, without the 3 % of texts that change most from step 2,000 on."""
    every = np.sort(np.concatenate([row for run in runs.values() for row in run.values()]))
    threshold = np.float32(every[math.floor(0.02 * (len(every) - 1))])
    clipped = {name: {step: np.maximum(row, threshold) for step, row in run.items()} for name, run in runs.items()}
    scores = np.zeros(len(text_bytes))
    for run in clipped.values():
        for before, after in pairwise(step for step in sorted(run) if step >= 2000):
            scores = np.maximum(scores, np.abs(run[after] - run[before]))
    kept = np.sort(np.argsort(-scores, kind="stable")[round(0.03 * len(scores)) :])
    bits = 2 * text_bytes[kept].mean() * math.log(2)
    return {name: {step: row[kept] for step, row in run.items()} for name, run in clipped.items()}, bits


def kl_of(result: xr.Dataset, setting: str) -> np.ndarray:
    return np.sort(result["kl"].values[[str(each) == setting for each in result["pair_setting"].values]])


def test_runs_have_the_recipe_of_the_runs_and_seeds_one_of_their_own(snapshot: xr.Dataset, result: xr.Dataset) -> None:
    text_bytes = snapshot["text_bytes"].values
    sizes, bits = preprocessed(runs_of(snapshot, [f"org/pythia-{size}" for size in CHOICE.sizes]), text_bytes)
    windows: dict[str, list[float]] = {"early": [], "later": []}
    for run in sizes.values():
        kl = [np.var(run[b] - run[a]) / bits for a, b in pairwise(sorted(run)) if b - a == 1000 and b > 2000]
        windows["early"] += kl[:50]
        windows["later"] += kl[-50:]
    for name, expected in windows.items():
        np.testing.assert_allclose(kl_of(result, name), np.sort(expected), rtol=1e-6)
    last = max(set.intersection(*(set(run) for run in sizes.values())))
    pairs = [np.var(a[last] - b[last]) / bits for a, b in combinations(sizes.values(), 2)]
    np.testing.assert_allclose(kl_of(result, "size"), np.sort(pairs), rtol=1e-6)

    seeds, bits = preprocessed(runs_of(snapshot, [f"org/pythia-14m-seed{seed}" for seed in (1, 2, 3)]), text_bytes)
    last = max(set.intersection(*(set(run) for run in seeds.values())))
    pairs = [np.var(a[last] - b[last]) / bits for a, b in combinations(seeds.values(), 2)]
    np.testing.assert_allclose(kl_of(result, "seed"), np.sort(pairs), rtol=1e-6)


def test_everything_else_is_as_it_was_scored(snapshot: xr.Dataset, result: xr.Dataset) -> None:
    bits = 2 * snapshot["text_bytes"].values.mean() * math.log(2)
    row = dict(
        zip(
            snapshot["model"].values.tolist(), snapshot["log_likelihood"].transpose("model", "text").values, strict=True
        )
    )
    quantization = dict(zip(snapshot["model"].values.tolist(), snapshot["quantization"].values.tolist(), strict=True))
    raw = ("8-bit", "4-bit", "fine-tuning", "intra-type", "random", "layer")
    settings = result["pair_setting"].values.tolist()
    assert {*raw} <= set(settings)
    for place in np.flatnonzero(np.isin(settings, raw)):
        first, second = (str(result[name].values[place]) for name in ("first", "second"))
        difference = row[first].astype(float) - row[second]
        assert float(result["kl"].values[place]) == pytest.approx(np.var(difference) / bits, rel=1e-6)
        if settings[place] == "4-bit":
            assert quantization[second] == "fp4"
    related = {
        str(each) for name in ("first", "second") for each in result[name].values[np.isin(settings, ["fine-tuning"])]
    }
    drawn = np.isin(settings, ["intra-type", "random"])
    assert {str(each) for name in ("first", "second") for each in result[name].values[drawn]} <= related
    counts = {name: settings.count(name) for name in ("fine-tuning", "intra-type", "random")}
    assert len(set(counts.values())) == 1


def test_the_table_says_so(result: xr.Dataset) -> None:
    said = format_scale(result)
    assert "As published: later, early and size are of runs of the sizes 14m, 70m, 1b" in said
    assert "4-bit fp4" not in said
    assert scale_choice(ScaleConfig(published=True, sizes=["14m"])) == Choice(published=True, sizes=("14m",))
    with pytest.raises(KlrayError, match=r"scale.sizes=\['14m'\]"):
        scale_choice(ScaleConfig(sizes=["14m"]))
