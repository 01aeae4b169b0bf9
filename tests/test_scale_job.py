"""klray scale on a store: what it prints, keeps and draws, whole and domain by domain."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import klray
from jobs.analyze import analyze
from jobs.report import report
from jobs.scale import scale
from klray.analysis.recipe import Recipe, of_domain, result_name
from klray.config import AnalysisConfig, Config, ScaleConfig, StoreConfig
from klray.errors import KlrayError
from klray.store import Store
from klray.texts import TextSet
from klray.words.numbers import significant
from tests.html_page import Page
from tests.scale_check import check_scale
from tests.scale_data import fill_store, scale_snapshot

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def snapshot() -> xr.Dataset:
    return scale_snapshot()


def test_a_domain_is_another_text_set(snapshot: xr.Dataset) -> None:
    prose = of_domain(snapshot, "prose")
    assert prose.sizes["text"] == 100 and set(prose["domain"].values) == {"prose"}
    with pytest.raises(KlrayError, match="the recipe was made for text set"):
        Recipe.fit(snapshot).apply(prose)
    assert of_domain(snapshot, "") is snapshot
    with pytest.raises(KlrayError, match=r"'law' .* 0 texts, .*code \(50 texts\), prose"):
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
        scale=ScaleConfig(resamples=20, dir=None),
    )


def test_klray_scale_prints_keeps_and_draws(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.scale.dir = str(tmp_path / "figures")
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
    assert "set scale.spacing= and scale.min_step=" in said
    assert "takes the place" not in said
    config.scale.spacing = 1000
    scale(config)
    said = capsys.readouterr().out
    assert "scale.name= keeps both" in said
    assert "No run has" not in said


def test_a_scale_with_another_recipe_than_the_analysis_says_so(
    config: Config, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    analyze(config)
    scale(config)
    assert "its recipe is not taken" not in caplog.text
    config.analysis.outlier_min_step = 5000
    scale(config)
    assert "snapshot was made with other settings" in caplog.text


def test_a_domain_that_is_not_there_is_found_before_any_is_measured(config: Config) -> None:
    config.scale.domains = ["a", "law"]
    with pytest.raises(KlrayError, match=r"'law' .* a \(30 texts\), b \(30 texts\)"):
        scale(config)
    store = Store.open(str(config.store.url))
    assert store.result_names(store.manifest().id) == []


def test_domains_stand_side_by_side(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config.scale.domains = ["a", "b"]
    results = scale(config)
    said = capsys.readouterr().out
    store = Store.open(str(config.store.url))
    assert set(store.result_names(store.manifest().id)) == {"scale-a", "scale-b"}
    medians = {}
    for domain, kept in results.items():
        check_scale(of_domain(store.dataset(), domain), kept)
        medians[domain] = float(kept["median"].sel(setting="size"))
    (line,) = (line for line in said.splitlines() if line.startswith("size ") and "±" in line and "to" not in line)
    assert line.split()[-1] == significant(medians["b"] / medians["a"])
    assert "run: c_q" in said and "org/pythia-14m " in said
    assert "org/pythia-14m-seed1" not in said  # 4 checkpoints have no exponent


def test_an_analysis_that_keeps_no_matrix_has_a_report(config: Config, tmp_path: Path) -> None:
    config.analysis.pairs = "neighbours"
    config.report.dir = str(tmp_path / "report")
    assert "kl" not in analyze(config)
    page = Page(report(config))
    assert {"kl_heatmap", "models"} <= {str(attrs.get("id")) for _, attrs in page.elements}


def test_an_analysis_of_a_domain_has_a_recipe_and_a_name_of_its_own(config: Config) -> None:
    config.analysis.domain = "b"
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
    with pytest.raises(KlrayError, match="one domain's texts; leave it out"):
        scale(config)
