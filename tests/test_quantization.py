"""Quantised models: loaded, scored, kept apart from their unquantised selves, and compared with them."""

from __future__ import annotations

import importlib.util
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import klray
from klray import config as configs
from klray import texts
from klray.analysis.kl.chosen_pairs import pair_divergence
from klray.analysis.relatives import unquantised
from klray.checkpoints import Hub, RepositorySpec, Selection, resolve
from klray.config import measure as measure_configs
from klray.config import sweep as sweep_configs
from klray.errors import CheckpointError, KlrayError
from klray.likelihood import loading as models
from klray.likelihood import score as likelihood
from klray.likelihood.choices import QUANTIZATIONS, lacks_quantization
from klray.likelihood.quantised import Counted, refuse_mostly_left
from klray.likelihood.tokenizer import load_tokenizer
from klray.likelihood.tokens import encode
from klray.store import Store
from klray.sweep.settings import ScoringSettings
from klray.tiny.family import train_family
from tests import tiny_models
from tests.scorers import scorer_here
from tests.snapshot_data import labelled
from tests.tiny_models import TRAINED

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

QUANTIZED = QUANTIZATIONS[1:]
TEXTS = texts.python_stdlib(n=32)
REPOSITORY = TRAINED.runs[0].repository


@pytest.fixture(scope="module")
def trained() -> Path:
    return train_family(TRAINED) / REPOSITORY


@pytest.mark.parametrize("name", QUANTIZED)
def test_layers_are_quantised_and_the_head_is_not(trained: Path, name: str) -> None:
    loaded = models.load(trained / "step120", quantization=name)
    plain = models.load(trained / "step120")
    layer = loaded.model.gpt_neox.layers[0].attention.dense
    assert type(layer).__name__ == ("Linear8bitLt" if name == "int8" else "Linear4bit")
    assert layer.weight.dtype == (torch.int8 if name == "int8" else torch.uint8)
    if name != "int8":
        assert (layer.weight.quant_state.quant_type, layer.compute_dtype) == (name, torch.float16)
    assert torch.equal(loaded.model.lm_head.weight, plain.model.lm_head.weight)
    assert (loaded.parameters, loaded.architecture) == (plain.parameters, plain.architecture)
    assert not loaded.model.training and loaded.stored_quantization == ""


def test_four_bits_are_multiplied_in_bf16_where_the_model_is(trained: Path) -> None:
    loaded = models.load(trained / "step120", "bfloat16", quantization="nf4")
    assert loaded.model.gpt_neox.layers[0].attention.dense.compute_dtype == torch.bfloat16


@pytest.mark.slow
def test_a_quantised_self_is_further_than_noise_and_eight_bits_are_nearer_than_four(trained: Path) -> None:
    folder = trained / "step120"
    encoded = encode(load_tokenizer(folder), TEXTS.texts)
    rows = {}
    for name in QUANTIZATIONS:
        model = models.load(folder, quantization=name).model
        for budget in (1, 256, 1024):
            scored = likelihood.score(model, encoded, tokens_per_batch=budget)
            assert scored.head == "tiled"
            rows[name, budget] = scored.values
    kl = {
        (name, budget, other): klray.kl_divergence(np.stack([row, rows[other, 1024]]), TEXTS.n_bytes)[0, 1]
        for (name, budget), row in rows.items()
        for other in {name, "none"}
    }
    noise = max(kl[name, budget, name] for name, budget in rows)
    assert noise < 1e-9  # measured: 1e-11, in 4 bits
    int8, nf4, fp4 = (kl[name, 1024, "none"] for name in ("int8", "nf4", "fp4"))
    assert 100 * noise < int8 < nf4 < fp4 < 0.1  # measured: 8e-5, 6e-3 and 1.5e-2 bits/byte
    assert int8 < nf4 / 10


