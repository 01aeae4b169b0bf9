"""Published log-likelihoods join a store: of these texts alone, as columns that say where they are from."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import klray
from klray.analysis import relatives
from klray.errors import KlrayError
from klray.store import Store
from klray.store.adopted.adopting import Source, adopt, check_texts
from klray.store.adopted.files import read_published
from klray.store.text_facts import text_facts
from klray.texts import TextSet
from tests.stores import column
from tests.test_cli import klray as command

N = 1200
SIZES = np.random.default_rng(0).integers(257, 1024, N)
TEXTS = TextSet("pile", tuple("x" * int(size) for size in SIZES), tuple(("web", "code")[i % 2] for i in range(N)))
SOURCE = Source("modelmap", dtype="float16")


def values(*seed: int) -> np.ndarray:
    """What a model would have on these texts: longer ones are less likely."""
    rng = np.random.default_rng([7, *seed])
    return -SIZES * rng.uniform(0.5, 0.7) - rng.gamma(4.0, 20.0, N)


MODELS = {"org/a": values(1), "org/b": values(2), "org/child-of-a": values(3)}


def saved(folder: Path, name: str, found: Any) -> Path:
    path = folder / name
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(found))
    elif path.suffix == ".json":
        path.write_text(json.dumps(found))
    else:
        np.savez_compressed(path, **found)
    return path


def lists(models: dict[str, np.ndarray]) -> dict[str, list[float]]:
    return {name: each.tolist() for name, each in models.items()}


FILES = {
    "arrays.pkl": MODELS,
    "lists.pkl": lists(MODELS),
    "matrix.pkl": {"names": list(MODELS), "log_likelihood": np.stack(list(MODELS.values()))},
    "described.pkl": [
        {
            **{"model_name": name, "model_type": "llama-3", "model_size": 8, "log-likelihood-10k": each},
            "tags": ["llama", *(["base_model:org/a", "base_model:finetune:org/a"] if "child" in name else [])],
        }
        for name, each in MODELS.items()
    ],
    "lists.json": lists(MODELS),
    "arrays.npz": MODELS,
    "matrix.npz": {"model": np.array(list(MODELS)), "log_likelihood": np.stack(list(MODELS.values()))},
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_columns(name: str, tmp_path: Path) -> None:
    file = read_published(saved(tmp_path, name, FILES[name]), N)
    store = Store.create(str(tmp_path / "store"), TEXTS)
    assert adopt(store, file, SOURCE).new == 3
    assert (adopt(store, file, SOURCE).new, adopt(store, file, SOURCE).present) == (0, 3)
    commits = {commit.identity.repository: commit for commit in store.commits()}
    assert commits.keys() == MODELS.keys()
    for repository, commit in commits.items():
        np.testing.assert_array_equal(store.read_column(commit)[0], MODELS[repository].astype(np.float32))
        assert commit.identity.commit == "adopted:modelmap" and "tokens" not in commit.facts


def test_a_snapshot_says_that_they_were_adopted(tmp_path: Path) -> None:
    store = Store.create(str(tmp_path / "store"), TEXTS)
    adopt(store, read_published(saved(tmp_path, "described.pkl", FILES["described.pkl"]), N), SOURCE)
    store.publish()
    data = store.dataset()
    assert sorted(data["model"].values) == sorted(f"{name}@modelmap+float16" for name in MODELS)
    assert all("not scored by klray" in each for each in data["warnings"].values)
    assert set(data["tokens"].values) == {-1}, "how many tokens there were is not known"
    assert set(data["family"].values) == {"llama-3"} and set(data["size"].values) == {"8b"}
    names = data["repository"].values.tolist()
    assert relatives.parents(data)[names.index("org/child-of-a")] == names.index("org/a")


def test_adopted_columns_never_pass_for_scored_ones(tmp_path: Path) -> None:
    """One store, side by side: another key, another label; and a quantised publication finds its own unquantised."""
    store = Store.create(str(tmp_path / "store"), TEXTS)
    store.add_column(column("a", text_set=TEXTS))
    adopt(store, read_published(saved(tmp_path, "a.pkl", MODELS), N), SOURCE)
    eight = Source("modelmap", dtype="float16", quantization="int8")
    adopt(store, read_published(saved(tmp_path, "b.pkl", {"org/a": values(1) - 1.5}), N), eight)
    store.publish()
    data = store.dataset()
    labels = data["model"].values.tolist()
    assert {"org/a@main", "org/a@modelmap+float16", "org/a@modelmap+float16+int8"} <= set(labels)
    quantised = labels.index("org/a@modelmap+float16+int8")
    assert relatives.unquantised(data)[quantised] == labels.index("org/a@modelmap+float16")


def test_steps_and_layers(tmp_path: Path) -> None:
    runs = {"410m-seed1": {0: values(1), 1000: values(2), 2000: None}, "70m": {1000: values(3)}}
    path = saved(tmp_path, "runs.pkl", runs)
    with pytest.raises(KlrayError, match=r"adopt\.inner=steps or adopt\.inner=layers"):
        read_published(path, N)
    store = Store.create(str(tmp_path / "store"), TEXTS)
    source = Source("kl-scale", "float16", repository="EleutherAI/pythia-{}", family="pythia")
    assert adopt(store, read_published(path, N, "steps"), source).new == 3
    layers = {"org/deep": {0: values(4), 1: values(5), 2: values(6)}, "org/failed": None}
    file = read_published(saved(tmp_path, "layers.pkl", layers), N, "layers")
    assert adopt(store, file, SOURCE).without == ("org/failed",)
    store.publish()
    data = store.dataset()
    of = dict(zip(data["model"].values, range(data.sizes["model"]), strict=True))
    at = of["EleutherAI/pythia-410m-seed1@step1000+float16"]
    facts = {name: data[name].values[at] for name in ("step", "run", "family", "size")}
    assert facts == {"step": 1000, "run": "EleutherAI/pythia-410m-seed1", "family": "pythia", "size": "410m-seed1"}
    assert [layer for layer in data["layer"].values if layer >= 0] == [0, 1, 2]
    assert klray.layer_kl(data).sizes["model"] >= 3


REFUSED: dict[str, tuple[Any, str]] = {
    "fewer.pkl": ({"org/a": values(1)[:-1]}, "1,199 values, and the texts that were given are 1,200"),
    "order.pkl": ({"org/a": values(1)[np.argsort(values(9))]}, "do not follow the lengths of the texts"),
    "nan.pkl": ({"org/a": np.where(np.arange(N) == 7, np.nan, values(1))}, "org/a has nan at text 7"),
    "positive.pkl": ({"org/a": -values(1)}, "at text 0, and the logarithm of a probability"),
    "words.pkl": ({"org/a": ["x"] * N}, "are no numbers"),
    "nothing.pkl": ({}, "holds no models"),
    "number.pkl": (5, "holds a int"),
    "none.pkl": ({"org/a": None}, "no model in it has values"),
    "shared.pkl": ({f"org/{i}": SHARED for SHARED in [values(1)] for i in range(50)}, "claims 60,000 numbers in"),
    "mixed.pkl": ({"org/a": values(1), "org/b": {0: values(1)}}, "some models have values"),
    "nameless.json": ([{"x": [1.0]}], "a model has no model_name"),
    "other.json": ({"text_set": "0" * 64, "org/a": values(1).tolist()}, "says that it is of text set 00000000"),
    "text.npz": ({"org/a": np.array(["x"] * N)}, "holds no numbers"),
    "objects.npz": ({"org/a": np.array([{}] * N)}, "holds no numbers"),
    "fewer.npz": ({"org/a": values(1)[:5]}, "5 values, and the texts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_belong_is_refused(name: str, tmp_path: Path) -> None:
    found, why = REFUSED[name]
    path = saved(tmp_path, name, found)
    with pytest.raises(KlrayError, match=why):
        check_texts(text_facts(TEXTS), read_published(path, N, "steps" if name == "mixed.pkl" else ""))


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(KlrayError, match=r"klray reads \.pkl, "):
        read_published(tmp_path / "a.csv", N)
    with pytest.raises(KlrayError, match="no such file"):
        read_published(tmp_path / "b.pkl", N)


def test_other_values_under_one_name_are_refused_and_clipped_ones_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store.create(str(tmp_path / "store"), TEXTS)
    adopt(store, read_published(saved(tmp_path, "a.pkl", MODELS), N), SOURCE)
    low = np.quantile(np.stack(list(MODELS.values())), 0.02)
    file = read_published(
        saved(tmp_path, "clipped.pkl", {name: np.maximum(each, low) for name, each in MODELS.items()}), N
    )
    with pytest.raises(KlrayError, match=r"with other values: set adopt\.name="):
        adopt(store, file, SOURCE)
    adopt(store, file, Source("clipped", "float16"))
    assert "they were clipped" in caplog.text
    store.publish()
    said = store.dataset()["warnings"].values.tolist()
    assert sum("values were clipped at" in each for each in said) == 3


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that are not those of the file make no store; then it is made, and a snapshot analysed."""
    monkeypatch.chdir(tmp_path)
    lines = ({"text": text, "pile_set_name": label} for text, label in zip(TEXTS.texts, TEXTS.domains, strict=True))
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    saved(tmp_path, "map.pkl", MODELS)
    words = ["adopt", "adopt.path=map.pkl", "adopt.name=modelmap", "adopt.precision=float16", "store.url=store"]
    code, _, errors = command(capsys, monkeypatch, *words, "texts=jsonl", "texts.path=texts.jsonl", "texts.n=100")
    assert code == 1 and "1,200 values, and the texts that were given are 100" in errors
    assert not (tmp_path / "store").exists()
    code, said, errors = command(capsys, monkeypatch, *words, "texts=jsonl", "texts.path=texts.jsonl")
    assert code == 0, errors
    assert said.startswith("adopted 3 models of map.pkl, 0 were there")
    code, _, errors = command(capsys, monkeypatch, "adopt", "adopt.name=a/b", "adopt.path=x", "store.url=store")
    assert code == 1 and "adopt.name=a/b: use letters" in errors
    with pytest.raises(KlrayError, match="holds 1,200 texts"):
        Store.create(str(tmp_path / "store"), TextSet("other", TEXTS.texts[:5], TEXTS.domains[:5]))
