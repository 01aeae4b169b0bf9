"""Tokenizers of GGUF files: ids of the tokenizer that the model was trained with, or a refusal."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from klray.errors import CheckpointError
from klray.likelihood.gguf_tokenizer import WAYS
from klray.likelihood.tokenizer import load_tokenizer, tokenizer_fingerprint
from klray.likelihood.tokens import encode
from tests.gguf_files import model_of, write
from tests.test_tokenizers import TEXTS, sentencepiece_model
from tests.tiny_models import byte_level_tokenizer, texts

AWKWARD = [
    *texts(),
    "two  spaces 12345 and 3.14",
    " in front",
    "behind ",
    "a\ttab\n\n\nlines\r\n",
    "don't DON'T we'll",
    "  ",
]


@pytest.fixture(scope="module")
def model() -> Any:
    return model_of("llama")


@pytest.fixture
def made(tmp_path: Path, model: Any) -> Any:
    def make(tokenizer: Any = None, **more: Any) -> Path:
        (tmp_path / "file").mkdir(exist_ok=True)
        tokenizer = tokenizer or byte_level_tokenizer(bos=True)
        return write(tmp_path / "file" / "model.gguf", model, tokenizer, "llama", **more)

    return make


def ids(tokenizer: Any) -> list[list[int]]:
    return [each.tolist() for each in encode(tokenizer, AWKWARD)]


@pytest.mark.parametrize("bos", [True, False])
def test_ids_are_those_of_the_tokenizer_that_the_file_was_made_from(made: Any, bos: bool) -> None:
    own = byte_level_tokenizer(bos=bos)
    assert ids(load_tokenizer(made(own))) == ids(own)


def trained(cut: Any) -> Any:
    """A byte-level tokenizer that cuts texts in another way, with merges that show it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["12345 123 3.14 12 1212 " * 9, *AWKWARD], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def test_digits_stand_alone_where_the_name_says_so(made: Any) -> None:
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alone = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), cut])
    joined = trained(cut)
    file = made(joined, **{"tokenizer.ggml.pre": "smollm"})
    assert ids(load_tokenizer(made(joined))) == ids(joined)
    joined.backend_tokenizer.pre_tokenizer = alone
    expected = ids(joined)
    file = made(joined, **{"tokenizer.ggml.pre": "smollm"})
    assert ids(load_tokenizer(file)) == expected


def test_words_that_are_tokens_are_not_merged_for_llama_3(made: Any) -> None:
    own = byte_level_tokenizer(bos=True)
    tokenizer = load_tokenizer(made(own, **{"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": None}))
    assert tokenizer.backend_tokenizer.model.ignore_merges
    assert tokenizer("a")["input_ids"][0] == 1  # llama.cpp's default there
    none = load_tokenizer(made(own, **{"tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.add_bos_token": None}))
    assert not none.backend_tokenizer.model.ignore_merges and none("a")["input_ids"][0] != 1


@pytest.mark.parametrize("name", sorted(WAYS))
def test_every_way_of_cutting_gives_the_texts_back(name: str, made: Any) -> None:
    tokenizer = load_tokenizer(made(**{"tokenizer.ggml.pre": name}))
    for text in AWKWARD:
        bare = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(bare, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"tokenizer.ggml.pre": "superbpe"}, "cuts texts into words in the way 'superbpe'"),
        ({"tokenizer.ggml.pre": None}, "cuts texts into words in the way ''"),
        ({"tokenizer.ggml.model": "rwkv"}, "a tokenizer of the kind 'rwkv'"),
        ({"tokenizer.ggml.model": "t5"}, "a tokenizer of the kind 't5'"),
        ({"tokenizer.ggml.model": None}, "has no tokenizer"),
        ({"tokenizer.ggml.merges": None}, "without its merges"),
        ({"tokenizer.ggml.bos_token_id": 400}, "names token 400 .bos., and has 320"),
        ({"tokenizer.ggml.merges": ["a"]}, "cannot be loaded"),
        ({"tokenizer.ggml.tokens": ["a" * 2000, "b"]}, "2,000 characters in a token, and 1,024 is the limit"),
        (
            {"tokenizer.ggml.tokens": [f"t{n}" for n in range(30_000)], "tokenizer.ggml.token_type": [3] * 30_000},
            "30,000 special tokens, and 20,000 is the limit",
        ),
        ({"tokenizer.ggml.tokens": ["a", "a", "b"], "tokenizer.ggml.token_type": [1, 1, 1]}, "token"),
    ],
)
def test_what_is_not_known_of_a_tokenizer_is_refused(more: dict[str, Any], words: str, made: Any) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load_tokenizer(made(**more))
    assert caught.value.reason == "load_failed"


def test_the_tokenizer_beside_a_file_is_taken_and_must_count_as_the_file_does(made: Any) -> None:
    file = made(**{"tokenizer.ggml.pre": "superbpe"})  # not looked at
    own = byte_level_tokenizer(bos=True)
    own.save_pretrained(file.parent)
    assert ids(load_tokenizer(file)) == ids(own)
    before = tokenizer_fingerprint(file)
    other = byte_level_tokenizer(bos=True)
    tokens = [other.convert_ids_to_tokens(number) for number in range(320)]
    tokens[290], tokens[291] = tokens[291], tokens[290]
    file = made(**{"tokenizer.ggml.tokens": tokens})
    with pytest.raises(CheckpointError, match="for token 290"):
        load_tokenizer(file)
    assert tokenizer_fingerprint(file) != before


@pytest.mark.parametrize("space", [True, False])
def test_a_sentencepiece_vocabulary_gives_the_ids_of_sentencepiece(space: bool, made: Any) -> None:
    body = sentencepiece_model(
        model_type="bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=space,
    )
    own = sentencepiece.SentencePieceProcessor(model_proto=body)
    pieces = range(own.get_piece_size())

    def kind(number: int) -> int:
        checks = ((2, own.is_unknown), (3, own.is_control), (5, own.is_unused), (6, own.is_byte))
        return next((each for each, check in checks if check(number)), 1)

    file = made(
        **{
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": [own.id_to_piece(number) for number in pieces],
            "tokenizer.ggml.scores": [own.get_score(number) for number in pieces],
            "tokenizer.ggml.token_type": [kind(number) for number in pieces],
            "tokenizer.ggml.merges": None,
            "tokenizer.ggml.add_bos_token": None,
            "tokenizer.ggml.add_space_prefix": space,
        }
    )
    tokenizer = load_tokenizer(file)
    for text in [*TEXTS, *AWKWARD, "<s>"]:
        assert tokenizer(text)["input_ids"] == [1, *own.encode(text)]


def test_fingerprints_follow_the_tokenizer_not_the_weights(made: Any, tmp_path: Path) -> None:
    first = tokenizer_fingerprint(made())
    other = write(tmp_path / "other.gguf", model_of("llama", seed=1), byte_level_tokenizer(bos=True), "llama")
    assert tokenizer_fingerprint(other) == first
    assert tokenizer_fingerprint(made(**{"tokenizer.ggml.add_bos_token": False})) != first
    shutil.rmtree(tmp_path / "file")