@pytest.mark.parametrize("width", [32, 64, 96])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_four_bits_are_what_they_are_called_in_layers_of_any_width(tmp_path: Path, name: str, width: int) -> None:
    """Against the definition: of 64 weights in a row the largest is 1, the others the nearest of 16 values."""
    folder = tiny_models.save_checkpoint(tmp_path, "gpt_neox", width=width)
    original = models.load(folder).model.gpt_neox.layers[1].mlp.dense_h_to_4h
    codes = importlib.import_module("bitsandbytes.backends.utils").CODE[name].numpy()
    blocks = original.weight.detach().numpy().reshape(-1, 64)
    scales = np.abs(blocks).max(axis=1, keepdims=True)
    nearest = codes[np.abs(blocks[..., None] / scales[..., None] - codes).argmin(axis=-1)] * scales
    weight = torch.from_numpy(nearest.reshape(original.weight.shape)).half()
    states = torch.randn(5, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.nn.functional.linear(states.half(), weight, original.bias.half()).float()
        found = models.load(folder, quantization=name).model.gpt_neox.layers[1].mlp.dense_h_to_4h(states)
    # Products in fp16; a weight halfway between two values may go to either. Wrong scales change nearly all, by tenths.
    assert ((found - expected).abs() > 4e-3).float().mean() < 0.02


@pytest.mark.parametrize("width", [32, 64, 96])
def test_eight_bits_are_what_they_are_called(tmp_path: Path, width: int) -> None:
    """Against the definition: rows of weights and of activations in steps of their largest / 127."""
    folder = tiny_models.save_checkpoint(tmp_path, "gpt_neox", width=width)
    original = models.load(folder).model.gpt_neox.layers[1].mlp.dense_h_to_4h
    states = torch.randn(5, width, generator=torch.Generator().manual_seed(1))

    def rounded(rows: torch.Tensor) -> torch.Tensor:
        step = rows.abs().amax(dim=1, keepdim=True) / 127
        return (rows / step).round() * step

    with torch.no_grad():
        expected = rounded(states.half().float()) @ rounded(original.weight.half().float()).T + original.bias
        found = models.load(folder, quantization="int8").model.gpt_neox.layers[1].mlp.dense_h_to_4h(states)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=5e-3)


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_quantised_model_is_given_up_and_never_reused(trained: Path, name: str) -> None:
    first = models.load(trained / "step60", quantization=name)
    tokenizer = load_tokenizer(trained / "step60")
    before = klray.log_likelihood(first.model, tokenizer, TEXTS.texts[:4])
    second = models.load(trained / "step120", quantization=name, reuse=first)
    assert second is not first and second.model is not first.model
    assert {tensor.device.type for tensor in first.model.parameters()} == {"meta"}
    again = models.load(trained / "step60", quantization=name, reuse=second)
    assert klray.log_likelihood(again.model, tokenizer, TEXTS.texts[:4]).tolist() == before.tolist()


