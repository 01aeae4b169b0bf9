"""Lenses: every layer's log-likelihoods against a few lines of torch, whatever the architecture; where layers end."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import klray
from klray.config import LensConfig
from klray.config.measure import lens_folder
from klray.errors import CheckpointError, KlrayError
from klray.likelihood.lens import Lens, Translators, is_unfinished, layer_log_likelihood, load_translators
from klray.likelihood.lens.structure import find_layers
from klray.likelihood.score import score
from klray.likelihood.tokens import encode
from tests import tiny_models

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["", *tiny_models.texts()]
LAYERS = 3
BUDGET = 200
# The final norm, found by hand; what follows it, if anything.
NORMS = {
    "gpt_neox": "gpt_neox.final_layer_norm",
    "gpt2": "transformer.ln_f",
    "llama": "model.norm",
    "qwen2": "model.norm",
    "gemma2": "model.norm",
    "mistral": "model.norm",
    "opt": "model.decoder.final_layer_norm+model.decoder.project_out",
    "bloom": "transformer.ln_f",
    "cohere": "model.norm",
    "granite": "model.norm",
    "mamba": "backbone.norm_f",
}


def layered(architecture: str) -> Any:
    """A tiny model of ``LAYERS`` layers whose final norm differs from its other norms."""
    model = tiny_models.tiny_model(architecture, layers=LAYERS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in NORMS[architecture].split("+"):
            for parameter in model.get_submodule(name).parameters():
                parameter.mul_(0.5 + torch.rand(parameter.shape, generator=generator))
    return model


def by_hand(model: Any, tokens: Any, norm: str, translators: Translators | None = None) -> np.ndarray:
    """(L + 1, N) by the definition: one text per forward pass, full logits, float64; scale and soft-cap from config."""
    model = copy.deepcopy(model).double()
    config = model.config
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    rows = np.zeros((LAYERS + 1, len(tokens)))
    for text, ids in enumerate(tokens):
        if len(ids) < 2:
            continue
        ids_T = torch.tensor(ids, dtype=torch.int64)
        with torch.no_grad():
            output = model(ids_T[None], output_hidden_states=True, use_cache=False)
            states = output.hidden_states
            if config.model_type == "mamba":  # whose first one is the output of the first layer
                states = (model.get_input_embeddings()(ids_T[None]), *states)
            for layer in range(LAYERS + 1):
                logits = output.logits[0]
                if layer < LAYERS:
                    hidden = states[layer][0]
                    if translators is not None:
                        matrix, bias = translators.matrices_LDD[layer].double(), translators.biases_LD[layer].double()
                        hidden = hidden + hidden @ matrix.T + bias
                    for name in norm.split("+"):
                        hidden = model.get_submodule(name)(hidden)
                    logits = model.get_output_embeddings()(hidden) * scale
                    logits = cap * torch.tanh(logits / cap) if cap else logits
                log_p = logits[:-1].log_softmax(-1).gather(1, ids_T[1:, None])
                rows[layer, text] = float(log_p.sum())
    return rows


@pytest.mark.parametrize("architecture", list(NORMS))
def test_every_layer_is_the_norm_and_the_head_of_its_hidden_state(architecture: str) -> None:
    model = layered(architecture)
    tokenizer = tiny_models.tokenizer_for(architecture)
    found = layer_log_likelihood(model, tokenizer, TEXTS, tokens_per_batch=BUDGET)
    assert (found.dtype, found.shape) == (np.float64, (LAYERS + 1, len(TEXTS)))
    own = klray.log_likelihood(model, tokenizer, TEXTS, tokens_per_batch=BUDGET)
    np.testing.assert_allclose(found[-1], own, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found, by_hand(model, encode(tokenizer, TEXTS), NORMS[architecture]), rtol=0, atol=2e-3)
    assert np.abs(np.diff(found, axis=0)).max(axis=1).min() > 0.01  # the layers do differ


@pytest.mark.parametrize("architecture", list(NORMS))
def test_the_final_norm_is_found_without_its_name_and_accepted_by_it(architecture: str) -> None:
    model = layered(architecture)
    probe = torch.arange(3, 23)
    with torch.no_grad():
        assert "+".join(find_layers(model, probe).names) == NORMS[architecture]
        assert "+".join(find_layers(model, probe, NORMS[architecture]).names) == NORMS[architecture]


@pytest.mark.parametrize("architecture", ["gpt_neox", "gemma2", "opt"])
def test_a_tuned_lens_moves_each_hidden_state_by_its_map(architecture: str) -> None:
    model, tokenizer = layered(architecture), tiny_models.tokenizer_for(architecture)
    generator = torch.Generator().manual_seed(0)
    translators = Translators(
        torch.randn(LAYERS, 32, 32, generator=generator) / 10, torch.randn(LAYERS, 32, generator=generator) / 10
    )
    found = layer_log_likelihood(model, tokenizer, TEXTS, lens=Lens(translators), tokens_per_batch=BUDGET)
    expected = by_hand(model, encode(tokenizer, TEXTS), NORMS[architecture], translators)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)
    logit = layer_log_likelihood(model, tokenizer, TEXTS, tokens_per_batch=BUDGET)
    assert np.abs(found[:-1] - logit[:-1]).max() > 1.0
    assert np.array_equal(found[-1], logit[-1])
    nothing = layer_log_likelihood(
        model, tokenizer, TEXTS, lens=Lens(Translators.zeros(LAYERS, 32)), tokens_per_batch=BUDGET
    )
    assert np.array_equal(nothing, logit)


def test_a_lens_changes_no_bit_of_a_plain_score_and_leaves_no_hook() -> None:
    model, tokens = tiny_models.tiny_model("llama"), encode(tiny_models.tokenizer_for("llama"), TEXTS)
    before = score(model, tokens, tokens_per_batch=BUDGET)
    model.train()
    with_lens = score(model, tokens, tokens_per_batch=BUDGET, lens=Lens())
    assert model.training and all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    model.eval()
    assert before.layers is None
    assert with_lens.layers is not None
    assert np.array_equal(with_lens.values, with_lens.layers[-1])
    assert np.array_equal(with_lens.values, before.values)


def test_bfloat16_layers_are_near_those_of_float32() -> None:
    model, tokenizer = tiny_models.tiny_model("gpt_neox", layers=LAYERS), tiny_models.tokenizer_for("gpt_neox")
    wide = layer_log_likelihood(model, tokenizer, TEXTS)
    narrow = layer_log_likelihood(model.bfloat16(), tokenizer, TEXTS, lens=Lens(Translators.zeros(LAYERS, 32)))
    assert np.abs(narrow - wide).max() < 0.02 * np.abs(wide).max()
    assert not np.array_equal(narrow, wide)


def test_a_norm_that_is_not_the_final_one_is_refused_by_name() -> None:
    model, probe = layered("llama"), torch.arange(20)
    with torch.no_grad():
        with pytest.raises(CheckpointError, match=r"layers\.0\.input_layernorm after model\.layers"):
            find_layers(model, probe, "model.layers.0.input_layernorm")
        with pytest.raises(KlrayError, match=r"no module 'ln_f'; .* model\.norm,"):
            find_layers(model, probe, "ln_f")
        with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn after .* inf off"):
            find_layers(model, probe, "model.layers.0.self_attn")


def test_what_cannot_be_found_says_which_norms_there_are() -> None:
    model, probe = tiny_models.tiny_model("gpt2"), torch.arange(20)
    inner = model.transformer.ln_f.forward
    model.transformer.ln_f.register_forward_hook(lambda module, args, output: 2 * output, always_call=True)
    with torch.no_grad():
        assert find_layers(model, probe).names == ("transformer.ln_f",)  # hooks of a module are part of it
    # what is called after the last layer does not explain the last hidden state
    model.transformer.ln_f.forward = lambda hidden: inner(hidden) + torch.rand(hidden.shape)
    with (
        torch.no_grad(),
        pytest.raises(CheckpointError, match=r"lens\.norm=PATH, .* transformer\.ln_f"),
    ):
        find_layers(model, probe)


def test_a_model_without_a_head_that_klray_can_use_is_refused() -> None:
    model, tokens = tiny_models.tiny_model("phi3"), encode(tiny_models.tokenizer_for("phi3"), TEXTS)
    with pytest.raises(CheckpointError, match=r"every layer .*scoring\.lens=none"):
        score(model, tokens, lens=Lens())


def test_a_tuned_lens_of_another_shape_is_refused_with_both_shapes() -> None:
    model, tokens = tiny_models.tiny_model("gpt2"), encode(tiny_models.tokenizer_for("gpt2"), TEXTS)
    with pytest.raises(CheckpointError, match=r"5 layers of width 32, .* 2 of width 32"):
        score(model, tokens, lens=Lens(Translators.zeros(5, 32)))


def test_a_lens_comes_back_from_its_folder_and_no_other_takes_its_place(tmp_path: Path) -> None:
    made = Translators(torch.randn(2, 8, 8), torch.randn(2, 8), {"repository": "org/name"})
    made.save(tmp_path / "lens")
    back = load_translators(tmp_path / "lens")
    assert torch.equal(back.matrices_LDD, made.matrices_LDD) and torch.equal(back.biases_LD, made.biases_LD)
    assert (back.fingerprint, back.facts) == (made.fingerprint, {"repository": "org/name"})
    assert Lens(back).name == f"tuned-{made.fingerprint[:8]}" and Lens().name == "logit"
    made.save(tmp_path / "lens")
    with pytest.raises(KlrayError, match=rf"holds another tuned lens \(tuned-{made.fingerprint[:8]}\)"):
        Translators.zeros(2, 8).save(tmp_path / "lens")


def test_a_damaged_lens_is_refused(tmp_path: Path) -> None:
    Translators.zeros(2, 8).save(tmp_path)
    other = Translators(torch.ones(2, 8, 8), torch.zeros(2, 8))
    other.save(tmp_path / "other")
    (tmp_path / "lens.safetensors").write_bytes((tmp_path / "other" / "lens.safetensors").read_bytes())
    with pytest.raises(KlrayError, match=rf"damaged: .*{other.fingerprint[:8]}"):
        load_translators(tmp_path)
    (tmp_path / "lens.safetensors").write_bytes(b"cut")
    with pytest.raises(KlrayError, match="cannot be read"):
        load_translators(tmp_path)
    with pytest.raises(KlrayError, match=r"no tuned lens: .*lens\.json"):
        load_translators(tmp_path / "nowhere")


@pytest.mark.parametrize("stopped_at", [1, 2])
def test_a_process_stopped_while_it_saves_leaves_no_lens_and_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    made, steps = Translators.zeros(2, 8), 0

    def stop(begun: Path, name: Path) -> None:
        nonlocal steps
        steps += 1
        if steps == stopped_at:
            raise KeyboardInterrupt
        begun.rename(name)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", stop)
        made.save(tmp_path)
    assert any(tmp_path.iterdir()) and is_unfinished(tmp_path)
    assert lens_folder(LensConfig(path=str(tmp_path))) == tmp_path
    with pytest.raises(KlrayError, match="holds no tuned lens"):
        load_translators(tmp_path)
    made.save(tmp_path)
    assert load_translators(tmp_path).fingerprint == made.fingerprint
    assert not is_unfinished(tmp_path)


def test_a_lens_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    Translators.zeros(2, 8).save(tmp_path)
    before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    Translators.zeros(2, 8).save(tmp_path)
    assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == before
