from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from klray import config as configs
from klray.config.sweep import lacks_libraries
from klray.errors import CheckpointError, KlrayError
from klray.likelihood import loading as models
from klray.likelihood.quiet import quiet
from klray.likelihood.score import log_likelihood
from klray.likelihood.tokenizer import load_tokenizer, tokenizer_fingerprint
from tests import tiny_models
from tests.tiny_models import as_pickle, parameters, save_checkpoint, shard, with_other_config

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt2", "llama"])
def test_load_gives_the_model_that_was_saved(tmp_path: Path, architecture: str) -> None:
    loaded = models.load(save_checkpoint(tmp_path, architecture))
    original = tiny_models.tiny_model(architecture)
    assert parameters(loaded.model) == parameters(original)
    assert not loaded.model.training
    assert loaded.architecture == type(original).__name__
    assert loaded.parameters == sum(parameter.numel() for parameter in original.parameters())
    assert loaded.context == tiny_models.CONTEXT
    texts = tiny_models.texts()
    tokenizer = load_tokenizer(tmp_path)
    expected = log_likelihood(original, tiny_models.tokenizer_for(architecture), texts)
    assert log_likelihood(loaded.model, tokenizer, texts).tobytes() == expected.tobytes()


def test_files_on_the_hub_keep_names_that_the_model_no_longer_has(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    assert "embed_out.weight" in load_file(folder / "model.safetensors")
    assert "lm_head.weight" in models.load(folder).model.state_dict()


@pytest.mark.parametrize(
    ("dtype", "found"), [("bfloat16", torch.bfloat16), ("float16", torch.float16), ("auto", torch.float32)]
)
def test_dtype(tmp_path: Path, dtype: models.Dtype, found: torch.dtype) -> None:
    model = models.load(save_checkpoint(tmp_path), dtype).model
    assert {parameter.dtype for parameter in model.parameters()} == {found}
    with pytest.raises(KlrayError, match=r"dtype is 'int8': .*float32"):
        models.load(tmp_path, "int8")  # type: ignore[arg-type]


def test_shards_and_pickles_give_the_same_weights(tmp_path: Path) -> None:
    whole, shards = save_checkpoint(tmp_path / "whole"), save_checkpoint(tmp_path / "shards")
    expected = parameters(models.load(whole).model)
    shard(shards, tiny_models.tiny_model("gpt_neox"))
    assert parameters(models.load(shards).model) == expected
    assert parameters(models.load(as_pickle(whole)).model) == expected


def test_safetensors_are_read_where_there_are_both(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    models.load(folder)


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    folder, mark = as_pickle(save_checkpoint(tmp_path / "model")), tmp_path / "ran"
    torch.save({"weight": Payload(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"more than tensors, .*run code") as caught:
        models.load(folder)
    assert caught.value.reason == "no_safe_weights"
    assert not mark.exists()
    with (folder / "pytorch_model.bin").open("wb") as file:  # the format of torch before 1.6
        pickle.dump(Payload(mark), file)
    with pytest.raises(CheckpointError):
        models.load(folder)
    assert not mark.exists()


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    folder, mark = save_checkpoint(tmp_path / "model"), tmp_path / "ran"
    (folder / "modeling_new.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    with_other_config(folder, model_type="new", auto_map={
        "AutoConfig": "modeling_new.NewConfig", "AutoModelForCausalLM": "modeling_new.NewModel"
    })  # fmt: skip
    with pytest.raises(CheckpointError, match=r"code of its own \(modeling_new.NewConfig") as caught:
        models.load(folder)
    assert caught.value.reason == "load_failed"
    assert not mark.exists()


def test_an_attention_kernel_named_in_a_config_is_not_fetched(tmp_path: Path) -> None:
    folder = with_other_config(
        save_checkpoint(tmp_path), attn_implementation="someone/kernel", experts_implementation="a/b"
    )
    config = models.load(folder).model.config
    assert config._attn_implementation == "sdpa" and config._experts_implementation != "a/b"


@pytest.mark.parametrize("lost", ["gpt_neox.layers.1.mlp.dense_4h_to_h.weight", "embed_out.weight"])
def test_missing_weights_are_refused_by_name(tmp_path: Path, lost: str) -> None:
    folder = save_checkpoint(tmp_path)
    stored = load_file(folder / "model.safetensors")
    del stored[lost]
    save_file(stored, folder / "model.safetensors")
    name = lost.replace("embed_out", "lm_head")
    with pytest.raises(CheckpointError, match=f"lacks 1 .*: {name}; .* random") as caught:
        models.load(folder)
    assert caught.value.reason == "load_failed"


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    stored = load_file(folder / "model.safetensors")
    stored["gpt_neox.final_layer_norm.weight"] = torch.ones(7)
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"final_layer_norm.weight .*\(7,\), not \(32,\)") as caught:
        models.load(folder)
    assert caught.value.reason == "load_failed"


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def change_width(folder: Path) -> None:
    with_other_config(folder, hidden_size=64)


def change_type(folder: Path) -> None:
    with_other_config(folder, model_type="vit", architectures=["ViTForImageClassification"])


def leave_only_tensorflow(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "tf_model.h5")


def add_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')


@pytest.mark.parametrize(
    ("damage", "words", "reason"),
    [
        (truncate, r"model.safetensors is not whole: by its header it has [\d,]+ bytes", "load_failed"),
        (break_config, r"config.json cannot be read as JSON .* download it again", "load_failed"),
        (change_width, r"\d+ weights of other shapes than GPTNeoX", "load_failed"),
        (change_type, r"ViTForImageClassification is no causal language model", "not_causal"),
        (
            leave_only_tensorflow,
            r"pytorch_model\*.bin\); found: tf_model.h5",
            "no_safe_weights",
        ),
        (add_adapter, r"an adapter .* merge it", "load_failed"),
        (shutil.rmtree, r"no weights at all.* convert", "no_safe_weights"),
    ],
)
def test_damaged_checkpoints_are_told_apart(tmp_path: Path, damage: Any, words: str, reason: str) -> None:
    folder = save_checkpoint(tmp_path / "model")
    damage(folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        models.load(folder)
    assert caught.value.reason == reason


def test_the_model_owns_its_memory(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    model = models.load(folder).model
    before = parameters(model)
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(bytes((folder / "model.safetensors").stat().st_size))
    assert parameters(model) == before


def test_a_model_for_several_gpus_needs_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)  # as if it were not installed
    with pytest.raises(KlrayError, match=r"accelerate.* 'klray\[multi_gpu\]'"):
        models.load(tmp_path, device="auto")
    answer = lacks_libraries(configs.RaySettings(gpus_per_worker=2), configs.ScoringConfig())
    assert re.match(r"ray.gpus_per_worker=2: a model on several GPUs .* needs accelerate", answer)
    assert lacks_libraries(configs.RaySettings(gpus_per_worker=1), configs.ScoringConfig()) == ""


def test_loading_is_silent_and_leaves_transformers_settings_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_checkpoint(tmp_path)
    capfd.readouterr()
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    assert before[1]
    models.load(folder)
    load_tokenizer(folder)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        models.load(folder)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    state = torch.get_rng_state()
    models.load(folder)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_tokenizer_comes_back_whole(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, "llama")
    texts = tiny_models.texts()
    expected = tiny_models.tokenizer_for("llama")(texts)["input_ids"]
    assert load_tokenizer(folder)(texts)["input_ids"] == expected
    assert expected[0][0] == tiny_models.tokenizer_for("llama").bos_token_id
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer.json is no tokenizer") as caught:
        load_tokenizer(folder)
    assert caught.value.reason == "load_failed"


def test_a_tokenizer_s_fingerprint_follows_its_files_and_nothing_else(tmp_path: Path) -> None:
    one, two, other = (
        save_checkpoint(tmp_path / "1", seed=1),
        save_checkpoint(tmp_path / "2", seed=2),
        save_checkpoint(tmp_path / "3", "llama"),
    )
    fingerprints = [tokenizer_fingerprint(folder) for folder in (one, two, other)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert len(fingerprints[0]) == 64
    settings = json.loads((two / "tokenizer_config.json").read_text())
    (two / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": True}))
    assert tokenizer_fingerprint(two) != fingerprints[0]
    for name in ("tekken.json", "source.spm"):
        before = tokenizer_fingerprint(two)
        (two / name).write_text("tokens")
        assert tokenizer_fingerprint(two) != before
    assert tokenizer_fingerprint(with_other_config(one, model_type="llama")) != fingerprints[0]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match=r"has no tokenizer: none of tokenizer\*"):
        tokenizer_fingerprint(empty)


def test_log_likelihoods_of_a_loaded_checkpoint_are_finite(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, "gpt2")
    values = log_likelihood(models.load(folder, "bfloat16").model, load_tokenizer(folder), tiny_models.texts())
    assert np.isfinite(values).all()


def test_threads_that_load_side_by_side_leave_transformers_settings_as_they_were() -> None:
    before = transformers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()
    first, second = ExitStack(), ExitStack()
    for each in (first, second):
        each.enter_context(quiet())
    first.close()  # who came first leaves first
    assert not transformers.utils.logging.is_progress_bar_enabled()
    second.close()
    assert (transformers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()) == before
