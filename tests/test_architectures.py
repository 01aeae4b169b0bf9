"""Some of the architectures of ``python -m tests.architectures``, each another kind of model or of refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from klray.errors import CheckpointError
from klray.likelihood import loading
from klray.likelihood.score import score
from klray.likelihood.tokens import encode
from tests import tiny_models
from tests.architectures import __main__ as table
from tests.architectures.scored import NATS, definition, scored
from tests.architectures.tiny import ARCHITECTURES, Architecture

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
BY_NAME = {each.name: each for each in ARCHITECTURES}


@pytest.mark.parametrize(
    ("name", "in_place"),
    [
        *(("falcon", True), ("granitemoehybrid", True), ("qwen3_next", False), ("gemma3", False), ("rwkv", False)),
        *(("llava", False), ("idefics3", True)),
    ],
)
def test_two_checkpoints_one_after_the_other_equal_the_definition(tmp_path: Path, name: str, in_place: bool) -> None:
    made = scored(BY_NAME[name], tmp_path)
    assert made.error is not None and made.error < NATS
    assert (made.head, made.in_place) == ("tiled", in_place)


def test_a_head_that_reads_what_another_layer_makes_is_left_to_the_model(tmp_path: Path) -> None:
    made = scored(BY_NAME["rembert"], tmp_path)
    assert made.head == "model" and made.error is not None and made.error < NATS


def test_a_model_that_draws_random_numbers_is_refused(tmp_path: Path) -> None:
    made = scored(BY_NAME["reformer"], tmp_path)
    assert made.refusal.startswith("load_failed: ReformerModelWithLMHead draws random numbers")


@pytest.mark.parametrize("name", ["paligemma", "electra", "idefics", "qwen2_5_omni"])
def test_what_sees_ahead_or_takes_no_text_alone_is_refused(tmp_path: Path, name: str) -> None:
    made = scored(BY_NAME[name], tmp_path)
    assert made.is_right and made.refusal.startswith("not_causal")


def test_the_table_has_thirty_architectures_and_tells_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(ARCHITECTURES) >= 30
    wrong = Architecture("llama", "cannot be built", {"num_attention_heads": 3})
    monkeypatch.setattr(table, "ARCHITECTURES", (BY_NAME["gpt2"], wrong))
    assert table.main(["gpt2"]) == 0
    assert "| gpt2 | learned positions | scored | " in capsys.readouterr().out
    assert table.main([]) == 1
    assert "wrong: llama" in capsys.readouterr().err


def test_a_model_that_changes_its_parameters_is_not_scored_as_another(tmp_path: Path) -> None:
    """RWKV halves weights of its later layers before its first pass, once for each copy that shares them."""
    made = BY_NAME["rwkv"]
    tokens = encode(tiny_models.byte_level_tokenizer(), tiny_models.texts())
    with pytest.raises(CheckpointError, match="RwkvForCausalLM changes its parameters when it is run"):
        score(made.model(1), tokens)
    model = made.model(1)
    with torch.no_grad():
        model(torch.arange(4)[None])
    expected = definition(made.model(1), tokens, torch.float64)
    torch.set_num_threads(2)  # two streams
    for _ in range(2):
        assert abs(score(model, tokens, tokens_per_batch=100).values - expected).max() < NATS


def test_experts_are_loaded_in_float64_too(tmp_path: Path) -> None:
    folder = tiny_models.save_checkpoint(tmp_path, "olmoe")
    tokens = encode(tiny_models.byte_level_tokenizer(), tiny_models.texts())
    found = score(loading.load(folder, "float64").model, tokens).values
    expected = definition(tiny_models.tiny_model("olmoe"), tokens, torch.float64)
    assert abs(found - expected).max() < 1e-9
