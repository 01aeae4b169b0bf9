"""Drift in weight space on a really trained family: sketched against exact, each checkpoint read once, in analyses."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import save_file

from jobs.analyze import analyze
from jobs.weights import weights
from klray.analysis.drift import most_sketches, sketched_drift
from klray.analysis.runs import Run
from klray.analysis.runs_table import format_table, run_table
from klray.checkpoints import Cache, Checkpoint, Hub, RepositorySpec, Selection, resolve
from klray.checkpoints.tensors import stored_tensors
from klray.config import (
    Align,
    AnalysisConfig,
    Config,
    ModelsConfig,
    ModelSource,
    RepositoryConfig,
    ScoringConfig,
    StoreConfig,
)
from klray.config.weights import WeightsConfig
from klray.errors import KlrayError
from klray.measure import weight_distances as exact
from klray.measure.weight_distances import measure_run
from klray.report.figures.weight_exponents import kl_and_weights, kl_and_weights_caption
from klray.store import Store
from klray.sweep.settings import ScoringSettings
from klray.texts import python_stdlib
from klray.tiny.family import train_family
from klray.tiny.family_recipe import SMALLEST
from klray.tiny.hub_server import HubServer
from klray.weights.distances import relative_error, squared_distances
from klray.weights.parameters import parameters
from klray.weights.sketch import sketch
from klray.weights.windows import WindowDistances, window_bytes
from tests.hub_faults import hub_of
from tests.scorers import scorer_here

pytestmark = pytest.mark.slow

RUN = "klray/tiny-46k-seed1"
TEXTS = python_stdlib(n=12)
WINDOW = 4


def stored(repository: str, step: int) -> dict[str, torch.Tensor]:
    return stored_tensors(train_family(SMALLEST) / repository / f"step{step}")


def truth(repository: str, steps: list[int]) -> np.ndarray:
    """Squared distances in plain NumPy."""
    rows = [
        np.concatenate(
            [tensor.numpy().astype(np.float64).ravel() for _, tensor in sorted(stored(repository, s).items())]
        )
        for s in steps
    ]
    return np.array([[((a - b) ** 2).sum() for b in rows] for a in rows])


@pytest.fixture
def checkpoints(hub: Hub) -> list[Checkpoint]:
    found, _ = resolve(hub, Selection("tiny", (RepositorySpec(RUN, "step*"),)))
    return found


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the run's columns and sketches, published; nobody may change it."""
    place, threads = tmp_path_factory.mktemp("drift"), torch.get_num_threads()
    torch.set_num_threads(1)
    store = Store.create(str(place / "store"), TEXTS)
    with HubServer(train_family(SMALLEST)) as server:
        hub = hub_of(server)
        scorer = scorer_here(hub, store.url, TEXTS, ScoringSettings(cache_dir=str(place / "cache"), sketch=4096))
        for checkpoint in resolve(hub, Selection("tiny", (RepositorySpec(RUN, "step*"),)))[0]:
            scorer.score(checkpoint)
        scorer.cache.close()
    store.publish()
    torch.set_num_threads(threads)
    return place / "store"


@pytest.fixture
def config(scored: Path, tmp_path: Path, one_thread: None) -> Config:
    """A copy of that store."""
    shutil.copytree(scored, tmp_path / "store")
    return Config(
        models=ModelsConfig("tiny", ModelSource.embedded, "smallest", [RepositoryConfig(RUN, "step*")]),
        store=StoreConfig(url=str(tmp_path / "store")),
        scoring=ScoringConfig(cache_dir=str(tmp_path / "cache")),
        analysis=AnalysisConfig(window=WINDOW, min_step=4, outlier_min_step=4),
    )


def steps_of(checkpoints: list[Checkpoint]) -> list[int]:
    return [int(each.facts.step or 0) for each in checkpoints]


def test_sketched_distances_of_the_family_are_within_the_stated_error(checkpoints: list[Checkpoint]) -> None:
    steps = steps_of(checkpoints)
    exactly = truth(RUN, steps)
    for size in (1024, 4096, 16_384):
        found = squared_distances(np.stack([sketch(stored(RUN, step), size).buckets for step in steps]))
        upper = np.triu_indices(len(steps), 1)
        error = np.abs(found[upper] / exactly[upper] - 1)
        assert (error <= 3 * relative_error(size)).mean() >= 0.99
        assert (error > 0).any()  # it is a sketch


