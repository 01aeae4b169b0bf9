"""``klray compare``: pairs of a store's settings token by token, kept, gone on with, and shown."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import klray
from jobs.compare import compare
from jobs.report import made
from klray.config import Config, ModelsConfig, RepositoryConfig, ScoringConfig, StoreConfig, TextsConfig, TextSource
from klray.errors import KlrayError
from klray.likelihood import loading
from klray.likelihood.tokenizer import load_tokenizer
from klray.report.sections.section_exact import exact_section
from klray.store import Store
from klray.tiny.hub_server import HubServer
from tests import tiny_models
from tests.study_data import CODE, GRANDCHILD, LAST, LAYERED, MERGED, PARENT, PROSE, SEED2, STILL, Study

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

RUNS = (PARENT, SEED2, LAYERED)
N_TEXTS = 6


@pytest.fixture
def config(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """The study's store, to be written to, and its hub."""
    shutil.copytree(study.store.url, tmp_path / "store")
    found = Config(
        models=ModelsConfig(
            family="tiny_study",
            repositories=[RepositoryConfig(name, "step*") for name in RUNS]
            + [RepositoryConfig(name) for name in (PROSE, CODE, STILL, GRANDCHILD, MERGED)],
        ),
        texts=TextsConfig(n=len(study.texts)),
        store=StoreConfig(url=str(tmp_path / "store")),
        scoring=ScoringConfig(cache_dir=str(tmp_path / "cache")),
    )
    found.compare.texts, found.compare.pairs = N_TEXTS, 1
    found.scale.spacing, found.scale.min_step, found.scale.number = 2, 4, 2
    with HubServer(study.root) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield found


def test_pairs_of_the_settings_are_compared_kept_gone_on_with_and_shown(
    study: Study, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.compare.settings = ["later", "8-bit"]
    first = compare(config)
    assert first["setting"].values.tolist() == ["later", "8-bit"]
    config.compare.settings = ["later", "8-bit", "fine-tuning", "layer"]
    capsys.readouterr()
    result = compare(config)
    said = capsys.readouterr().out
    settings = result["setting"].values.tolist()
    assert settings[:3] == ["later", "8-bit", "fine-tuning"] and set(settings[3:]) == {"layer"}
    assert settings.count("layer") == 2  # of a model of two layers
    for name in ("forward", "estimate"):
        np.testing.assert_array_equal(result[name].values[:2], first[name].values)
    texts = result["text"].values
    assert texts.tolist() == [0, 13, 25, 38, 50, 63]

    folder = study.root / PARENT / LAST
    models = [loading.load(folder, quantization=each).model for each in ("none", "int8")]
    quantised = klray.token_kl(*models, load_tokenizer(folder), [study.texts.texts[n] for n in texts])
    np.testing.assert_allclose(result["text_forward"].values[1], quantised.forward, rtol=1e-3)
    assert float(result["agreement"][1]) == pytest.approx(quantised.summary()["agreement"])
    # what the sweep scored is what is compared
    dataset = study.dataset
    row = [dataset["model"].values.tolist().index(str(result[name].values[2])) for name in ("first", "second")]
    stored = dataset["log_likelihood"].values[row][:, texts]
    np.testing.assert_allclose(result["text_log_likelihood"].values[2], stored, atol=2e-3)
    estimate = klray.kl_divergence(stored.astype(float), dataset["text_bytes"].values[texts])[0, 1]
    assert float(result["estimate"][2]) == pytest.approx(estimate, rel=1e-3)
    assert "fine-tuning" in said and "estimate / exact" in said

    capsys.readouterr()
    xr.testing.assert_identical(compare(config), klray.open_result(config.store.url, "compare").load())
    assert "result compare of this snapshot is there already" in capsys.readouterr().out
    store = Store.open(config.store.url)
    shown = made(store, store.manifest("latest").id, config).compared
    section = exact_section(shown, tmp_path / "figures")
    assert section is not None and section.picture is not None and section.picture.png_base64
    assert [row[0] for row in section.tables[0].rows] == ["later", "8-bit", "fine-tuning", "layer"]


def test_what_cannot_be_compared_is_said(config: Config) -> None:
    config.compare.settings = ["nine-bit"]
    with pytest.raises(KlrayError, match=r"compare.settings=\['nine-bit'\]: there are later"):
        compare(config)
    config.compare.texts = 1
    with pytest.raises(KlrayError, match=r"compare.texts=1: must be 2 or more"):
        compare(config)
    config.compare.texts, config.compare.settings, config.texts.n = 2, [], 8
    with pytest.raises(KlrayError, match="give the texts that the store was made with"):
        compare(config)


def test_two_checkpoints_without_a_store_and_one_with_its_quantised_self(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tiny_models.save_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    config = Config(
        models=ModelsConfig(names=[str(each) for each in folders]),
        texts=short_texts(tmp_path / "texts"),
        scoring=ScoringConfig(cache_dir=str(tmp_path / "cache")),
    )
    found = compare(config)
    models = [loading.load(each).model for each in folders]
    texts = [path.read_text() for path in sorted((tmp_path / "texts").iterdir())]
    direct = klray.token_kl(*models, load_tokenizer(folders[0]), texts).summary()
    assert float(found["exact"][0]) == pytest.approx(direct["exact"], rel=1e-6)
    other = tiny_models.byte_level_tokenizer(bos=True)
    other.save_pretrained(folders[1])
    refused = compare(config)
    assert refused.sizes["pair"] == 0
    assert "make other tokens of these texts" in refused.attrs["refused"]
    assert "a@" in refused.attrs["refused"] and "b@" in refused.attrs["refused"]
    config.models.names = [str(folders[0])]
    with pytest.raises(KlrayError, match="models= selects 1 checkpoint:"):
        compare(config)


def short_texts(folder: Path) -> TextsConfig:
    """Texts that fit into tiny contexts."""
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.txt").write_text(f"text {number} " * 40)
    return TextsConfig(source=TextSource.folder, path=str(folder), pattern="*.txt")
