"""From committed columns to the report: publish, analyse, grow, analyse again."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import klray
from jobs.analyze import analyze
from jobs.publish import publish
from jobs.report import report
from klray.config import AnalysisConfig, Config, ReportConfig, StoreConfig
from klray.errors import KlrayError
from klray.store import Column, Identity, Store
from klray.store.columns import commit_column
from klray.store.results import OTHER_VERBS
from klray.texts import TextSet
from tests.stores import put_column

pytestmark = pytest.mark.slow

N_TEXTS = 60
TEXTS = TextSet("test", tuple("x" * (300 + 5 * i) for i in range(N_TEXTS)), tuple("ab"[i % 2] for i in range(N_TEXTS)))
STEPS = range(0, 320, 20)


def columns(run: str, steps: list[int]) -> list[Column]:
    """Columns of a run whose coordinates take a random walk."""
    seed = sum(map(ord, run))
    walk = np.random.default_rng(seed).normal(0, 8, (400, N_TEXTS)).cumsum(axis=0)
    start = np.random.default_rng(1).normal(-700, 150, N_TEXTS)
    return [
        Column(
            Identity(f"org/{run}", f"{seed:08x}{step:032x}", TEXTS.fingerprint),
            (start + walk[step])[None],
            (-1,),
            np.full(N_TEXTS, 50),
            {"revision": f"step{step}", "step": step, "family": "fam", "run": f"org/{run}", "parameters": 10},
            {},
            {},
        )
        for step in steps
    ]


def add(store: Store, new: list[Column]) -> None:
    for number, column in enumerate(new):
        assert commit_column(store.objects, put_column(store, column, f"{number:032x}"))


def prepared(place: str, tmp_path: Path, tile: int = 7) -> Config:
    add(Store.create(place, TEXTS), columns("a", list(STEPS)) + columns("b", list(STEPS)[:-1]))
    return config_of(place, tmp_path, tile)


def config_of(place: str, tmp_path: Path, tile: int = 7) -> Config:
    analysis = AnalysisConfig(min_step=60, outlier_min_step=100, tile=tile)
    return Config(store=StoreConfig(url=place), analysis=analysis, report=ReportConfig(dir=str(tmp_path / "report")))


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that is published and analysed: on a copy of it the verbs find that done."""
    folder = tmp_path_factory.mktemp("analysed")
    config = prepared(str(folder / "store"), folder)
    publish(config)
    analyze(config)
    return folder / "store"


@pytest.fixture
def config(analysed: Path, tmp_path: Path) -> Config:
    shutil.copytree(analysed, tmp_path / "store")
    return config_of(str(tmp_path / "store"), tmp_path)


def test_the_way_on_s3_gives_what_it_gives_in_a_folder(s3_url: str, tmp_path: Path) -> None:
    config = prepared(str(tmp_path / "store"), tmp_path, tile=20)  # a tile is some requests
    remote = prepared(s3_url, tmp_path / "remote", tile=20)
    here, there = publish(config), publish(remote)
    assert here.content == there.content
    local, other = (Store.open(str(each.store.url)).dataset().load() for each in (config, remote))
    xr.testing.assert_equal(local, other)
    xr.testing.assert_equal(analyze(config), analyze(remote))
    assert report(remote).stat().st_size > 100_000


def test_kl_in_the_store_is_the_formula_on_preprocessed_values(config: Config) -> None:
    publish(config)
    result = analyze(config)
    dataset = Store.open(str(config.store.url)).dataset().load()
    values = dataset["log_likelihood"].values.astype(np.float64)
    threshold = np.quantile(dataset["log_likelihood"].values, 0.02, method="lower")
    values = np.maximum(values, threshold)
    change = np.zeros(N_TEXTS)
    for run in ("org/a", "org/b"):
        of_run = np.flatnonzero((dataset["run"].values == run) & (dataset["step"].values >= 100))
        of_run = of_run[np.argsort(dataset["step"].values[of_run])]
        change = np.maximum(change, np.abs(np.diff(values[of_run], axis=0)).max(axis=0))
    kept = np.sort(np.argsort(-change, kind="stable")[round(0.03 * N_TEXTS) :])
    assert np.flatnonzero(result["text_kept"].values).tolist() == kept.tolist()
    mean_bytes = TEXTS.n_bytes[kept].mean()
    assert result.attrs["mean_bytes"] == mean_bytes
    differences = values[:, None, kept] - values[None, :, kept]
    expected = differences.var(axis=2) / (2 * mean_bytes * np.log(2))
    np.testing.assert_allclose(result["kl"].values, expected, rtol=1e-10, atol=0)
    centred = differences - differences.mean(axis=2, keepdims=True)
    second, fourth = (centred**2).mean(axis=2), (centred**4).mean(axis=2)
    error = np.sqrt((fourth - second**2) / len(kept)) / (2 * mean_bytes * np.log(2))
    np.testing.assert_allclose(result["kl_standard_error"].values, error, rtol=1e-8, atol=0)


def test_exponents_in_the_store_are_least_squares_on_the_logarithms(config: Config) -> None:
    publish(config)
    result = analyze(config)
    kl, steps, runs = result["kl"].values, result["step"].values, result["run"].values
    checked = 0
    for model in range(len(steps)):
        later = np.flatnonzero((runs == runs[model]) & (steps > steps[model]))
        later = later[np.argsort(steps[later])][:10]
        exponent = float(result["exponent_kl"][model])
        if steps[model] < 60 or len(later) < 10:
            assert np.isnan(exponent)
            continue
        slope, _ = np.polyfit(np.log(steps[later] - steps[model]), np.log(kl[model, later]), 1)
        assert exponent == pytest.approx(slope, abs=1e-12)
        checked += 1
    assert checked == 5


