"""Why a checkpoint cannot be read or run: each kind of cause by its file, its cure and its reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from klray.checkpoints import Hub, RepositorySpec, resolve
from klray.errors import CheckpointError
from klray.likelihood.loading import load
from klray.likelihood.tokenizer import load_tokenizer, tokenizer_fingerprint
from klray.sweep.model import Compute
from klray.sweep.settings import ScoringSettings
from klray.texts import TextSet
from tests.hub_faults import select
from tests.tiny_models import save_checkpoint, with_other_config

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 123\n"
Damage = Callable[[Path], Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("sound"), "llama")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def holds(name: str, body: str | bytes, *without: str) -> Damage:
    def damage(folder: Path) -> None:
        for each in without:
            (folder / each).unlink()
        (folder / name).write_bytes(body.encode() if isinstance(body, str) else body)

    return damage


def says(**changes: Any) -> Damage:
    return lambda folder: with_other_config(folder, **changes)


def tokenizer_says(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def weights(change: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return damage


def header(**tensors: Any) -> Damage:
    body = json.dumps(tensors).encode()
    return holds("model.safetensors", len(body).to_bytes(8, "little") + body + bytes(64))


def cut_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    body = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(body[: len(body) // 2])


def only_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    tokenizer_says(tokenizer_class="LlamaTokenizer")(folder)


SPAN = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
CAUSES: dict[str, tuple[Damage, str]] = {
    "pointer for weights": (holds("model.safetensors", POINTER), "model.safetensors is a Git LFS pointer"),
    "pointer for config": (holds("config.json", POINTER), "config.json is a Git LFS pointer"),
    "pointer for tokenizer": (holds("tokenizer.json", POINTER), "tokenizer.json is a Git LFS pointer"),
    "pointer for index": (
        holds("model.safetensors.index.json", POINTER, "model.safetensors"),
        "model.safetensors.index.json of .* is a Git LFS pointer",
    ),
    "pointer for pickle": (holds("pytorch_model.bin", POINTER, "model.safetensors"), "run git lfs pull"),
    "page for weights": (holds("model.safetensors", "<!DOCTYPE html>"), "safetensors is a web page"),
    "page for tokenizer": (holds("tokenizer_config.json", "<html>"), "tokenizer_config.json is a web page"),
    "no JSON": (holds("config.json", "{"), r"config.json cannot be read as JSON \(.*download it again"),
    "other encoding": (holds("config.json", "{}".encode("utf-16")), "config.json cannot be read as JSON"),
    "deep JSON": (holds("config.json", "[" * 10**5), "config.json cannot be read as JSON .*nested"),
    "no object": (holds("tokenizer_config.json", "[]"), "tokenizer_config.json is JSON, but no object"),
    "no tokenizer": (holds("tokenizer.json", "{}"), "tokenizer.json is no tokenizer"),
    "empty": (holds("model.safetensors", ""), "model.safetensors is empty"),
    "cut": (weights(lambda body: body[:-9]), r"not whole: by its header it has [\d,]+ bytes, it has [\d,]+"),
    "longer": (weights(lambda body: body + b"more"), "not whole"),
    "terabytes in the header": (weights(lambda body: (1 << 42).to_bytes(8, "little") + body), "4,398,046,511,104 byte"),
    "terabytes of tensors": (header(a={**SPAN, "data_offsets": [0, 1 << 42]}), "not whole: .*4,398,046,511"),
    "overlap": (header(a=SPAN, b={**SPAN, "data_offsets": [8, 64]}), "overlap or leave gaps at byte 8"),
    "negative": (header(a={**SPAN, "data_offsets": [-16, 0]}), "overlap or leave gaps at byte -16"),
    "backwards": (header(a={**SPAN, "data_offsets": [0, -16]}), "overlap or leave gaps at byte 0"),
    "no offsets": (header(a=7), "its header cannot be read"),
    "cut pickle": (cut_pickle, "pytorch_model.bin is not whole, its end is missing"),
    "dtype": (says(dtype="float33"), "config.json says dtype is 'float33', which transformers"),
    "rope": (says(rope_scaling={"rope_type": "zigzag", "factor": 2.0}), "rope_scaling.rope_type is 'zigzag'"),
    "rope without a type": (says(rope_scaling={"factor": 4.0}), r"factor=4.0 .* names no rope_type"),
    "activation": (says(hidden_act="zelu"), "hidden_act is 'zelu'"),
    "unknown architecture": (says(model_type="new9"), "model_type is 'new9', .* install a version that does"),
    "type of a value": (says(vocab_size="many"), "config.json describes no model .*vocab_size.* expected int"),
    "heads": (says(num_attention_heads=3), r"config.json describes no model .*hidden size \(32\) is not a multiple"),
    "encoder and decoder": (says(model_type="t5", architectures=None), "no causal language model"),
    "own code": (
        says(model_type="new9", auto_map={"AutoConfig": "own.Config"}),
        r"code of its own \(own.Config\), which klray never runs",
    ),
    "own tokenizer": (
        tokenizer_says(tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Tokenizer", None]}),
        r"code of its own \(own.Tokenizer\)",
    ),
    "weights elsewhere": (says(transformers_weights="../x.safetensors"), "weights are in ../x.safetensors"),
}


@pytest.mark.parametrize(("damage", "words"), CAUSES.values(), ids=CAUSES)
def test_each_cause_names_its_file_and_its_cure(folder: Path, damage: Damage, words: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        tokenizer_fingerprint(folder)
        load(folder)
        load_tokenizer(folder)
    assert caught.value.reason in ("load_failed", "not_causal")
    assert ": " in caught.value.message and "Error" not in caught.value.message.partition("(")[0]


@pytest.mark.parametrize(
    ("damage", "library"),
    [
        (only_sentencepiece, "sentencepiece"),
        (holds("tokenizer.model", "IQ== 0\nIg== 1\n", "tokenizer.json"), "tiktoken"),
    ],
)
def test_a_library_that_is_missing_has_the_right_name(
    folder: Path, damage: Damage, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("klray.checkpoints.causes._is_here", lambda module: module != library)
    damage(folder)
    tokenizer_says(tokenizer_class="LlamaTokenizer")(folder)
    with pytest.raises(CheckpointError, match=f"needs {library}, which is not installed: pip install {library}"):
        load_tokenizer(folder)


def test_a_model_that_cannot_be_run_says_so(tmp_path: Path) -> None:
    folder = with_other_config(
        save_checkpoint(tmp_path, "gpt_neox"),
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 3.0},
    )
    (checkpoint,), _ = resolve(Hub("http://127.0.0.1:9"), select(RepositorySpec(str(folder))))
    scoring = Compute(ScoringSettings(), TextSet("short", ("a text", "another"), ("", "")))
    with pytest.raises(CheckpointError, match=r"cannot be run: RuntimeError: .*config and its weights do not") as error:
        scoring.score(checkpoint, folder, lambda: None)
    assert error.value.reason == "load_failed"
