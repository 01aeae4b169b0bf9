"""Every stored tensor is in memory as it is stored, or the checkpoint is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from klray import config as configs
from klray.checkpoints.tensors import read_tensors
from klray.config.sweep import scoring_settings
from klray.errors import CheckpointError, KlrayError
from klray.likelihood import loading as models
from klray.weights.sketch import sketch
from tests import tiny_models
from tests.tiny_models import as_pickle, parameters, save_checkpoint, with_other_config

pytestmark = pytest.mark.usefixtures("one_thread")
Tensors = dict[str, torch.Tensor]


def with_tensors(folder: Path, change: Callable[[Tensors], Tensors | None]) -> Path:
    """A checkpoint whose file holds other tensors."""
    stored = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    changed = change(stored)
    save_file(stored if changed is None else changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def refused(folder: Path, words: str, **arguments: Any) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        models.load(folder, **arguments)
    assert caught.value.reason == "load_failed"


def test_layers_that_the_config_does_not_take_are_refused_and_allowed_by_name(tmp_path: Path) -> None:
    folder = with_other_config(save_checkpoint(tmp_path, layers=3), num_hidden_layers=2)
    refused(folder, r"12 tensors .*gpt_neox.layers.2.attention.dense.bias, .*\.\.\.; .*another model.*allow_unused=\['")
    refused(folder, r"tensors", allow_unused=["gpt_neox.layers.2.mlp*"])
    loaded = models.load(folder, allow_unused=["gpt_neox.layers.2.*"])
    assert len(loaded.unused) == 12
    assert scoring_settings(configs.ScoringConfig(allow_unused=["a.*"])).allow_unused == ("a.*",)


def test_biases_of_another_class_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = tiny_models.tiny_config("llama").to_dict()
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, "attention_bias": True}))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    with_other_config(tmp_path, model_type="mistral", architectures=["MistralForCausalLM"])
    refused(tmp_path, "self_attn.k_proj.bias")


def test_a_head_of_its_own_beside_tied_embeddings_is_taken_or_refused(tmp_path: Path) -> None:
    """The config says that they are tied: the stored head is in memory all the same, or nothing is."""
    folder = save_checkpoint(tmp_path, "gpt2")
    with_tensors(folder, lambda stored: {**stored, "lm_head.weight": stored["transformer.wte.weight"] + 1})
    model = models.load(folder).model
    assert torch.equal(model.lm_head.weight, model.transformer.wte.weight + 1)


@pytest.mark.parametrize("experts", [2, 8])
def test_experts_that_the_config_does_not_count_are_refused(tmp_path: Path, experts: int) -> None:
    folder = save_checkpoint(tmp_path, "olmoe")
    assert models.load(folder).unused == ()  # fused when they are loaded, and found in memory all the same
    refused(with_other_config(folder, num_experts=experts), "experts|gate")


def test_a_converted_tensor_that_is_not_what_was_stored_is_found(tmp_path: Path, monkeypatch: Any) -> None:
    folder = save_checkpoint(tmp_path, "olmoe")
    build = models._build

    def swapped(*arguments: Any, **named: Any) -> Any:
        model, unexpected = build(*arguments, **named)
        experts = model.model.layers[1].mlp.experts.down_proj
        experts.data = experts.data.flip(0)
        return model, unexpected

    monkeypatch.setattr(models, "_build", swapped)
    refused(folder, r"experts.0.down_proj.weight")


def test_what_is_known_to_change_nothing_may_be_there(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    expected = parameters(models.load(folder).model)
    buffers = dict(models.load(folder).model.named_buffers())
    with_tensors(folder, lambda stored: {
        **stored,
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": buffers["gpt_neox.rotary_emb.inv_freq"].half(),
        "mtp.layers.0.weight": torch.ones(3),
    })  # fmt: skip
    assert parameters(models.load(folder).model) == expected


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("gpt_neox.layers.0.attention.bias", torch.rand(3)),  # no mask
        ("gpt_neox.layers.0.attention.query_key_value.lora_A", torch.rand(3, 3)),
    ],
)
def test_what_looks_like_it_and_is_not_is_refused(tmp_path: Path, name: str, tensor: torch.Tensor) -> None:
    folder = save_checkpoint(tmp_path)
    refused(with_tensors(folder, lambda stored: {**stored, name: tensor}), name)


def test_rotary_frequencies_of_another_base_are_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, "llama")
    own = dict(models.load(folder).model.named_buffers())["model.rotary_emb.inv_freq"]
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    models.load(with_tensors(folder, lambda stored: {**stored, name: own.to(torch.bfloat16)}))
    refused(with_tensors(folder, lambda stored: {**stored, name: own**1.3}), name)


def test_rotary_frequencies_of_another_share_of_the_heads_are_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path)
    own = dict(models.load(folder).model.named_buffers())["gpt_neox.rotary_emb.inv_freq"]
    name = "gpt_neox.layers.0.attention.rotary_emb.inv_freq"
    refused(with_tensors(folder, lambda stored: {**stored, name: own.repeat(2)}), name)


def test_layers_that_a_config_calls_heads_of_later_tokens_are_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, "llama", layers=3)
    refused(with_other_config(folder, num_hidden_layers=2, num_nextn_predict_layers=1), r"model.layers.2.")


def test_heads_of_later_tokens_are_layers_after_the_last(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, "llama")
    with_tensors(folder, lambda stored: {**stored, "model.layers.2.eh_proj.weight": torch.rand(4, 4)})
    refused(folder, "model.layers.2.eh_proj.weight")
    models.load(with_other_config(folder, num_nextn_predict_layers=1))


def in_eight_bits(stored: Tensors) -> None:
    stored["gpt_neox.layers.0.attention.dense.weight"] = stored["gpt_neox.layers.0.attention.dense.weight"].to(
        torch.float8_e4m3fn
    )


def in_integers(stored: Tensors) -> None:
    stored["gpt_neox.layers.0.attention.dense.weight"] = torch.ones(32, 32, dtype=torch.int8)


@pytest.mark.parametrize("change", [in_eight_bits, in_integers])
@pytest.mark.parametrize("pickled", [False, True])
def test_codes_without_scales_are_refused_wherever_tensors_are_read(tmp_path: Path, change: Any, pickled: bool) -> None:
    folder = with_tensors(save_checkpoint(tmp_path), change)
    stored = load_file(folder / "model.safetensors")
    refused(as_pickle(folder) if pickled else folder, "attention.dense.weight")
    with pytest.raises(KlrayError, match=r"attention.dense.weight is stored as (float8_e4m3fn|int8)"):
        sketch(stored, 64)


@pytest.mark.parametrize("change", [in_eight_bits, in_integers])
@pytest.mark.parametrize("method", ["nosuch", "mxfp4"])
def test_codes_without_scales_are_refused_whatever_the_config_calls_them(
    tmp_path: Path, change: Any, method: str
) -> None:
    folder = with_tensors(save_checkpoint(tmp_path), change)
    refused(with_other_config(folder, quantization_config={"quant_method": method}), "attention.dense.weight")


@pytest.mark.parametrize("method", ["mxfp4", "fp8", "bitsandbytes"])
def test_a_config_that_calls_plain_weights_quantised_is_refused(tmp_path: Path, method: str) -> None:
    config = {"quant_method": method, **({"load_in_8bit": True} if method == "bitsandbytes" else {})}
    refused(with_other_config(save_checkpoint(tmp_path), quantization_config=config), "none of its tensors holds codes")


def test_a_name_in_two_shards_is_of_one_tensor(tmp_path: Path) -> None:
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    tensor = torch.tensor([1.0, float("nan")])
    save_file({"a": tensor, "b": torch.tensor(1.0)}, one)
    save_file({"a": tensor}, other)
    assert read_tensors([one, other]).keys() == {"a", "b"}
    for unlike in (tensor + 1, tensor[:1].clone(), tensor.half()):
        save_file({"a": unlike}, other)
        with pytest.raises(CheckpointError, match=r"a twice, in one.safetensors and in other.safetensors") as caught:
            read_tensors([one, other])
        assert caught.value.reason == "load_failed"


def test_not_a_number_is_what_was_stored(tmp_path: Path) -> None:
    def damaged(stored: Tensors) -> None:
        stored["gpt_neox.layers.0.attention.dense.weight"][3, 3] = float("nan")

    assert models.load(with_tensors(save_checkpoint(tmp_path), damaged)).unused == ()


@pytest.mark.parametrize("dtype", ["float7", "int4", 8, {"a": "b"}])
def test_a_dtype_that_torch_does_not_know_is_refused_or_of_no_consequence(tmp_path: Path, dtype: Any) -> None:
    folder = save_checkpoint(tmp_path)
    expected = parameters(models.load(folder).model)
    try:
        found = parameters(models.load(with_other_config(folder, dtype=dtype)).model)
    except CheckpointError as error:
        assert error.reason == "load_failed"
    else:
        assert found == expected
