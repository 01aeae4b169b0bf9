"""A model in memory that takes the numbers of another checkpoint, against fresh loads, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from klray.likelihood import loading as models
from klray.likelihood.score import log_likelihood
from tests import tiny_models
from tests.tiny_models import as_pickle, parameters, save_checkpoint, shard, with_other_config

pytestmark = pytest.mark.usefixtures("one_thread")


def with_both_tied_weights(folder: Path) -> Path:
    stored = load_file(folder / "model.safetensors")
    save_file({**stored, "lm_head.weight": stored["transformer.wte.weight"].clone()}, folder / "model.safetensors")
    return folder


def same(one: Any, two: Any) -> None:
    """Names, dtypes and bits of all parameters and buffers, those that no file holds among them, are equal."""
    facts = [
        {
            name: (tensor.dtype, tensor.contiguous().view(torch.uint8).numpy().tobytes())
            for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
            if tensor.ndim
        }
        for model in (one, two)
    ]
    assert facts[0] == facts[1]


# gpt_neox: renamed in memory; gpt2, gemma2 and opt: tied; mamba: recurrent.
@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt2", "llama", "qwen2", "gemma2", "opt", "mamba"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_put_into_a_model_in_memory_equal_a_fresh_load(
    tmp_path: Path, architecture: str, dtype: models.Dtype
) -> None:
    one, two = (save_checkpoint(tmp_path / str(seed), architecture, seed=seed) for seed in (1, 2))
    first = models.load(one, dtype)
    texts, tokenizer = tiny_models.texts(), tiny_models.tokenizer_for(architecture)
    log_likelihood(first.model, tokenizer, texts)
    addresses = [parameter.data_ptr() for parameter in first.model.parameters()]
    second = models.load(two, dtype, reuse=first)
    assert second.model is first.model
    assert [parameter.data_ptr() for parameter in second.model.parameters()] == addresses
    fresh = models.load(two, dtype)
    assert parameters(second.model) == parameters(fresh.model) != parameters(models.load(one, dtype).model)
    same(second.model, fresh.model)
    scored, expected = (log_likelihood(model.model, tokenizer, texts) for model in (second, fresh))
    assert scored.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt2", "llama"])
def test_shards_put_into_a_model_in_memory_equal_a_fresh_load(
    tmp_path: Path, architecture: str, dtype: models.Dtype
) -> None:
    whole, shards = (save_checkpoint(tmp_path / str(seed), architecture, seed=seed) for seed in (1, 2))
    shard(shards, tiny_models.tiny_model(architecture, seed=2))
    first = models.load(whole, dtype)
    second = models.load(shards, dtype, reuse=first)
    assert second is first
    same(second.model, models.load(shards, dtype).model)
    third = models.load(whole, dtype, reuse=second)
    assert third is first
    same(third.model, models.load(whole, dtype).model)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("architecture", "buffer", "in_place"),
    [
        ("apertus", "mlp.act_fn.beta", True),
        ("glm4_moe", "mlp.gate.e_score_correction_bias", False),  # its experts are fused when they are loaded
    ],
)
def test_buffers_of_a_checkpoint_come_with_it(
    tmp_path: Path, architecture: str, buffer: str, in_place: bool, dtype: models.Dtype
) -> None:
    folders = []
    for seed in (1, 2):
        model = tiny_models.tiny_model(architecture, seed=seed)
        buffers = [tensor for name, tensor in model.named_buffers() if name.endswith(buffer)]
        for tensor in buffers:
            tensor.copy_(torch.full_like(tensor, 0.1 + seed))
        assert buffers
        folders.append(tmp_path / str(seed))
        model.save_pretrained(folders[-1])
        assert any(name.endswith(buffer) for name in load_file(folders[-1] / "model.safetensors"))
    first = models.load(folders[0], dtype)
    second = models.load(folders[1], dtype, reuse=first)
    assert (second is first) == in_place
    same(second.model, models.load(folders[1], dtype).model)
    values = [tensor for name, tensor in second.model.named_buffers() if name.endswith(buffer)]
    assert all(torch.allclose(tensor.float(), torch.tensor(2.1), rtol=1e-2) for tensor in values) and values


def test_a_model_for_all_devices_is_the_same_model(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    one, two = (save_checkpoint(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    first = models.load(one, device="auto")
    second = models.load(two, device="auto", reuse=first)
    assert second is first
    texts, tokenizer = tiny_models.texts(), tiny_models.tokenizer_for("gpt_neox")
    # a GPU where there is one adds in another order
    np.testing.assert_allclose(
        log_likelihood(second.model, tokenizer, texts),
        log_likelihood(models.load(two).model, tokenizer, texts),
        rtol=0,
        atol=1e-3,
    )
    third = models.load(one, "bfloat16", "auto", reuse=second)
    assert third is not second
    assert {parameter.device.type for parameter in second.model.parameters()} == {"meta"}


def test_a_pickle_follows_a_pickle(tmp_path: Path) -> None:
    one, two = (as_pickle(save_checkpoint(tmp_path / str(seed), seed=seed)) for seed in (1, 2))
    first = models.load(one)
    second = models.load(two, reuse=first)
    assert second is first
    assert parameters(second.model) == parameters(models.load(two).model)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: with_other_config(folder, rotary_pct=0.5),
        lambda folder: save_checkpoint(folder, layers=3),
        lambda folder: save_checkpoint(folder, "llama"),
        as_pickle,  # the same tensors, so it may be put in place
    ],
)
def test_another_layout_is_loaded_afresh_and_the_old_model_freed(tmp_path: Path, change: Any) -> None:
    first = models.load(save_checkpoint(tmp_path / "one", seed=1))
    folder = change(save_checkpoint(tmp_path / "two", seed=2))
    second = models.load(folder, reuse=first)
    assert parameters(second.model) == parameters(models.load(folder).model)
    if second is not first:
        assert {parameter.device.type for parameter in first.model.parameters()} == {"meta"}
        third = models.load(tmp_path / "one", reuse=first)  # given up already: no longer of use
        assert third is not first
        assert parameters(third.model) == parameters(tiny_models.tiny_model("gpt_neox", seed=1))


def test_another_dtype_is_loaded_afresh(tmp_path: Path) -> None:
    first = models.load(save_checkpoint(tmp_path), "float32")
    assert models.load(tmp_path, "bfloat16", reuse=first) is not first


def test_tied_weights_stored_twice_are_always_loaded_afresh(tmp_path: Path) -> None:
    one, two = (with_both_tied_weights(save_checkpoint(tmp_path / str(seed), "gpt2", seed=seed)) for seed in (1, 2))
    stored = load_file(two / "model.safetensors")
    stored["lm_head.weight"] += 1  # two's are not tied
    save_file(stored, two / "model.safetensors")
    first = models.load(one)
    second = models.load(two, reuse=first)
    assert second is not first
    assert parameters(second.model) == parameters(models.load(two).model)
    assert not torch.equal(second.model.lm_head.weight, second.model.transformer.wte.weight)