def test_quantised_and_plain_models_do_not_follow_each_other_in_one_object(trained: Path) -> None:
    plain = models.load(trained / "step60")
    quantised = models.load(trained / "step120", quantization="int8", reuse=plain)
    assert quantised is not plain
    after = models.load(trained / "step120", reuse=quantised)
    assert after is not quantised
    fresh = models.load(trained / "step120")
    assert all(torch.equal(*each) for each in zip(after.model.parameters(), fresh.model.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8", "nf4"])
def test_a_checkpoint_that_is_stored_quantised_is_taken_as_it_is(trained: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "stored"
    original = models.load(trained / "step120", quantization=name)
    original.model.save_pretrained(folder)
    for file in (trained / "step120").glob("tokenizer*"):
        shutil.copy(file, folder)
    loaded = models.load(folder)
    assert loaded.stored_quantization == "bitsandbytes"
    tokenizer = load_tokenizer(folder)
    expected = klray.log_likelihood(models.load(trained / "step120", quantization=name).model, tokenizer, TEXTS.texts)
    (folder / "model.safetensors").write_bytes(b"written over")  # the model owns its memory
    assert klray.log_likelihood(loaded.model, tokenizer, TEXTS.texts).tolist() == expected.tolist()
    with pytest.raises(CheckpointError, match=r"quantised \(bitsandbytes\), .*=fp4"):
        models.load(folder, quantization="fp4")


def test_a_quantised_head_is_left_to_the_model_and_said(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = models.load(trained / "step120").model
    head = bitsandbytes.nn.Linear8bitLt(64, 1024, bias=False, has_fp16_weights=False)
    head.weight = bitsandbytes.nn.Int8Params(model.lm_head.weight.data.clone(), requires_grad=False)
    model.lm_head = head.to("cpu")
    tokenizer = load_tokenizer(trained / "step120")
    with caplog.at_level(logging.WARNING, "klray"):
        scored = likelihood.score(model, encode(tokenizer, TEXTS.texts[:2]))
    assert scored.head == "model"
    assert "it has no plain linear head" in caplog.text


def test_names_that_there_are_not_are_answered_with_those_that_there_are(tmp_path: Path) -> None:
    answer = r"scoring.quantization=int4: there is no such quantisation; write none, int8, fp4 or nf4$"
    with pytest.raises(KlrayError, match=answer):
        sweep_configs.scoring_settings(configs.ScoringConfig(quantization="int4"))
    with pytest.raises(KlrayError, match=answer):
        models.load(tmp_path, quantization="int4")


def test_without_bitsandbytes_one_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    answer = r"scoring.quantization=nf4 needs bitsandbytes: pip install 'klray\[quant\]'$"
    with pytest.raises(KlrayError, match=answer):
        models.load(tmp_path, quantization="nf4")
    scoring = configs.ScoringConfig(quantization="nf4")
    assert re.match(answer, sweep_configs.lacks_libraries(configs.RaySettings(), scoring))
    assert sweep_configs.scoring_settings(scoring).quantization == "nf4"  # klray plan needs no library
    assert lacks_quantization("none") == ""


def test_without_its_library_a_stored_quantised_checkpoint_says_so(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stored"
    models.load(trained / "step120", quantization="nf4").model.save_pretrained(folder)
    program = f"""
import importlib.metadata, importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "bitsandbytes" else found(name, *more)
from klray.likelihood import loading as models
try:
    models.load({str(folder)!r})
except models.CheckpointError as error:
    print(error.reason, error)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.startswith("load_failed ")
    assert "is stored quantised (bitsandbytes)" in said
    assert "pip install 'klray[quant]'" in said


def test_experts_that_stay_as_they_were_are_said(caplog: pytest.LogCaptureFixture) -> None:
    usual = ("layers.0.mlp.gate.weight", "layers.0.mlp.router.weight", "layers.0.mixer.conv1d.weight")
    with caplog.at_level(logging.WARNING, "klray"):
        refuse_mostly_left(object(), "int8", Counted(9.0, 0.9, usual))
        assert not caplog.text
        refuse_mostly_left(object(), "int8", Counted(9.0, 0.9, ("layers.0.mlp.experts.gate_up_proj", *usual)))
    assert "layers.0.mlp.experts.gate_up_proj" in caplog.text and "mlp.gate" not in caplog.text


def test_noise_is_measured_on_models_as_they_are() -> None:
    settings = ScoringSettings(quantization="int8")
    with pytest.raises(KlrayError, match=r"klray noise .* float64"):
        measure_configs.noise_ways(configs.NoiseConfig(), settings)


def test_nothing_is_printed_while_a_quantised_model_is_loaded_and_scored(trained: Path) -> None:
    program = f"""
import klray
from klray.likelihood import loading as models
from klray.likelihood.tokenizer import load_tokenizer
for name in ("int8", "nf4"):
    loaded = models.load({str(trained / "step120")!r}, quantization=name)
    klray.log_likelihood(loaded.model, load_tokenizer({str(trained / "step120")!r}), ["a text of some words"])
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    said = run.stdout + run.stderr
    # transformers imports torchao where it is installed, which says what it lacks
    lines = [line for line in said.splitlines() if "torchao" not in line and "_pytree" not in line]
    assert lines == []


def test_columns_of_every_quantisation_stand_side_by_side_and_make_pairs(trained: Path, tmp_path: Path) -> None:
    """Through the scorer, as a sweep's workers have it, to a snapshot and its pairs."""
    found, unavailable = resolve(
        Hub("http://127.0.0.1:9", ""), Selection("local", (RepositorySpec(str(trained), ["step60", "step120"]),))
    )
    assert not unavailable
    store = Store.create(str(tmp_path / "store"), TEXTS)
    for name in QUANTIZATIONS:
        settings = sweep_configs.scoring_settings(
            configs.ScoringConfig(quantization=name, cache_dir=str(tmp_path / "cache"))
        )
        scorer = scorer_here(Hub("http://127.0.0.1:9", ""), store.url, TEXTS, settings)
        assert all(scorer.score(checkpoint).first for checkpoint in found)
    commits = store.commits()
    assert len({commit.key for commit in commits}) == 2 * len(QUANTIZATIONS)
    assert {commit.identity.quantization for commit in commits} == set(QUANTIZATIONS)
    assert all(commit.versions["bitsandbytes"] for commit in commits)
    store.publish()
    snapshot = klray.open_dataset(store.url)
    of = unquantised(snapshot)
    quantised = np.flatnonzero(of >= 0)
    assert len(quantised) == 2 * len(QUANTIZED)
    pairs = np.stack([of[quantised], quantised], axis=1)
    found_kl, found_error = pair_divergence(snapshot["log_likelihood"], pairs)
    kl = klray.kl_divergence(snapshot["log_likelihood"].values, snapshot["text_bytes"].values)
    error = klray.kl_standard_error(snapshot["log_likelihood"].values, snapshot["text_bytes"].values)
    for (original, itself), pair_kl, pair_error in zip(pairs, found_kl, found_error, strict=True):
        assert snapshot["revision"].values[itself] == snapshot["revision"].values[original]
        assert snapshot["quantization"].values[original] == "none" != snapshot["quantization"].values[itself]
        np.testing.assert_allclose(pair_kl, kl[itself, original], rtol=1e-9)
        np.testing.assert_allclose(pair_error, error[itself, original], rtol=1e-6)
        assert pair_kl > 2 * pair_error > 0  # 32 texts


def test_an_original_is_taken_in_the_quantised_model_s_own_dtype_else_in_the_usual_one() -> None:
    names = [
        *(("a", "none", "float32"), ("a", "int8", "float16"), ("a", "none", "float16"), ("b", "nf4", "float32")),
        *(("c", "none", "float32"), ("c", "none", "bfloat16"), ("c", "nf4", "float16"), ("d", "none", "float32")),
    ]
    values = np.random.default_rng(0).normal(-500, 10, (len(names), 40))
    data = labelled(values, [(f"org/{name}", "main", "", -1) for name, *_ in names], 0, -1)
    for place, coordinate in ((1, "quantization"), (2, "dtype")):
        data[coordinate].values[:] = [each[place] for each in names]
    assert unquantised(data).tolist() == [-1, 2, -1, -1, -1, -1, 4, -1]
    assert unquantised(data, np.arange(len(names)) == 2).tolist() == [-1, 0, -1, -1, -1, -1, 4, -1]
    kl, _ = pair_divergence(data["log_likelihood"], np.array([(1, 2), (0, 0)]))
    expected = (values[1] - values[2]).var() / (2 * data["text_bytes"].values.mean() * np.log(2))
    np.testing.assert_allclose(kl, [expected, 0.0], rtol=1e-5)  # a snapshot's values are float32


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("name", QUANTIZED)
def test_other_architectures(tmp_path: Path, architecture: str, name: str) -> None:
    folder = tiny_models.save_checkpoint(tmp_path, architecture)
    tokenizer: Any = load_tokenizer(folder)
    assert isinstance(tokenizer, transformers.PreTrainedTokenizerBase)
    plain, quantised = (
        klray.log_likelihood(models.load(folder, quantization=each).model, tokenizer, tiny_models.texts())
        for each in ("none", name)
    )
    assert np.isfinite(quantised).all() and np.abs(quantised - plain).max() > 0


@pytest.mark.parametrize(
    ("architecture", "name", "words"),
    [
        ("olmoe", "nf4", r"OlmoeForCausalLM keeps 89% of .*mlp.experts.gate_up_proj.*called nf4 and be none"),
        ("jamba", "int8", r"JambaForCausalLM keeps 81% of .*called int8"),
        ("rwkv", "int8", r"RwkvForCausalLM .* own code reads rwkv.blocks.0.attention.output.weight"),
        ("rwkv", "nf4", r"RwkvForCausalLM .* own code fails \(RuntimeError"),
        ("mamba", "int8", r"MambaForCausalLM .* own code"),
    ],
)
def test_a_name_that_would_be_a_false_one_is_refused(tmp_path: Path, architecture: str, name: str, words: str) -> None:
    folder = tiny_models.save_checkpoint(tmp_path, architecture)
    with pytest.raises(CheckpointError, match=words) as caught:
        models.load(folder, quantization=name)
    assert caught.value.reason == "load_failed"


@pytest.mark.parametrize(("name", "bits"), [("none", 32), ("int8", 8), ("fp4", 4), ("nf4", 4)])
def test_bits_are_counted(tmp_path: Path, name: str, bits: int) -> None:
    loaded = models.load(tiny_models.save_checkpoint(tmp_path, "llama", width=64), quantization=name)
    layers = sum(each.numel() for each in tiny_models.tiny_model("llama", width=64).model.layers.parameters())
    norms = 2 * 2 * 64
    total = 32 * (loaded.parameters - layers + norms) + (layers - norms) * bits
    scales = {32: 0, 8: 32 / 64, 4: 32 / 64}[bits] * (layers - norms)  # a row of 64 is a block of 64, but for down_proj
    assert loaded.bits_per_parameter == pytest.approx((total + scales) / loaded.parameters, rel=0.02)
    assert loaded.quantised_share == (name != "none")
