"""Recipe and anomalous checkpoints on a really trained, really scored family, from columns to the report."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file, save_file

import klray
from jobs.analyze import analyze
from jobs.publish import publish
from jobs.report import report
from klray import texts
from klray.analysis.kl.all_pairs import kl_divergence
from klray.analysis.recipe import Recipe, find_anomalies
from klray.checkpoints import RepositorySpec, Selection, resolve
from klray.config import AnalysisConfig, Config, ReportConfig, StoreConfig
from klray.likelihood.loading import load
from klray.likelihood.tokenizer import load_tokenizer
from klray.store import Store, layout
from klray.sweep.settings import ScoringSettings
from klray.tiny.family import train_family
from klray.tiny.family_recipe import SMALLEST
from klray.tiny.hub_server import HubServer
from tests.hub_faults import hub_of
from tests.scorers import scorer_here

pytestmark = pytest.mark.slow

TEXTS = texts.python_stdlib(n=32)
REPOSITORIES = ("klray/tiny-46k-seed1", "klray/tiny-46k-seed2")
PLANTED = "klray/tiny-46k-seed1@step24"


def scored(root: Path, place: Path, *specs: RepositorySpec) -> Config:
    """Score checkpoints of a hub's folder, and publish all that the store has."""
    threads = torch.get_num_threads()
    store = Store.create(str(place / "store"), TEXTS)
    with HubServer(root) as server:
        hub = hub_of(server)
        found, unavailable = resolve(hub, Selection("tiny_smallest", specs))
        assert not unavailable
        scorer = scorer_here(hub, store.url, TEXTS, ScoringSettings(cache_dir=str(place / "cache")))
        for checkpoint in found:
            scorer.score(checkpoint)
    torch.set_num_threads(threads)
    config = Config(
        store=StoreConfig(url=store.url),
        analysis=AnalysisConfig(min_step=8, outlier_min_step=8),
        report=ReportConfig(dir=str(place / "report")),
    )
    publish(config)
    return config


def damage(weights: dict[str, torch.Tensor], noise: float) -> dict[str, torch.Tensor]:
    """Every tensor with Gaussian noise of that share of its own root mean square."""
    torch.manual_seed(0)
    return {name: w + noise * w.square().mean().sqrt() * torch.randn(w.shape) for name, w in weights.items()}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Config:
    specs = (RepositorySpec(name, ["step*"]) for name in REPOSITORIES)
    return scored(train_family(SMALLEST), tmp_path_factory.mktemp("clean"), *specs)


