"""GGUF files: the same log-likelihoods as the same weights in safetensors, or a refusal that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from klray.checkpoints.gguf import TYPES, read_gguf
from klray.checkpoints.tensors import stored_tensors
from klray.errors import CheckpointError, KlrayError
from klray.likelihood.gguf_model import ARCHITECTURES
from klray.likelihood.loading import load, model_shape
from klray.likelihood.score import score
from klray.likelihood.tokenizer import load_tokenizer
from klray.likelihood.tokens import encode
from klray.weights.parameters import parameters
from tests.gguf_files import F16, F32, MADE, Q4_0, Q8_0, model_of, named, save_both, write
from tests.tiny_models import byte_level_tokenizer, texts


def scored(place: Path, **options: Any) -> np.ndarray:
    """Log-likelihoods of the texts, nats."""
    return score(load(place, **options).model, encode(load_tokenizer(place), texts())).values


def refused(place: Path, **options: Any) -> str:
    """Why a file is not loaded."""
    with pytest.raises(CheckpointError) as caught:
        load(place, **options)
    assert caught.value.reason == "load_failed"
    return str(caught.value)


@pytest.fixture(scope="module")
def model() -> Any:
    return model_of("llama")


@pytest.fixture
def made(tmp_path: Path, model: Any) -> Any:
    """Writes a file of one Llama with other metadata."""

    def make(kind: Any = F16, tokenizer: Any = None, **more: Any) -> Path:
        tokenizer = tokenizer or byte_level_tokenizer(bos=True)
        return write(tmp_path / "model.gguf", model, tokenizer, "llama", kind, **more)

    return make


def test_types_are_those_of_the_format() -> None:
    known = {kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    assert all(known[number] == each for number, each in TYPES.items())


def test_every_architecture_that_is_read_is_tested() -> None:
    assert set(ARCHITECTURES) == {named(each) for each in MADE}


@pytest.mark.parametrize("architecture", MADE)
def test_f16_agrees_with_the_same_weights_in_safetensors(architecture: str, tmp_path: Path, one_thread: None) -> None:
    plain, file = save_both(tmp_path, architecture)
    expected, found = scored(plain), scored(file)
    assert np.abs(expected).max() > 100
    # the decay of a state space is stored as an exponential
    np.testing.assert_allclose(found, expected, rtol=3e-6 if architecture == "mamba" else 0, atol=1e-6)


@pytest.mark.parametrize("kind", [Q8_0, Q4_0])
def test_a_quantised_file_is_what_its_blocks_say(kind: Any, made: Any, model: Any) -> None:
    place = made(kind, **{"general.file_type": {Q8_0: 7, Q4_0: 2}[kind]})
    loaded = load(place)
    assert loaded.stored_quantization == kind.name
    assert loaded.bits_per_parameter == pytest.approx({Q8_0: 8.5, Q4_0: 4.5}[kind], abs=0.3)
    assert loaded.quantised_share == 1.0
    gate = model.state_dict()["model.layers.1.mlp.gate_proj.weight"].numpy()
    own = loaded.model.state_dict()["model.layers.1.mlp.gate_proj.weight"].numpy()
    np.testing.assert_array_equal(own, gguf.dequantize(gguf.quantize(gate, kind), kind))
    assert np.abs(own - gate).max() > 0


def test_floats_are_no_quantisation_and_names_that_cannot_be_are_not_believed(made: Any) -> None:
    assert read_gguf(made(F16, **{"general.file_type": 1})).quantization == ""
    assert read_gguf(made(F32, **{"general.file_type": 15})).quantization == ""
    assert read_gguf(made(Q8_0, **{"general.file_type": 1})).quantization == "Q8_0"
    assert read_gguf(made(Q8_0, **{"general.file_type": 10})).quantization == "Q8_0"  # said to be Q2_K


def test_reuse_frees_one_model_and_gives_the_other_the_same_numbers(made: Any, tmp_path: Path) -> None:
    first = load(made())
    other = write(tmp_path / "other.gguf", model_of("llama", seed=1), byte_level_tokenizer(bos=True), "llama")
    fresh = load(other).model.state_dict()
    again = load(other, reuse=first).model.state_dict()
    assert all(torch.equal(fresh[name], again[name]) for name in fresh)
    assert next(first.model.parameters()).is_meta


@pytest.mark.slow
def test_a_file_is_quantised_as_the_same_weights_in_safetensors_are(tmp_path: Path, one_thread: None) -> None:
    pytest.importorskip("bitsandbytes")
    plain, file = save_both(tmp_path, "llama")
    for name in ("int8", "nf4"):
        found = load(file, quantization=name)
        assert found.quantised_share == 1.0 and found.stored_quantization == ""
        tokens = encode(load_tokenizer(plain), texts())
        expected = score(load(plain, quantization=name).model, tokens).values
        np.testing.assert_allclose(score(found.model, tokens).values, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, "rope.scaling.* does not take it up"),
        ({"llama.rope.scaling.factor": 4.0}, r"rope\.scaling\.factor=4\.0"),
        ({"llama.tensor_data_layout": "another"}, "tensor_data_layout=another"),
        ({"llama.rope.freq_base": 500.0, "llama.attention.scale": 0.5}, r"attention\.scale=0\.5"),
        ({"llama.attention.key_length": 8, "llama.rope.dimension_count": 4}, r"rope\.dimension_count=4"),
        ({"llama.expert_count": 8}, r"expert_count=8"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "does not say the epsilon"),
        ({"llama.block_count": None}, r"does not say llama\.block_count"),
        ({"llama.block_count": 3}, "lacks .* of the weights"),
        ({"llama.block_count": 1}, r"tensors that LlamaForCausalLM .* blk\.1\."),
        ({"llama.block_count": 1 << 31}, "block_count=2147483648"),
        ({"llama.vocab_size": 400}, "in other shapes"),
        ({"llama.embedding_length": 1 << 30}, "asks in its config.json for"),
        ({"gemma2.attention.key_length": 4}, r"says gemma2\.attention\.key_length, and is of the architecture llama"),
        ({"general.type": "adapter"}, "is no whole model but adapter"),
        ({"split.count": 3}, "one of several parts"),
    ],
)
def test_what_is_not_taken_up_is_refused(more: dict[str, Any], words: str, made: Any) -> None:
    place = made(**more)
    with pytest.raises(CheckpointError, match=words) as caught:
        load(place)
    assert caught.value.reason == "load_failed"


def test_an_architecture_that_was_not_tried_is_refused(tmp_path: Path, model: Any) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "rwkv7")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "is of the architecture 'rwkv7'" in refused(tmp_path / "a.gguf")


def test_a_tensor_that_no_parameter_takes_is_named_or_allowed(tmp_path: Path, model: Any) -> None:
    model = model_of("llama")
    model.model.layers[1].self_attn.q_proj.bias = torch.nn.Parameter(torch.ones(32))
    place = write(tmp_path / "bias.gguf", model, byte_level_tokenizer(bos=True), "llama")
    assert "blk.1.attn_q.bias" in refused(place)
    assert load(place, allow_unused=["*.attn_q.bias"]).unused == ("blk.1.attn_q.bias",)


def test_rotary_factors_of_another_scaling_are_refused(tmp_path: Path) -> None:
    model = model_of("llama3")
    model.model.rotary_emb.inv_freq *= torch.tensor([1.0, 0.9, 1.0, 1.0])  # and so are the factors that are written
    place = write(tmp_path / "scaled.gguf", model, byte_level_tokenizer(bos=True), "llama")
    assert "rope_freqs.weight" in refused(place)


def test_shape_and_stored_tensors_are_those_of_the_file(made: Any, model: Any) -> None:
    place = made()
    shape = model_shape(place)
    assert (shape.layers, shape.width, shape.vocabulary) == (2, 32, 320)
    stored = stored_tensors(place)
    assert torch.equal(stored["output_norm.weight"], model.model.norm.weight)
    assert torch.equal(stored["blk.0.ffn_up.weight"].float(), model.model.layers[0].mlp.up_proj.weight)
    assert parameters(stored).keys() == stored.keys()


def test_quantised_blocks_are_no_parameters_in_weight_space(made: Any) -> None:
    with pytest.raises(KlrayError, match="quantised before they were stored"):
        parameters(stored_tensors(made(Q8_0)))


def test_without_the_library_one_sentence_says_what_to_install(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("klray.likelihood.gguf_model.lacks_gguf", lambda: "a GGUF file needs gguf")
    assert "a GGUF file needs gguf" in refused(made())
