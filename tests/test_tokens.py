from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from klray.errors import CheckpointError, KlrayError
from klray.likelihood.tokens import Tokens, encode, plan
from tests import tiny_models

TEXTS = ["", *tiny_models.texts()]


@pytest.mark.parametrize("bos", [False, True])
def test_encode_gives_each_text_what_the_tokenizer_gives_it_alone(bos: bool) -> None:
    tokenizer = tiny_models.byte_level_tokenizer(bos=bos)
    tokens = encode(tokenizer, TEXTS)
    assert len(tokens) == len(TEXTS)
    assert tokens.ids.dtype == np.int32
    for n, text in enumerate(TEXTS):
        assert tokens[n].tolist() == tokenizer(text)["input_ids"]
        assert tokenizer.decode(tokens[n], skip_special_tokens=True) == text
    assert tokens.lengths[0] == bos  # the empty text
    assert tokens.counted.tolist() == [max(len(tokenizer(text)["input_ids"]) - 1, 0) for text in TEXTS]


def test_encode_neither_truncates_nor_pads_nor_warns_when_the_tokenizer_s_files_ask_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny_models.byte_level_tokenizer().backend_tokenizer, model_max_length=4, pad_token="x"
    )
    tokenizer.backend_tokenizer.enable_truncation(max_length=3)
    tokenizer.backend_tokenizer.enable_padding(length=7)
    tokenizer.save_pretrained(tmp_path)
    assert '"max_length": 3' in (tmp_path / "tokenizer.json").read_text()
    transformers.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        tokens = encode(transformers.AutoTokenizer.from_pretrained(tmp_path), TEXTS)
    transformers.logging.disable_propagation()
    expected = encode(tiny_models.byte_level_tokenizer(), TEXTS)
    assert np.array_equal(tokens.ids, expected.ids)
    assert np.array_equal(tokens.offsets, expected.offsets)
    assert not caplog.records


@pytest.mark.parametrize(("odd", "name"), [(None, "NoneType"), (b"bytes", "bytes"), (1.5, "float")])
def test_what_is_no_text_is_named_with_its_place(odd: Any, name: str) -> None:
    with pytest.raises(KlrayError, match=f"text 1 is no str but {name}"):
        encode(tiny_models.byte_level_tokenizer(), ["a", odd, odd])


def test_a_tokenizer_that_pads_in_batches_is_refused() -> None:
    class Padding:
        def __call__(self, texts: str | list[str], **_: Any) -> dict[str, Any]:
            if isinstance(texts, str):
                return {"input_ids": [1] * len(texts)}
            return {"input_ids": [[1] * 9 for _ in texts]}

    with pytest.raises(KlrayError, match=r"Padding gives text 1 3 tokens .* 9 .*in a batch"):
        encode(Padding(), ["ab", "abc", "a"])


def test_no_texts_and_one_str() -> None:
    tokens = encode(tiny_models.byte_level_tokenizer(), [])
    assert (len(tokens), len(tokens.ids), len(tokens.lengths)) == (0, 0, 0)
    tokens.check_context(1)
    tokens.check_vocabulary(1)
    with pytest.raises(KlrayError, match="pass a list of texts"):
        encode(tiny_models.byte_level_tokenizer(), "one text")


def test_indexing_is_that_of_a_sequence() -> None:
    tokens = Tokens(ids=np.array([5, 6, 7], np.int32), offsets=np.array([0, 2, 2, 3]))
    assert [ids.tolist() for ids in tokens] == [[5, 6], [], [7]]
    assert tokens[-1].tolist() == [7]
    with pytest.raises(IndexError, match="text 3 of 3"):
        tokens[3]


def test_texts_longer_than_the_context_are_refused() -> None:
    tokens = Tokens(ids=np.zeros(12, np.int32), offsets=np.array([0, 2, 7, 12]))
    tokens.check_context(5)
    tokens.check_context(None)
    with pytest.raises(CheckpointError, match=r"text 1 has 5 .* 4; 2 of 3 texts .* never") as caught:
        tokens.check_context(4)
    assert caught.value.reason == "text_too_long"


def test_token_ids_outside_the_vocabulary_are_refused() -> None:
    tokens = Tokens(ids=np.array([1, 2, 9, 3], np.int32), offsets=np.array([0, 2, 2, 4]))
    tokens.check_vocabulary(10)
    tokens.check_vocabulary(None)
    with pytest.raises(CheckpointError, match=r"text 2 has token id 9 .* 9 .* checkpoint") as caught:
        tokens.check_vocabulary(9)
    assert caught.value.reason == "load_failed"


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 200))
def test_a_plan_holds_every_text_once_within_its_budget(lengths: list[int], budget: int) -> None:
    made = plan(np.array(lengths, dtype=np.int64), budget)
    planned = [int(text) for batch in made for text in batch]
    assert sorted(planned) == [n for n, length in enumerate(lengths) if length >= 2]
    for batch in made:
        assert len(batch) == 1 or len(batch) * max(lengths[n] for n in batch) <= budget
    ordered = [lengths[n] for n in planned]
    assert ordered == sorted(ordered, reverse=True)


def test_equal_lengths_and_budgets_give_equal_plans_without_waste() -> None:
    lengths = np.random.default_rng(0).normal(300, 60, 256).astype(int)
    first, second = plan(lengths, 2048), plan(lengths.copy(), 2048)
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in second]
    slots = sum(len(batch) * lengths[batch].max() for batch in first)
    assert lengths.sum() > 0.98 * slots
    with pytest.raises(KlrayError, match="tokens_per_batch is 0"):
        plan(lengths, 0)