@pytest.fixture(scope="module")
def broken(clean: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The same family, but the weights of one checkpoint in the middle of a run have noise: it alone is scored anew."""
    place = tmp_path_factory.mktemp("broken")
    shutil.copytree(str(clean.store.url), place / "store", ignore=shutil.ignore_patterns("snapshots", "results"))
    repository, revision = PLANTED.split("@")
    (lost,) = (
        each.key
        for each in Store.open(str(place / "store")).commits()
        if (each.identity.repository, each.facts["revision"]) == (repository, revision)
    )
    (place / "store" / layout.commit_path(lost)).unlink()
    shutil.copytree(train_family(SMALLEST), place / "hub")
    file = place / "hub" / PLANTED.replace("@", "/") / "model.safetensors"
    save_file(damage(load_file(file), 1.0), file, metadata={"format": "pt"})
    return scored(place / "hub", place, RepositorySpec(repository, [revision]))


def dataset(config: Config) -> xr.Dataset:
    return Store.open(str(config.store.url)).dataset().load()


def changed(config: Config, **settings: object) -> Config:
    return dataclasses.replace(config, analysis=dataclasses.replace(config.analysis, **settings))


def test_the_recipe_of_a_scored_store_is_its_definition(clean: Config) -> None:
    data, result = dataset(clean), analyze(clean)
    recipe = json.loads(result.attrs["recipe"])
    values = data["log_likelihood"].values
    assert values.shape == (26, 32)
    threshold = np.sort(values.ravel())[int(0.02 * (values.size - 1))]
    clipped = np.maximum(values, threshold).astype(float)
    change = [
        np.abs(np.diff(clipped[rows[np.argsort(data["step"].values[rows])]], axis=0)).max(axis=0)
        for name in REPOSITORIES
        for rows in [np.flatnonzero((data["run"].values == name) & (data["step"].values >= 8))]
    ]
    removed = np.argsort(np.max(change, axis=0))[-1:]  # 3 % of 32, rounded
    kept = np.delete(np.arange(32), removed)
    assert recipe["clip_threshold"] == threshold
    assert recipe["removed_texts"] == removed.tolist()
    assert result.attrs["mean_bytes"] == recipe["mean_bytes"] == TEXTS.n_bytes[kept].mean()
    difference = clipped[3, kept] - clipped[20, kept]
    expected = difference.var() / (2 * TEXTS.n_bytes[kept].mean() * np.log(2))
    assert float(result["kl"][3, 20]) == pytest.approx(expected, rel=1e-10)


def test_nothing_is_found_in_the_clean_family(clean: Config) -> None:
    for settings in ({}, {"exclude_found": True, "name": "strict"}):
        result = analyze(changed(clean, **settings))
        assert json.loads(result.attrs["anomalies"]) == []
        assert not result["excluded"].values.any()
    page = report(clean).read_text("utf-8")
    assert "anomalous checkpoints" not in page.lower()


def test_a_planted_anomaly_is_found_and_told(broken: Config, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "klray"):
        result = analyze(broken)
    (anomaly,) = json.loads(result.attrs["anomalies"])
    at = result["model"].values.tolist().index(PLANTED)
    after = result["model"].values.tolist().index(PLANTED.replace("24", "28"))
    before = result["model"].values.tolist().index(PLANTED.replace("24", "20"))
    kl = result["kl"].values
    assert anomaly["model"] == PLANTED
    sides = [kl[before, at], kl[at, after], kl[before, after]]
    assert [anomaly["kl_before"], anomaly["kl_after"], anomaly["kl_across"]] == pytest.approx(sides, rel=1e-9)
    assert anomaly["ratio"] > 1.5
    assert f"{sides[0]:.3g} and {sides[1]:.3g} bits/byte" in caplog.text
    assert f"analysis.exclude=['{PLANTED}'] or analysis.exclude_found=true" in caplog.text
    assert not result["excluded"].values.any()
    page = report(broken).read_text("utf-8")
    assert f"off its run&#39;s path: KL of {sides[0]:.3g} and {sides[1]:.3g} bits/byte" in page


def test_found_anomalies_are_excluded_when_asked_and_the_recipe_fitted_again(
    broken: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = analyze(broken)
    asked = changed(broken, exclude_found=True, name="strict")
    result = analyze(asked)
    assert [str(label) for label in result["model"].values[result["excluded"].values]] == [PLANTED]
    reasons = json.loads(result.attrs["excluded_reasons"])
    assert reasons[PLANTED].startswith("found: KL of ")
    assert [each["model"] for each in json.loads(result.attrs["anomalies"])] == [PLANTED]
    assert f"{PLANTED} is off its run's path and excluded: KL of" in caplog.text
    found, fitted = json.loads(result.attrs["recipe"]), json.loads(plain.attrs["recipe"])
    values = dataset(broken)["log_likelihood"].values
    included = np.sort(values[~result["excluded"].values].ravel())
    assert found["clip_threshold"] == included[int(0.02 * (included.size - 1))]
    assert found["excluded"][-1] == {"pattern": PLANTED, "reason": reasons[PLANTED]}
    assert len(fitted["excluded"]) == len(found["excluded"]) - 1
    at = result["model"].values.tolist().index(PLANTED)
    for name in ("consecutive_kl", "exponent_kl", "map_pca", "map_tsne"):
        assert np.isnan(result[name].values[at]).all()
    page = report(asked).read_text("utf-8")
    assert "found: KL of" in page and "off its run&#39;s path: KL" not in page
    capsys.readouterr()
    assert analyze(asked).identical(result)
    assert "is there already" in capsys.readouterr().out
    (tmp_path / "recipe.json").write_text(result.attrs["recipe"])
    frozen = analyze(changed(broken, recipe=str(tmp_path / "recipe.json"), name="frozen"))
    assert frozen.attrs["recipe"] == result.attrs["recipe"]
    np.testing.assert_array_equal(frozen["excluded"].values, result["excluded"].values)
    np.testing.assert_array_equal(frozen["kl"].values, result["kl"].values)
    without = analyze(changed(broken, exclude_found=False, name="strict"))
    assert not without["excluded"].values.any(), "a recipe with what was found is not kept where it is not asked for"


def test_a_known_anomaly_drops_out_in_every_variant(broken: Config) -> None:
    data = dataset(broken)
    labels = [f"{label}+bfloat16" for label in data["model"].values]
    variant = data.assign_coords(model=np.array(labels, dtype=np.dtypes.StringDType()))
    reasons = Recipe.fit(variant, min_step=8, exclude=["tiny-46k-seed1@step24"]).reasons(variant)
    assert [label for label, why in zip(labels, reasons, strict=True) if why] == [f"{PLANTED}+bfloat16"]


# Noise in the weights, as a share of their root mean square, that is found at these steps of a run of which the KL to
# the neighbours without noise falls from 0.7 bits/byte at step 8 to 0.01 at step 36.
@pytest.mark.parametrize(
    ("step", "noise", "found"),
    [(24, 0.05, False), (2, 1.0, True), (24, 1.0, True), (32, 1.0, True), (36, 0.5, True)],
)
def test_how_much_noise_in_the_weights_is_found(clean: Config, step: int, noise: float, found: bool) -> None:
    folder = train_family(SMALLEST) / REPOSITORIES[0] / f"step{step}"
    loaded = load(folder)
    loaded.model.load_state_dict(damage(loaded.model.state_dict(), noise))
    assert found_after(clean, step, loaded.model, folder) == ([step] if found else [])


def test_a_layer_set_back_to_its_first_weights_is_found(clean: Config) -> None:
    folder = train_family(SMALLEST) / REPOSITORIES[0] / "step28"
    loaded, first = load(folder), load(folder.with_name("step0"))
    loaded.model.lm_head.load_state_dict(first.model.lm_head.state_dict())
    assert found_after(clean, 28, loaded.model, folder) == [28]


def test_a_checkpoint_of_another_seed_is_found(clean: Config) -> None:
    folder = train_family(SMALLEST) / REPOSITORIES[1] / "step32"
    assert found_after(clean, 32, load(folder).model, folder) == [32]


def found_after(clean: Config, step: int, model: torch.nn.Module, folder: Path) -> list[int]:
    """Steps that are found in the first run when this model stands in the place of its checkpoint at ``step``."""
    data = dataset(clean).sortby("step")
    run = data.isel(model=np.flatnonzero(data["run"].values == REPOSITORIES[0]))
    values, steps = run["log_likelihood"].values.copy(), run["step"].values
    values[steps == step] = klray.log_likelihood(model, load_tokenizer(folder), list(TEXTS.texts))
    kl = kl_divergence(np.maximum(values, np.quantile(values, 0.02)), TEXTS.n_bytes)
    return [each.step for each in find_anomalies([str(each) for each in steps], steps, kl)]
