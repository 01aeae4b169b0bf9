"""The embedded family, trained by its smallest recipe: files as on the hub, the same bytes again, resumed, guarded."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from klray.errors import KlrayError
from klray.texts import python_stdlib, stdlib_documents
from klray.tiny.family import family_root, train_family
from klray.tiny.family_recipe import DEFAULT, SMALLEST, FamilyRecipe, Size, training_documents
from klray.tiny.training import draw_blocks, learning_rate

pytestmark = pytest.mark.slow

FIRST, SECOND = (run.repository for run in SMALLEST.runs)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the trained smallest family alone."""
    cache = tmp_path_factory.mktemp("family")
    shutil.copytree(train_family(SMALLEST).parent, family_root(SMALLEST, cache).parent)
    return cache


@pytest.fixture(scope="module")
def root(cache: Path) -> Path:
    return family_root(SMALLEST, cache)


def weights(repository: Path) -> dict[str, bytes]:
    """Revision -> its weight file."""
    return {path.parent.name: path.read_bytes() for path in repository.glob("*/model.safetensors")}


def log_likelihood(folder: Path, texts: tuple[str, ...]) -> float:
    """Nats per text on average, one text at a time."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        ids = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
        return float(np.mean([-model(i, labels=i).loss.item() * (i.shape[1] - 1) for i in ids]))


def is_complete(recipe: FamilyRecipe, cache: Path) -> bool:
    """Whether every model of a family is made: its ``complete.json`` comes last."""
    folders = [family_root(recipe, cache) / made.repository for made in recipe.all]
    return all((folder / "complete.json").exists() for folder in folders)


def test_layout(cache: Path, root: Path) -> None:
    assert is_complete(SMALLEST, cache)
    assert not is_complete(DEFAULT, cache)
    assert (FIRST, SECOND) == ("klray/tiny-46k-seed1", "klray/tiny-46k-seed2")
    steps = {f"step{step}" for step in (0, 1, 2, *range(4, 41, 4))}
    for name in (FIRST, SECOND):
        repository = root / name
        assert {path.name for path in repository.iterdir()} == {*steps, "repo.json", "complete.json"}
        assert json.loads((repository / "repo.json").read_text()) == {}
        for step in steps:
            assert {path.name for path in (repository / step).iterdir()} == {
                "config.json",
                "generation_config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
            }


def test_every_checkpoint_has_weights_of_its_own(root: Path) -> None:
    both = [*weights(root / FIRST).values(), *weights(root / SECOND).values()]
    assert len(set(both)) == len(both) == 2 * len(SMALLEST.saved_steps)


def test_loads_as_a_gpt_neox_model(root: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(root / FIRST / "step40")
    assert model.config.model_type == "gpt_neox"
    assert model.config.max_position_embeddings == 1024
    (size,) = SMALLEST.sizes
    assert model.num_parameters() == size.parameters(SMALLEST.vocabulary) == 45_536
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("size", DEFAULT.sizes, ids=lambda size: size.name)
def test_sizes_are_named_for_their_parameters(size: Size) -> None:
    assert size.name == f"{size.parameters(DEFAULT.vocabulary) / 1e6:.1f}m"


def test_tokenizer_keeps_every_text_and_adds_nothing(root: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(root / FIRST / "step0")
    assert len(tokenizer) == SMALLEST.vocabulary
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == 0
    hardest = "東京 🙂\r\n\t\x00" + "\u2603" * 300
    for text in (*python_stdlib(n=40).texts, hardest):
        encoded = tokenizer(text)
        assert set(encoded) == {"input_ids", "attention_mask"}
        assert 0 not in encoded["input_ids"]
        assert tokenizer.decode(encoded["input_ids"], clean_up_tokenization_spaces=False) == text
        assert len(encoded["input_ids"]) <= len(text.encode()) <= 1024


def test_training_makes_unseen_texts_likelier(root: Path) -> None:
    texts = python_stdlib(n=8).texts
    values = [log_likelihood(root / FIRST / f"step{step}", texts) for step in (0, 20, 40)]
    assert values == sorted(values)
    assert values[-1] - values[0] > 300  # 553 nats a text, measured
    losses = json.loads((root / FIRST / "complete.json").read_text())["losses_nats_per_token"]
    assert len(losses) == SMALLEST.steps
    # Initial weights are small, so that all 512 tokens are nearly equally likely.
    assert losses[0] == pytest.approx(math.log(512), rel=0.05)
    assert losses[-1] < losses[0] - 0.4


def test_an_interrupted_run_alone_is_trained_again_and_comes_out_the_same(
    cache: Path, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    copy = family_root(SMALLEST, tmp_path)
    # What is left when training stops while the weights of step 8 are written.
    (copy / SECOND / "complete.json").unlink()
    for step in SMALLEST.saved_steps:
        if step >= 8:
            shutil.rmtree(copy / SECOND / f"step{step}")
    (copy / SECOND / ".step8").mkdir()
    (copy / SECOND / "step4/model.safetensors").write_bytes(b"of another machine")
    kept = (copy / FIRST / "step40/model.safetensors").stat().st_ino
    assert not is_complete(SMALLEST, tmp_path)

    # Two callers at once: one trains, the other waits and finds it done.
    with caplog.at_level(logging.INFO, logger="klray"), ThreadPoolExecutor(2) as pool:
        assert set(pool.map(lambda _: train_family(SMALLEST, tmp_path), range(2))) == {copy}
    messages = [record.message for record in caplog.records]
    assert sum("training 1 of 2 models, 40 steps in all" in message for message in messages) == 1
    assert sum("another process is training it" in message for message in messages) <= 1
    assert any("40 of 40 steps" in message and "loss 46k-seed2" in message for message in messages)

    assert is_complete(SMALLEST, tmp_path)
    assert (copy / FIRST / "step40/model.safetensors").stat().st_ino == kept
    assert not (copy / SECOND / ".step8").exists()
    assert weights(copy / SECOND) == weights(root / SECOND)

    caplog.clear()
    train_family(SMALLEST, tmp_path)
    assert not caplog.records


def test_a_failed_training_says_why_and_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    recipe = dataclasses.replace(SMALLEST, seeds=(1,))
    texts = family_root(recipe, tmp_path).parent / "texts"
    texts.mkdir(parents=True)
    (texts / "code.npy").write_bytes(b"damaged")
    with pytest.raises(KlrayError, match=r"(?s)klray\.tiny\.training .*seed1 .*Error.*again"):
        train_family(recipe, tmp_path)
    assert not is_complete(recipe, tmp_path)
    with pytest.raises(KlrayError, match=r"workers=0: training needs at least one"):
        train_family(SMALLEST, tmp_path, workers=0)


def test_kept_under_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert family_root(SMALLEST) == tmp_path / "klray/embedded" / SMALLEST.fingerprint() / "hub"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert family_root(SMALLEST).is_relative_to(tmp_path / "home/.cache/klray/embedded")
    assert not list(tmp_path.iterdir())


def test_import_is_silent_and_light(tmp_path: Path) -> None:
    program = "import sys, klray.tiny.family; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")
    assert not list(tmp_path.iterdir())


def test_recipe_goes_through_its_file(tmp_path: Path) -> None:
    for recipe in (DEFAULT, SMALLEST):
        recipe.write(tmp_path)
        assert FamilyRecipe.read(tmp_path) == recipe


def test_fingerprint_sees_every_part_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"sizes": (dataclasses.replace(SMALLEST.sizes[0], heads=2),)},
        {"seeds": (1, 3)},
        {"steps": 44},
        {"sizes": (dataclasses.replace(SMALLEST.sizes[0], learning_rate=1e-3),)},
        {"vocabulary": 513},
        {"bytes_per_domain": 100_001},
    ]
    fingerprints = [dataclasses.replace(SMALLEST, **change).fingerprint() for change in changes]
    monkeypatch.setattr("klray.tiny.family_recipe.RECIPE_VERSION", 0)
    fingerprints.append(SMALLEST.fingerprint())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
    fingerprints.append(SMALLEST.fingerprint())
    assert len(set(fingerprints)) == len(fingerprints)


def test_default_recipe() -> None:
    assert [run.repository for run in DEFAULT.runs] == [
        f"klray/tiny-{size}-seed{seed}" for size in ("0.7m", "0.4m") for seed in (1, 2)
    ]
    assert DEFAULT.saved_steps == (0, 1, 2, 4, 8, 16, *range(20, 601, 20))


def test_learning_rate_rises_then_falls_along_a_cosine() -> None:
    rates = [learning_rate(step, DEFAULT, 2e-3) for step in range(1, DEFAULT.steps + 1)]
    peak = DEFAULT.warmup_steps - 1
    assert rates[0] == pytest.approx(2e-3 / DEFAULT.warmup_steps)
    assert rates[peak] == max(rates) == 2e-3
    assert np.all(np.diff(rates[peak:]) < 0)
    assert rates[-1] == pytest.approx(2e-3 * DEFAULT.final_learning_rate_share)
    middle = (DEFAULT.warmup_steps + DEFAULT.steps) // 2
    assert rates[middle - 1] == pytest.approx((rates[peak] + rates[-1]) / 2)


def test_blocks_are_windows_half_of_each_stream() -> None:
    streams = [np.arange(1000, 1100, dtype=np.uint16), np.arange(2000, 2009, dtype=np.uint16)]
    blocks = draw_blocks(streams, 4000, 8, np.random.default_rng(0)).numpy()
    assert blocks.shape == (4000, 9)
    assert np.all(np.diff(blocks, axis=1) == 1)
    assert set(blocks[:2000, 0]) == set(range(1000, 1092))  # each window that fits, the last one too
    assert set(blocks[2000:, 0]) == {2000}


def test_training_documents_are_of_the_training_half_and_enough() -> None:
    half = set(stdlib_documents("train"))
    for bytes_per_domain in (100_000, 1_000_000):
        chosen = training_documents(bytes_per_domain)
        assert set(chosen) <= half
        for domain in ("code", "prose"):
            sizes = [len(document.text.encode()) for document in chosen if document.domain == domain]
            available = sum(len(document.text.encode()) for document in half if document.domain == domain)
            assert sum(sizes[:-1]) < bytes_per_domain
            assert sum(sizes) >= min(bytes_per_domain, available)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sizes": ()}, "no sizes or no seeds"),
        ({"sizes": DEFAULT.sizes[:1] * 2}, r"two sizes one name: \['0\.4m', '0\.4m'\]"),
        ({"seeds": (1, 1)}, "gives a seed twice"),
        ({"sizes": (Size("x", hidden=30, layers=1, learning_rate=1e-3),)}, "heads do not divide its width"),
        ({"steps": 0}, "steps or save_every below 1"),
        ({"batch_blocks": 3}, "odd number of batch_blocks"),
        ({"block_tokens": 1025}, "block_tokens outside 1 to 1,024"),
        ({"vocabulary": 256}, "vocabulary outside 257 to 65,536"),
        ({"bytes_per_domain": 1}, "bytes_per_domain below 100,000"),
    ],
)
def test_recipes_that_cannot_be_trained(change: dict[str, Any], words: str) -> None:
    with pytest.raises(KlrayError, match=f"the recipe of the embedded family .*{words}"):
        dataclasses.replace(DEFAULT, **change)
