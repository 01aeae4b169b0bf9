"""Layers in the store: columns with a row for each, snapshots of them, and the KL between layers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import klray
from jobs.lens import lens as lens_job
from klray import texts
from klray.analysis.kl.layer_kl import compare_lenses
from klray.analysis.recipe import Recipe
from klray.checkpoints import Checkpoint, Hub, RepositorySpec, Selection, resolve
from klray.config import Config, LensConfig, ModelsConfig, ScoringConfig, TextsConfig
from klray.config.sweep import scoring_settings
from klray.errors import CheckpointError, KlrayError
from klray.likelihood.lens import Lens, Translators, layer_log_likelihood, load_translators
from klray.likelihood.loading import load
from klray.likelihood.tokenizer import load_tokenizer
from klray.store import Column, Identity, Store
from klray.sweep.model import load_lens
from klray.sweep.settings import ScoringSettings
from klray.tiny.family import train_family
from klray.tiny.family_recipe import SMALLEST
from tests.scorers import scorer_here
from tests.stores import N_TEXTS, TEXTS, add, column

pytestmark = pytest.mark.slow

SCORED = texts.python_stdlib(n=8)
REPOSITORY = "klray/tiny-46k-seed1"


def test_what_is_no_kl_of_layers_cannot_be_compared() -> None:
    with pytest.raises(KlrayError, match=r"kl_previous, kl_final: .*klray\.layer_kl"):
        compare_lenses(xr.Dataset({"log_likelihood": (("model", "text"), np.zeros((2, 3)))}))


def layered(name: str, lens: str, n_layers: int = 5) -> Column:
    """A column of layers whose values walk from one to the next."""
    plain = column(name, 1)
    walk = np.random.default_rng(len(name) + len(lens)).normal(0, 30, (n_layers, N_TEXTS)).cumsum(axis=0)
    identity = Identity(f"org/{name}", "c" * 40, TEXTS.fingerprint, lens=lens)
    return Column(identity, walk - 500, tuple(range(n_layers)), plain.n_tokens, plain.facts, {}, {})


@pytest.fixture
def checkpoint(hub: Hub) -> Checkpoint:
    found, _ = resolve(hub, Selection("tiny", (RepositorySpec(REPOSITORY, "step40"),)))
    return found[0]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_columns_of_layers_stand_beside_the_plain_one(hub: Hub, checkpoint: Checkpoint, tmp_path: Path) -> None:
    store = Store.create(str(tmp_path / "store"), SCORED)
    lens = Lens(Translators(torch.ones(1, 32, 32) / 50, torch.ones(1, 32)))
    assert lens.translators is not None
    lens.translators.save(tmp_path / "lens")
    folder = train_family(SMALLEST) / REPOSITORY / "step40"
    model, tokenizer = load(folder).model, load_tokenizer(folder)
    expected = {"none": klray.log_likelihood(model, tokenizer, SCORED.texts)[None]}
    expected |= {each.name: layer_log_likelihood(model, tokenizer, SCORED.texts, lens=each) for each in (Lens(), lens)}
    for asked in ("none", "logit", str(tmp_path / "lens")):
        settings = scoring_settings(ScoringConfig(lens=asked, cache_dir=str(tmp_path / "cache")))
        scorer_here(hub, store.url, SCORED, settings).score(checkpoint)
    by_lens = {commit.identity.lens: commit for commit in store.commits()}
    assert set(by_lens) == set(expected) == {"none", "logit", lens.name}
    for name, commit in by_lens.items():
        assert store.read_column(commit).tobytes() == expected[name].astype(np.float32).tobytes()
        assert commit.layers == ((-1,) if name == "none" else (0, 1))
    assert np.array_equal(expected["logit"][-1], expected["none"][0])
    store.publish()
    data = store.dataset().load()
    label = f"{REPOSITORY}@step40"
    assert set(data["model"].values) == {
        label,
        *(f"{label}+{each}#layer{layer}" for each in ("logit", lens.name) for layer in (0, 1)),
    }
    row = data.sel(model=f"{label}+{lens.name}#layer0")
    assert (str(row["lens"].values), int(row["layer"])) == (lens.name, 0)


@pytest.mark.usefixtures("threads")
def test_klray_lens_trains_one_for_a_checkpoint_of_the_hub(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", hub.token or "")
    config = Config(
        models=ModelsConfig(repo=REPOSITORY, revisions="step40"),
        texts=TextsConfig(n=10),
        scoring=ScoringConfig(cache_dir=str(tmp_path / "cache")),
        lens=LensConfig(path=str(tmp_path / "lens"), n=20, steps=4),
    )
    config.scoring.limit_seconds = 1e-3
    with pytest.raises(CheckpointError, match=r"scoring\.limit_seconds") as ended:
        lens_job(config)
    assert ended.value.reason == "limit_exceeded" and not (tmp_path / "lens").exists()
    config.scoring.limit_seconds = None
    capsys.readouterr()
    found = lens_job(config)
    said = capsys.readouterr().out
    assert "logit lens" in said and f"{found.name} in {tmp_path / 'lens'}" in said
    facts = load_translators(tmp_path / "lens").facts
    assert (facts["repository"], facts["revision"], facts["steps"]) == (REPOSITORY, "step40", 4)
    assert "stdlib-train" in facts["text_set_name"]
    config.models.revisions, config.lens.path = "step*", str(tmp_path / "other")
    with pytest.raises(KlrayError, match="13 checkpoints were selected"):
        lens_job(config)


def test_kl_between_layers_is_the_formula_and_its_error(folder_store: Store) -> None:
    columns = [column("plain", 1), layered("a", "logit"), layered("a", "tuned-0a1b2c3d"), layered("deeper", "logit", 7)]
    add(folder_store, *columns)
    folder_store.publish()
    data = folder_store.dataset().load()
    found = klray.layer_kl(data)
    assert found.sizes["model"] == 5 + 5 + 7
    scale = 1 / (2 * TEXTS.n_bytes.mean() * np.log(2))
    for each in columns[1:]:
        rows = found.isel(model=np.flatnonzero(found["key"].values == each.identity.key))
        values = each.log_likelihood.astype(np.float32).astype(np.float64)
        assert rows["layer"].values.tolist() == list(each.layers)
        np.testing.assert_allclose(rows["kl_final"], (values - values[-1]).var(axis=1) * scale, rtol=1e-12)
        np.testing.assert_allclose(rows["kl_previous"][1:], np.diff(values, axis=0).var(axis=1) * scale, rtol=1e-12)
        assert np.isnan(rows["kl_previous"][0]) and rows["kl_final"][-1] == 0
        d = values[0] - values[-1]
        d = d - d.mean()
        error = np.sqrt(((d**4).mean() - (d**2).mean() ** 2) / N_TEXTS) * scale
        np.testing.assert_allclose(rows["kl_final_standard_error"][0], error, rtol=1e-9)
    kinds = {each.lens: each for each in compare_lenses(found)}
    assert {name: (each.models, each.adjacent_pairs) for name, each in kinds.items()} == {
        "logit": (2, 4 + 6),
        "tuned": (1, 4),
    }
    of_tuned = found.isel(model=np.flatnonzero(found["lens"].values == "tuned-0a1b2c3d"))
    assert kinds["tuned"].first_half_to_final == pytest.approx(float(of_tuned["kl_final"][:3].mean()))
    assert kinds["tuned"].adjacent_median == pytest.approx(float(of_tuned["kl_previous"].median()))


def test_a_recipe_clips_the_layers_and_leaves_its_texts_out(folder_store: Store) -> None:
    add(folder_store, column("plain", 1), layered("a", "logit"))
    folder_store.publish()
    data = folder_store.dataset().load()
    mean_bytes = float(np.delete(TEXTS.n_bytes, [0, 3]).mean())
    recipe = Recipe(data.attrs["text_set"], N_TEXTS, 0.02, -520.0, 0.1, 100, (0, 3), mean_bytes)
    found = klray.layer_kl(data, recipe)
    values = np.maximum(layered("a", "logit").log_likelihood.astype(np.float32), -520.0)[:, recipe.text_kept]
    scale = 1 / (2 * TEXTS.n_bytes[recipe.text_kept].mean() * np.log(2))
    expected = np.diff(values.astype(np.float64), axis=0).var(axis=1) * scale
    np.testing.assert_allclose(found["kl_previous"][1:], expected, rtol=1e-6)


def test_a_snapshot_without_layers_says_how_to_get_them(folder_store: Store) -> None:
    add(folder_store, column("plain", 1))
    folder_store.publish()
    with pytest.raises(KlrayError, match=r"none of the 1 model .*scoring\.lens=logit"):
        klray.layer_kl(folder_store.dataset())


def test_a_layer_whose_predecessor_is_not_there_has_no_kl_to_it(folder_store: Store) -> None:
    add(folder_store, layered("a", "logit"))
    folder_store.publish()
    found = klray.layer_kl(folder_store.dataset().isel(model=[0, 1, 4]))
    assert np.isnan(found["kl_previous"].values).tolist() == [True, False, True]


def test_a_lens_that_is_not_there_is_refused_before_anything_is_scored(tmp_path: Path) -> None:
    with pytest.raises(KlrayError, match=r"scoring\.lens=logits: write none, logit"):
        scoring_settings(ScoringConfig(lens="logits"))
    with pytest.raises(KlrayError, match="holds no tuned lens"):
        scoring_settings(ScoringConfig(lens=str(tmp_path)))
    Translators.zeros(1, 8).save(tmp_path)
    with pytest.raises(KlrayError, match=r"holds tuned-\w{8} .*tuned-00000000"):
        load_lens(ScoringSettings(lens="tuned-00000000", lens_folder=str(tmp_path)))