def test_exact_distances_are_those_of_numpy_and_each_checkpoint_is_read_and_fetched_once(
    hub: Hub, checkpoints: list[Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    fetches: list[str] = []
    read, fetch = exact.stored_tensors, Cache.fetch
    monkeypatch.setattr(exact, "stored_tensors", lambda folder: (reads.append(folder.name), read(folder))[1])
    monkeypatch.setattr(
        Cache, "fetch", lambda self, hub, each: (fetches.append(each.commit), fetch(self, hub, each))[1]
    )
    steps = steps_of(checkpoints)
    with Cache(tmp_path / "cache", 10**9) as cache:
        found = measure_run(hub, cache, checkpoints[::-1], WINDOW, limit_bytes=10**9)
        assert cache.bytes == 0
    assert found.steps.tolist() == steps and not found.failures
    assert sorted(reads) == sorted(fetches) == sorted(each.commit for each in checkpoints)
    near = np.abs(np.subtract.outer(np.arange(len(steps)), np.arange(len(steps)))) <= WINDOW
    np.testing.assert_allclose(found.distances["raw"][near], truth(RUN, steps)[near], rtol=1e-12)
    assert np.isnan(found.distances["raw"][~near]).all()


def test_a_checkpoint_of_other_shapes_is_left_out_with_its_reason(hub: Hub, tmp_path: Path) -> None:
    steps, odd = [0, 8, 12, 20], 12
    for step in steps:
        shutil.copytree(train_family(SMALLEST) / RUN / f"step{step}", tmp_path / "run" / f"step{step}")
    weights_file = tmp_path / "run" / f"step{odd}" / "model.safetensors"
    wider = {name: torch.cat([tensor, tensor]) for name, tensor in stored(RUN, odd).items()}
    save_file(wider, weights_file, metadata={"format": "pt"})
    found, _ = resolve(hub, Selection("other", (RepositorySpec(str(tmp_path / "run"), "step*"),)))
    with Cache(tmp_path / "cache", 10**9) as cache:
        measured = measure_run(hub, cache, found, WINDOW, limit_bytes=10**9)
    steps.remove(odd)
    assert measured.steps.tolist() == steps
    (why,) = measured.failures.values()
    assert "are not comparable" in why and f"step{odd}" in why
    np.testing.assert_allclose(measured.distances["raw"], truth(RUN, steps), rtol=1e-12)


def test_a_window_above_the_budget_is_refused_with_both_numbers(
    hub: Hub, checkpoints: list[Checkpoint], tmp_path: Path
) -> None:
    with (
        Cache(tmp_path / "cache", 10**9) as cache,
        pytest.raises(KlrayError, match=r"window of 4 .* 0\.03 GB, .* 0\.00 GB: raise wei"),
    ):
        measure_run(hub, cache, checkpoints, WINDOW, limit_bytes=1000)
    assert window_bytes(10**9, 10) == 11 * 10**9 + 3 * 8 * 2**20


def test_a_window_keeps_no_more_than_it_says() -> None:
    windows = WindowDistances(3)
    for step in range(8):
        windows.add(f"step{step}", {"w": torch.full((10,), float(step))})
        assert len(windows._kept) <= 3
    assert windows.matrix()[7].tolist()[4:] == [90.0, 40.0, 10.0, 0.0]


def test_checkpoints_that_cannot_be_compared_are_named() -> None:
    windows = WindowDistances(3)
    windows.add("a@step1", {"w": torch.ones(4), "v": torch.ones(2)})
    with pytest.raises(KlrayError, match=r"b@step2 and a@step1 .*2 parameters .*\(u, w\)"):
        windows.add("b@step2", {"w": torch.ones(5), "v": torch.ones(2), "u": torch.ones(1)})


def test_analysis_gives_exponents_of_weights_from_sketches_in_the_windows_of_kl(config: Config) -> None:
    result = analyze(config)
    steps = result["step"].values
    order = np.argsort(steps)
    exactly = truth(RUN, steps[order].tolist())
    checked = 0
    for t, model in enumerate(order):
        found = float(result["exponent_weights"][model])
        assert np.isfinite(found) == np.isfinite(float(result["exponent_kl"][model]))
        if np.isfinite(found):
            later = slice(t + 1, t + 1 + WINDOW)
            x, y = np.log(steps[order][later] - steps[model]), np.log(exactly[t, later])
            assert found == pytest.approx(np.polyfit(x, y, 1)[0], abs=0.02)
            assert float(result["exponent_weights_r_squared"][model]) == pytest.approx(
                np.corrcoef(x, y)[0, 1] ** 2, abs=0.02
            )
            checked += 1
    assert checked >= 5
    distance = result["consecutive_weight_distance"].values[order]
    assert np.isnan(distance[0])
    np.testing.assert_allclose(distance[1:] ** 2, np.diagonal(exactly, 1), rtol=4 * relative_error(4096))
    assert result["exponent_weights"].attrs["relative_error"] == relative_error(4096)


def test_exact_and_aligned_exponents_come_into_the_analysis_and_the_table(
    config: Config, checkpoints: list[Checkpoint], capsys: pytest.CaptureFixture[str]
) -> None:
    before = analyze(config)
    assert "exponent_weights_exact" not in before
    config.weights = WeightsConfig(align=Align.units)
    written, measured = weights(config)
    assert len(measured) == 1 and not measured[0].failures
    aligned, raw = written["squared_distance_aligned"].values, written["squared_distance"].values
    assert (aligned[np.isfinite(raw)] <= raw[np.isfinite(raw)] * (1 + 1e-12)).all()
    result = analyze(config)  # anew, because there is a newer result of klray weights; then it is there already
    capsys.readouterr()
    xr.testing.assert_identical(analyze(config), result)
    assert "is there already" in capsys.readouterr().out
    exactly, sketched = result["exponent_weights_exact"].values, result["exponent_weights"].values
    assert np.isfinite(exactly).sum() == np.isfinite(sketched).sum() >= 5
    np.testing.assert_allclose(exactly, sketched, atol=0.02)
    assert np.isfinite(result["exponent_weights_aligned"].values).sum() >= 5
    steps = result["step"].values
    order = np.argsort(steps)
    squared = truth(RUN, steps[order].tolist())
    np.testing.assert_allclose(
        result["consecutive_weight_distance_exact"].values[order][1:], np.sqrt(np.diagonal(squared, 1)), rtol=1e-12
    )
    (row,) = run_table(result)
    finite = exactly[order][np.isfinite(exactly[order])]
    assert row.weight_exponent == pytest.approx(finite[len(finite) // 2 :].mean())
    assert row.weight_fractal_dimension == pytest.approx(2 / row.weight_exponent)
    assert "c_w" in format_table([row]) and "squared weight distance" in format_table([row])
    assert len(kl_and_weights(result).axes) == 2
    moved = result.assign(exponent_weights_aligned=result["exponent_weights_exact"] + 0.1)
    assert kl_and_weights_caption(moved).endswith("matched by permutation.")
    still = result.assign(exponent_weights_aligned=result["exponent_weights_exact"])
    assert kl_and_weights_caption(still).endswith("it changes no exponent by 0.001.")


def test_sketches_of_another_kind_than_ours_are_compared_with_themselves() -> None:
    rows = {f"key{step}": np.full(3, float(step)) for step in range(4)}
    data = {"step": range(4), "key": list(rows), "sketch": ["foreign", "foreign", "another-v1-x", "foreign"]}
    dataset = xr.Dataset(coords={name: ("model", values) for name, values in data.items()})
    run = Run("x", np.arange(4), np.arange(4), np.ones(4, dtype=bool))
    found = sketched_drift(dataset, [run], np.zeros(4, bool), lambda keys: {key: rows[key] for key in keys}, 3, 0)
    values, attributes = found["consecutive_weight_distance"]
    np.testing.assert_array_equal(values, [np.nan, np.sqrt(3), np.nan, np.nan])
    assert "relative_error" not in attributes


@pytest.mark.parametrize(
    "label", ["4-v1-x", "k1", "0-v1-x", "-4-v1-x", "9" * 17 + "-v1-x", "\u0663-v1-x", "5-v1-x", "-"]
)
def test_a_sketch_of_another_size_than_its_label_says_is_passed_over(label: str) -> None:
    """What a commit says of its sketch is anybody's; the others keep their distances."""
    rows = {f"key{step}": np.full(4, float(step)) for step in range(4)} | {"key4": np.ones(3)}
    labels = [*["4-v1-x"] * 4, label]
    dataset = xr.Dataset(coords={"key": ("model", list(rows)), "sketch": ("model", labels)})
    run = Run("x", np.arange(5), np.arange(5), np.ones(5, dtype=bool))
    found = sketched_drift(dataset, [run], np.zeros(5, bool), lambda keys: {key: rows[key] for key in keys}, 3, 0)
    np.testing.assert_array_equal(found["consecutive_weight_distance"][0], [np.nan, 2, 2, 2, np.nan])
    count, size = most_sketches(dataset, [run])
    assert count <= 5 and size == 4


def test_without_sketches_the_exponents_are_nan_and_the_figure_says_what_to_do(config: Config) -> None:
    result = analyze(config)
    without = result.assign(exponent_weights=result["exponent_weights"] * np.nan)
    with pytest.raises(KlrayError, match=r"scoring\.sketch=65536 .*klray weights"):
        kl_and_weights(without)
    assert "c_w" not in format_table(run_table(without))


def test_a_checkpoint_that_cannot_be_read_is_left_out_of_its_run(tmp_path: Path) -> None:
    family = train_family(SMALLEST) / RUN
    for step in (4, 8, 12):
        shutil.copytree(family / f"step{step}", tmp_path / "run" / f"step{step}")
    weight_file = next((tmp_path / "run" / "step8").glob("*.safetensors"))
    weight_file.write_bytes(b"\xff" * weight_file.stat().st_size)
    hub = Hub("http://127.0.0.1:9", "nobody answers there")
    found, _ = resolve(hub, Selection("x", (RepositorySpec(str(tmp_path / "run"), "step*"),)))
    with Cache(tmp_path / "cache", 10**9) as cache:
        measured = measure_run(hub, cache, found, WINDOW, limit_bytes=10**9)
    assert measured.steps.tolist() == [4, 12]
    assert list(measured.failures) == [f"{tmp_path / 'run'}@step8"]
    assert parameters(stored(RUN, 4)).keys() == parameters(stored(RUN, 12)).keys()


def test_exact_distances_of_shorter_windows_give_no_exponents(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    config.analysis.window = WINDOW - 1
    weights(config)
    config.analysis.window = WINDOW
    klray_log = logging.getLogger("klray")
    klray_log.addHandler(caplog.handler)
    result = analyze(config)
    klray_log.removeHandler(caplog.handler)
    assert "run klray weights analysis.window=4" in caplog.text
    assert np.isnan(result["exponent_weights_exact"].values).all()
    assert np.isfinite(result["consecutive_weight_distance_exact"].values).sum() == result.sizes["model"] - 1
    (row,) = run_table(result)
    assert np.isfinite(row.weight_exponent)  # of the sketches


def test_a_checkpoint_that_takes_too_long_to_read_is_none_of_a_run(config: Config) -> None:
    config.scoring.limit_seconds = 1e-3
    config.models.revisions = "step4"
    with pytest.raises(KlrayError, match=r"none of 1 checkpoint could be measured; .*scoring\.limit_seconds"):
        weights(config)


def test_a_window_without_a_line_is_refused_before_anything_is_read(config: Config) -> None:
    config.analysis.window = 2
    with pytest.raises(KlrayError, match=r"analysis\.window=2: .* set 3 or more"):
        weights(config)
    assert not Store.open(config.store.url).result_names(Store.open(config.store.url).manifest().id)


def test_results_of_another_kind_are_not_taken_for_weights(config: Config) -> None:
    analyze(config)
    config.weights.name = "trajectory"
    with pytest.raises(KlrayError, match=r"weights\.name=trajectory: .*another name"):
        weights(config)
    config.analysis.weights = "trajectory"
    with pytest.raises(KlrayError, match=r"analysis\.weights=trajectory: .* is none"):
        analyze(config)


def test_a_damaged_result_is_measured_anew(config: Config) -> None:
    before, _ = weights(config)
    chunk = next(Path(config.store.url).glob("results/*/weights/*/squared_distance/c/*/*"))
    chunk.write_bytes(b"x")
    with pytest.raises(KlrayError, match="squared_distance/c/0/0 holds other bytes"):
        analyze(config)
    after, measured = weights(config)
    assert len(measured) == 1
    np.testing.assert_array_equal(after["squared_distance"].values, before["squared_distance"].values)
    assert "exponent_weights_exact" in analyze(config)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_sketches_that_are_not_finite_have_no_distances(value: float) -> None:
    rows = np.random.default_rng(0).normal(size=(4, 64))
    rows[1, 3] = value
    found = squared_distances(rows)
    assert np.isnan(found[1]).all() and np.isnan(found[:, 1]).all()
    assert np.isfinite(np.delete(np.delete(found, 1, 0), 1, 1)).all()
