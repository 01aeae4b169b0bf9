"""What is no causal language model is refused: by its config where that says so, else by what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from klray.errors import CheckpointError
from klray.likelihood import loading as models
from klray.likelihood.causality import check_causal
from klray.likelihood.lens import Lens, layer_log_likelihood
from klray.likelihood.score import log_likelihood
from klray.likelihood.tokens import encode
from klray.measure.exact import exact_log_likelihood
from klray.measure.lens_training import prediction_kl, train_lens
from klray.measure.settings import LensTraining
from klray.measure.token_kl import token_kl
from tests import tiny_models
from tests.tiny_models import save_checkpoint, with_other_config

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = tiny_models.texts()


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"architectures": ["GPTNeoXForSequenceClassification"]}, "classifies"),
        ({"architectures": ["GPTNeoXForTokenClassification"]}, "classifies"),
        ({"architectures": ["GPTNeoXForQuestionAnswering"]}, "marks answers"),
        ({"architectures": ["BertForMaskedLM"]}, "masked model"),
        ({"is_encoder_decoder": True}, "encoder with a decoder"),
        ({"is_causal": False}, "both directions"),
        ({"use_bidirectional_attention": True}, "both directions"),
        ({"text_config": {"use_bidirectional_attention": "all"}}, "both directions"),
        ({"prefix_lm": True}, "both directions"),
        ({"attn_config": {"prefix_lm": True}}, "both directions"),
        *(({"architectures": [name]}, "both directions") for name in ("LlamaBiForMNTP", "LlamaBidirectionalModel")),
    ],
)
def test_a_config_that_says_what_it_is_is_believed(tmp_path: Path, entries: dict[str, Any], words: str) -> None:
    folder = with_other_config(save_checkpoint(tmp_path), **entries)
    with pytest.raises(CheckpointError, match=f"{words}.* choose a causal") as caught:
        models.load(folder)
    assert caught.value.reason == "not_causal"


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPTNeoXForEmbedding", "Eagle"])
def test_a_class_that_transformers_does_not_make_of_the_config_is_refused(tmp_path: Path, name: str) -> None:
    folder = with_other_config(save_checkpoint(tmp_path), architectures=[name])
    with pytest.raises(CheckpointError, match=f"names {name}, and .* makes GPTNeoXForCausalLM") as caught:
        models.load(folder)
    assert caught.value.reason == "load_failed"


@pytest.mark.parametrize("names", [[], ["GPTNEOXForCausalLM"], ["GPTNeoXModel"], ["FlaxGPTNeoXForCausalLM"]])
def test_other_names_of_a_class_are_taken(tmp_path: Path, names: list[str]) -> None:
    assert models.load(with_other_config(save_checkpoint(tmp_path), architectures=names)).parameters > 0


@pytest.mark.parametrize(("name", "value"), [("alibi", False), ("rope", True), ("logit_scale", 0.5)])
def test_what_transformers_passes_over_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    folder = save_checkpoint(tmp_path, "mpt")
    assert models.load(folder).architecture == "MptForCausalLM"
    entries = {name: value} if name == "logit_scale" else {"attn_config": {name: value}}
    with pytest.raises(CheckpointError, match=f"says {name}={value}, which transformers .* passes over"):
        models.load(with_other_config(folder, **entries))


def drawing(least: int = 0) -> Any:
    """Draws random numbers for sequences of ``least`` tokens and more, as Reformer does for long ones."""
    model = tiny_models.tiny_model("llama")

    def jitter(module: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 1e-3 * torch.randn_like(output) if output.shape[1] >= least else output

    model.model.embed_tokens.register_forward_hook(jitter)
    return model


def bidirectional() -> Any:
    model = tiny_models.tiny_model("llama")
    model.config.is_causal = False
    return model


class OneAhead(torch.nn.Module):
    """Gives logits alone, and looks one token ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Embedding(tiny_models.VOCABULARY, tiny_models.VOCABULARY)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        logits = self.inner(input_ids) + self.inner(input_ids.roll(-1, dims=1))
        return type("Output", (), {"logits": logits})()


def short() -> Any:
    model = tiny_models.tiny_model("llama")
    model.config.max_position_embeddings = 20
    return model


TOKENIZER = tiny_models.byte_level_tokenizer()
WAYS = {
    "score": lambda model: log_likelihood(model, TOKENIZER, TEXTS),
    "layers": lambda model: layer_log_likelihood(model, TOKENIZER, TEXTS),
    "compared": lambda model: token_kl(model, tiny_models.tiny_model("llama"), TOKENIZER, TEXTS),
    "compared with": lambda model: token_kl(tiny_models.tiny_model("llama"), model, TOKENIZER, TEXTS),
    "lens": lambda model: train_lens(model, encode(TOKENIZER, TEXTS), LensTraining(steps=1)),
    "lens judged": lambda model: prediction_kl(model, encode(TOKENIZER, TEXTS), Lens()),
    "float64": lambda model: exact_log_likelihood(model.double(), encode(TOKENIZER, TEXTS)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("make", "reason", "words"),
    [
        (bidirectional, "not_causal", "LlamaForCausalLM is no causal language model"),
        (lambda: drawing(40), "load_failed", "LlamaForCausalLM draws random numbers"),
        (drawing, "load_failed", "LlamaForCausalLM draws random numbers"),
        (short, "text_too_long", "context holds 20"),
        (lambda: tiny_models.tiny_model("llama", vocabulary=300), "load_failed", "vocabulary has 300 entries"),
    ],
)
def test_whatever_takes_numbers_from_a_model_refuses_what_scoring_refuses(
    make: Any, reason: str, words: str, way: str
) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        WAYS[way](make())
    assert caught.value.reason == reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [bidirectional, lambda: tiny_models.tiny_model("bert")])
def test_a_model_that_sees_what_follows_is_refused(make: Any, dtype: torch.dtype) -> None:
    with pytest.raises(CheckpointError, match=r"no causal language model: what follows .* \d") as caught:
        log_likelihood(make().to(dtype), tiny_models.tokenizer_for("llama"), TEXTS)
    assert caught.value.reason == "not_causal"


def test_one_token_ahead_is_enough_and_a_head_is_not_needed() -> None:
    with pytest.raises(CheckpointError, match="OneAhead is no causal"):
        log_likelihood(OneAhead(), tiny_models.byte_level_tokenizer(), TEXTS)
    with pytest.raises(CheckpointError, match="OneAhead is no causal"):
        log_likelihood(OneAhead(), tiny_models.byte_level_tokenizer(), ["x y"])


def test_a_model_that_sees_what_follows_is_refused_after_reuse_too(tmp_path: Path) -> None:
    tokenizer = tiny_models.byte_level_tokenizer()
    folders = [tmp_path / str(seed) for seed in (1, 2)]
    for seed, folder in enumerate(folders):
        tiny_models.tiny_model("bert", seed=seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    loaded = None
    for folder in folders:
        loaded = models.load(folder, reuse=loaded)
        with pytest.raises(CheckpointError, match="BertLMHeadModel is no causal"):
            log_likelihood(loaded.model, tokenizer, TEXTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["gpt_neox", "olmoe", "mamba", "gemma2", "bloom", "phi3", "recurrent_gemma"])
def test_causal_models_pass_with_room(architecture: str, dtype: torch.dtype) -> None:
    model = tiny_models.tiny_model(architecture, dtype=dtype)
    with torch.no_grad():
        for seed in range(3):
            probe = torch.from_numpy(np.random.default_rng(seed).integers(2, tiny_models.VOCABULARY, 32))
            check_causal(model, probe, tiny_models.VOCABULARY)