def test_a_new_model_changes_no_bit_of_old_pairs(config: Config) -> None:
    first = publish(config)
    before = analyze(config)
    store = Store.open(str(config.store.url))
    add(store, columns("b", list(STEPS)[-1:]) + columns("c", [0, 20]))
    second = publish(config)
    assert (first.n_models, second.n_models) == (31, 34)
    after = analyze(config)
    assert after.attrs["recipe"] == before.attrs["recipe"]
    for name in ("kl", "kl_standard_error"):
        assert np.array_equal(after[name].values[:31, :31], before[name].values)
        assert np.isfinite(after[name].values).all()
        assert np.array_equal(after[name].values, after[name].values.T)
    anew = analyze(dataclasses.replace(config, analysis=dataclasses.replace(config.analysis, recipe="fit")))
    assert anew.attrs["recipe"] != before.attrs["recipe"]


def test_analysis_that_is_there_is_not_repeated(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config.analysis.name = "another"
    first = analyze(config)
    assert "there already" not in capsys.readouterr().out
    assert analyze(config).identical(first)
    assert "is there already" in capsys.readouterr().out


def test_another_window_takes_the_place_of_the_result_and_keeps_its_pairs(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(config)
    first = analyze(config)
    config.analysis.window = 5
    second = analyze(config)
    assert "takes the place of an earlier result" in capsys.readouterr().out
    np.testing.assert_array_equal(second["kl"].values, first["kl"].values)
    np.testing.assert_array_equal(second["kl_standard_error"].values, first["kl_standard_error"].values)
    assert np.isfinite(second["exponent_kl"].values).sum() > np.isfinite(first["exponent_kl"].values).sum()
    found = klray.open_result(str(config.store.url))
    assert found.attrs["window"] == 5


def test_lost_chunk_of_an_earlier_result_is_not_handed_on(config: Config) -> None:
    publish(config)
    analyze(config)
    chunks = sorted((Path(str(config.store.url)) / "results").rglob("kl/c/0/0"))
    chunks[0].unlink()
    store = Store.open(str(config.store.url))
    add(store, columns("c", [0, 20]))
    publish(config)
    with pytest.raises(KlrayError, match=r"kl/c/0/0 is missing.*analysis\.recipe=fit"):
        analyze(config)
    config.analysis.recipe = "fit"
    assert np.isfinite(analyze(config)["kl"].values).all()


def test_result_of_other_numerics_is_not_continued(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(config)
    analyze(config)
    monkeypatch.setattr("klray.analysis.continuing.NUMERICS_VERSION", 99)
    again = analyze(config)
    assert again.attrs["numerics"] == 99


def test_distributed_scheduler_gives_the_same_result(config: Config) -> None:
    publish(config)
    threads = analyze(config)
    config.dask.scheduler = "distributed"
    config.analysis.name = "elsewhere"
    np.testing.assert_array_equal(analyze(config)["kl"].values, threads["kl"].values)


def test_memory_over_the_budget_is_refused_with_both_numbers(config: Config) -> None:
    config.dask.memory_limit, config.analysis.name = "10kB", "another"
    with pytest.raises(KlrayError, match=r"needs.*budget is.*dask\.memory_limit"):
        analyze(config)


def test_recipe_from_a_file_that_is_not_there(config: Config) -> None:
    config.analysis.recipe = "nowhere.json"
    with pytest.raises(KlrayError, match="choose keep or fit, or name a JSON file"):
        analyze(config)


def test_report_is_written_from_the_store_alone(config: Config) -> None:
    publish(config)
    analyze(config)
    page = report(config)
    text = page.read_text("utf-8")
    assert "org/a" in text and "org/b" in text
    assert {path.name for path in (page.parent / "figures").glob("*.png")} >= {"kl_heatmap.png", "consecutive_kl.png"}


def test_the_first_checkpoint_of_a_run_has_a_report_and_a_pattern_that_means_nothing_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    add(Store.create(str(tmp_path / "store"), TEXTS), columns("a", [0]))
    config = Config(
        store=StoreConfig(url=str(tmp_path / "store")),
        analysis=AnalysisConfig(exclude=["nobody@*"]),
        report=ReportConfig(dir=str(tmp_path / "report")),
    )
    publish(config)
    assert analyze(config).sizes["model"] == 1
    assert "analysis.exclude: nobody@* is no model" in caplog.text
    assert "org/a" in report(config).read_text("utf-8")
    store = Store.open(str(config.store.url))
    assert "was fitted to" not in capsys.readouterr().out
    add(store, columns("a", list(range(20, 200, 20))))
    publish(config)
    for _ in ("anew", "there already"):
        analyze(config)
        assert "recipe     was fitted to 1 model, and there are 10 now" in capsys.readouterr().out
    config.analysis.recipe = "fit"
    assert analyze(config).attrs["recipe_models"] == 10
    assert "was fitted to" not in capsys.readouterr().out
    assert sorted(OTHER_VERBS) == sorted(each.name for each in (config.compare, config.scale, config.weights))
    for name, verb in (("scale", "klray scale"), ("other", "klray analyze analysis.name=other")):
        with pytest.raises(KlrayError, match=rf"run: {verb} store\.url="):
            store.result(store.manifest().id, name)
