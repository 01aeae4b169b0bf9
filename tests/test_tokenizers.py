"""Ids are those of the file that ships with a model, in bounded time, and hold the text."""

from __future__ import annotations

import io
import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from klray.errors import CheckpointError
from klray.likelihood import tokenizing
from klray.likelihood.tokenizer import load_tokenizer
from klray.likelihood.tokens import encode
from tests import tiny_models
from tests.tiny_models import save_checkpoint

TEXTS = tiny_models.texts()
GPT_4 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(change: Callable[[Tokenizer], None] | None = None) -> Tokenizer:
    """A pipeline of bytes, with <s> and <|endoftext|>."""
    pipeline = Tokenizer.from_str(tiny_models.byte_level_tokenizer().backend_tokenizer.to_str())
    if change is not None:
        change(pipeline)
    return pipeline


def write(folder: Path, pipeline: Tokenizer | None, **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    tiny_models.tiny_config("llama").save_pretrained(folder)
    if pipeline is not None:
        pipeline.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def splits_as_gpt_4(pipeline: Tokenizer) -> None:
    split = pre_tokenizers.Split(Regex(GPT_4), "isolated")
    pipeline.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])


def begins_with_s(pipeline: Tokenizer) -> None:
    pipeline.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", pipeline.token_to_id("<s>"))]
    )


def lower_cases(pipeline: Tokenizer) -> None:
    pipeline.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])


def cuts(pipeline: Tokenizer) -> None:
    pipeline.enable_truncation(3)
    pipeline.enable_padding(length=9, pad_id=5, pad_token=pipeline.id_to_token(40))  # a letter of many words


CLASSES = [
    *("GPT2Tokenizer", "GPT2TokenizerFast", "GPTNeoXTokenizer", "LlamaTokenizer", "Qwen2Tokenizer", "GemmaTokenizer"),
    *("BloomTokenizer", "CohereTokenizer", "CodeLlamaTokenizer", "T5Tokenizer", "PreTrainedTokenizerFast", "Unknown"),
]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("change", [splits_as_gpt_4, begins_with_s, lower_cases])
def test_ids_are_those_of_the_file_whatever_class_is_named(tmp_path: Path, name: str, change: Any) -> None:
    pipeline = byte_level(change)
    folder = write(tmp_path, pipeline, tokenizer_class=name, bos_token="<s>", eos_token="<|endoftext|>")
    tokens = encode(load_tokenizer(folder), TEXTS)
    assert [ids.tolist() for ids in tokens] == [pipeline.encode(text).ids for text in TEXTS]
    assert tokens.tokenizer is not None
    assert tokens.tokenizer.name == name
    assert tokens.tokenizer.front == (("<s>",) if change is begins_with_s else ())
    assert tokens.tokenizer.normalised == ("case" if change is lower_cases else "")


def test_a_text_that_spells_a_special_token_is_what_the_file_makes_of_it(tmp_path: Path) -> None:
    pipeline = byte_level()
    folder = write(tmp_path, pipeline, eos_token="quick", pad_token={"content": "[PAD]"}, tokenizer_class="Unknown")
    texts = ["a quick [PAD] <|endoftext|> end", "<s>"]
    assert [ids.tolist() for ids in encode(load_tokenizer(folder), texts)] == [pipeline.encode(t).ids for t in texts]


@pytest.mark.parametrize("change", [None, begins_with_s])
def test_what_the_config_says_of_bos_and_eos_holds_and_is_said_where_the_file_differs(
    tmp_path: Path, change: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline, settings = byte_level(change), {"bos_token": "<s>", "eos_token": "<|endoftext|>"}
    inside = [pipeline.encode(text, add_special_tokens=False).ids for text in TEXTS]
    for adds in (True, False):
        caplog.clear()
        tokenizer = load_tokenizer(write(tmp_path, pipeline, **settings, add_bos_token=adds, add_eos_token=False))
        found = [ids.tolist() for ids in encode(tokenizer, TEXTS)]
        assert found == [[*([1] if adds else []), *ids] for ids in inside]
        differs = adds != (change is begins_with_s)
        assert ("add_bos_token" in caplog.text) == differs
    with caplog.at_level(logging.WARNING, "klray"):
        both = load_tokenizer(write(tmp_path, pipeline, **settings, add_eos_token=True))
    assert encode(both, ["a"]).ids.tolist() == [*([1] if change else []), *inside[0], 0]
    assert both.decode(inside[0]) == TEXTS[0] == "a"


def test_a_tokenizer_without_its_vocabulary_is_refused(tmp_path: Path) -> None:
    for name in ("GPT2Tokenizer", "LlamaTokenizer", "GPTNeoXTokenizer"):
        folder = write(tmp_path, None, tokenizer_class=name, bos_token="<s>")
        with pytest.raises(CheckpointError, match="tokenizer") as caught:
            encode(load_tokenizer(folder), TEXTS)
        assert caught.value.reason == "load_failed"
    write(tmp_path, Tokenizer(models.BPE()), tokenizer_class="GPT2Tokenizer")
    with pytest.raises(CheckpointError, match="loses parts of 9 of 9 texts") as caught:
        encode(load_tokenizer(tmp_path), TEXTS)
    assert caught.value.reason == "text_lost"


def test_vocabulary_and_merges_without_a_pipeline_are_what_their_class_makes_of_them(tmp_path: Path) -> None:
    pipeline = byte_level()
    write(tmp_path, None, tokenizer_class="GPT2Tokenizer", eos_token="<|endoftext|>")
    pipeline.model.save(str(tmp_path))
    assert {file.name for file in tmp_path.iterdir()} >= {"vocab.json", "merges.txt"}
    expected = [pipeline.encode(text).ids for text in TEXTS]
    assert [ids.tolist() for ids in encode(load_tokenizer(tmp_path), TEXTS)] == expected
    merges = (tmp_path / "merges.txt").read_text().splitlines()
    (tmp_path / "merges.txt").write_text("\n".join(merges[:50]))
    with pytest.raises(CheckpointError, match=r"\d+ of 6\d words that no merge makes"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kept", [slice(0), slice(40), slice(20, None)])
def test_merges_that_are_lost_are_missed(tmp_path: Path, kept: slice) -> None:
    folder = write(tmp_path, byte_level())
    pipeline = json.loads((folder / "tokenizer.json").read_text())
    whole = json.dumps({**pipeline, "model": {**pipeline["model"], "ignore_merges": True}})
    pipeline["model"]["merges"] = pipeline["model"]["merges"][kept]
    (folder / "tokenizer.json").write_text(json.dumps(pipeline))
    with pytest.raises(CheckpointError, match=r"\d+ of 62 words that no merge makes"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text(whole)
    load_tokenizer(folder)


def words(unknown: str | None = "[UNK]", **parts: Any) -> Tokenizer:
    """A pipeline of whole words, of ASCII alone."""
    pipeline = Tokenizer(models.WordLevel(unk_token=unknown))
    pipeline.pre_tokenizer = pre_tokenizers.Whitespace()
    for name, part in parts.items():
        setattr(pipeline, name, part)
    trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False)
    pipeline.train_from_iterator(["the words that are known ! Fine fine"], trainer)
    return pipeline


def ascii_bytes() -> Tokenizer:
    pipeline = Tokenizer(models.BPE())
    pipeline.pre_tokenizer, pipeline.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    pipeline.train_from_iterator(["the words that are known! Fine, fine\n"], trainers.BpeTrainer(show_progress=False))
    return pipeline


@pytest.mark.parametrize(
    ("pipeline", "text"),
    [
        (ascii_bytes(), "known 東京"),  # bytes that are no tokens vanish
        (ascii_bytes(), "𝠀𝠁𝠂"),
        (words(), "the other words"),  # unknown words hide behind one token
        (words(normalizer=normalizers.Replace("known", "")), "the known words"),
        (words(normalizer=normalizers.StripAccents()), "fińe"),
    ],
)
def test_a_text_that_is_not_in_its_tokens_is_refused_by_its_place(tmp_path: Path, pipeline: Any, text: str) -> None:
    tokenizer = load_tokenizer(write(tmp_path, pipeline))
    with pytest.raises(CheckpointError, match="parts of 1 of 3 texts, of text 1 first") as caught:
        encode(tokenizer, ["the words", text, "that are"])
    assert caught.value.reason == "text_lost" and "scoring.allow_lost=1" in caught.value.message
    allowed = encode(tokenizer, ["the words", text, "that are"], allow_lost=1)
    assert allowed.tokenizer is not None and allowed.tokenizer.lost == 1


@pytest.mark.parametrize(
    ("normalizer", "text", "kind"),
    [
        (None, "the  words\nthat", "white space"),
        (normalizers.NFKC(), "ﬁne known", "Unicode normalisation"),
        (normalizers.Lowercase(), "Fine known", "case"),
        (normalizers.Replace("\u200b", ""), "known\u200b words", "white space"),
    ],
)
def test_known_normalisation_is_kept_with_the_column(tmp_path: Path, normalizer: Any, text: str, kind: str) -> None:
    pipeline = words(**({"normalizer": normalizer} if normalizer else {}))
    made = encode(load_tokenizer(write(tmp_path, pipeline)), [text, "known"]).tokenizer
    assert made is not None and (made.normalised, made.lost) == (kind, 0)


def test_bytes_come_back_where_the_file_has_no_decoder(tmp_path: Path) -> None:
    made = encode(load_tokenizer(write(tmp_path, byte_level(lambda each: setattr(each, "decoder", None)))), TEXTS)
    assert made.tokenizer is not None and made.tokenizer.normalised == ""


def test_facts_say_what_stands_around_a_text_and_how_long_tokens_are(tmp_path: Path) -> None:
    folder = write(tmp_path, byte_level(begins_with_s), tokenizer_class="LlamaTokenizerFast")
    made = encode(load_tokenizer(folder), ["abc", "東"]).tokenizer
    assert made is not None
    assert made.as_facts() == {
        "tokenizer": "LlamaTokenizer, <s> before, 1.0000 bytes/token",
        "tokenizer_class": "LlamaTokenizerFast",
        "tokens_before": ["<s>"],
        "tokens_after": [],
        "bytes_per_token": 1.0,
        "text_normalisation": "",
        "lost_texts": 0,
    }


def test_a_pattern_that_gives_up_is_told_by_its_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A library in Rust panics: that is no Exception in Python, and would end the process of the model."""
    split = pre_tokenizers.Split(Regex(r"(x+x+)+y"), "isolated")
    tokenizer = load_tokenizer(
        write(tmp_path, byte_level(lambda each: setattr(each, "pre_tokenizer", split)), tokenizer_class="Unknown")
    )
    with pytest.raises(CheckpointError, match=r"Unknown fails at text 1, 'xxxx.* \(PanicException: .*retry") as caught:
        encode(tokenizer, ["a", "x" * 60, "b"])
    assert caught.value.reason == "load_failed"


class Slow:
    """Takes its time with one text: until it is told to go on, or longer than anybody waits."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def __call__(self, texts: str | list[str], **_: Any) -> dict[str, Any]:
        if "slow" in texts:
            self.go_on.wait(120)
        return {"input_ids": [1, 2] if isinstance(texts, str) else [[1, 2] for _ in texts]}


def test_a_text_that_takes_too_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "_SECONDS", 0.2)
    monkeypatch.setattr(tokenizing, "_SECONDS_ALONE", 0.05)
    slow = Slow()
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"Slow had not tokenised text 2, 'slow' after") as caught:
        encode(slow, ["a", "b", "slow", "c"])
    assert caught.value.reason == "timed_out" and time.monotonic() - start < 60
    slow.go_on.set()


def sentencepiece_model(**options: Any) -> bytes:
    """A SentencePiece model of the texts."""
    body = io.BytesIO()
    lines = iter([line for text in TEXTS for line in text.split("\n") if line.strip()])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=body,
        vocab_size=400,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return body.getvalue()


@pytest.mark.parametrize("name", ["LlamaTokenizer", "GemmaTokenizer", "T5Tokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("options", [{}, {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_sentencepiece_model_gives_the_ids_of_sentencepiece(
    tmp_path: Path, name: str, options: dict[str, Any], kind: str
) -> None:
    body = sentencepiece_model(model_type=kind, **options)
    (write(tmp_path, None, tokenizer_class=name) / "tokenizer.model").write_bytes(body)
    tokenizer, own = load_tokenizer(tmp_path), sentencepiece.SentencePieceProcessor(model_proto=body)
    awkward = [*TEXTS, "two  spaces", " in front", "behind ", "one\ttab\n\nand lines", "naïve"]
    for text, ids in zip(awkward, encode(tokenizer, awkward), strict=True):
        bare = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert list(bare) == own.encode(text)
        assert set(ids.tolist()) >= set(bare) and len(ids) - len(bare) in (0, 1)


def test_a_model_that_counts_pieces_in_another_way_is_refused(tmp_path: Path) -> None:
    (write(tmp_path, None, tokenizer_class="MBartTokenizer") / "sentencepiece.bpe.model").write_bytes(
        sentencepiece_model(model_type="unigram")
    )
    with pytest.raises(CheckpointError, match="have other ids there") as caught:
        load_tokenizer(tmp_path)
    assert caught.value.reason == "load_failed"


def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, byte_level(cuts)))
    assert [ids.tolist() for ids in encode(tokenizer, TEXTS)] == [byte_level().encode(text).ids for text in TEXTS]


def test_dropout_of_the_file_is_switched_off_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path, byte_level())
    file = folder / "tokenizer.json"
    pipeline = json.loads(file.read_text())
    file.write_text(json.dumps({**pipeline, "model": {**pipeline["model"], "dropout": 0.5}}))
    assert [ids.tolist() for ids in encode(load_tokenizer(folder), TEXTS)] == [
        byte_level().encode(x).ids for x in TEXTS
    ]
    assert "dropout" in caplog.text


@pytest.mark.parametrize(("name", "known"), [("GPT2Tokenizer", True), ("NoSuchTokenizer", False)])
def test_without_a_pipeline_the_named_class_stands_above_the_kind_of_model(
    tmp_path: Path, name: str, known: bool
) -> None:
    pipeline = byte_level()
    folder = write(tmp_path, None, tokenizer_class=name, eos_token="<|endoftext|>")
    tiny_models.tiny_config("qwen2").save_pretrained(folder)  # which transformers gives a tokenizer of its own
    pipeline.model.save(str(folder))
    if known:
        expected = [pipeline.encode(text).ids for text in TEXTS]
        assert [ids.tolist() for ids in encode(load_tokenizer(folder), TEXTS)] == expected
    else:
        with pytest.raises(CheckpointError, match="NoSuchTokenizer"):
            load_tokenizer(folder)


@pytest.mark.parametrize("text", ["\n" * 200 + "x", "\u200d\u200b" * 60, "\x01\x02" * 90, "a b c d e f g h", "\t" * 50])
def test_a_text_of_which_most_is_gone_is_refused_also_where_it_is_white_space(tmp_path: Path, text: str) -> None:
    pipeline = byte_level(lambda made: setattr(made, "normalizer", normalizers.Replace(Regex(r"[\s\p{C}]"), "")))
    with pytest.raises(CheckpointError, match="parts of 1 of 2 texts") as caught:
        encode(load_tokenizer(write(tmp_path, pipeline)), ["the", text])
    assert caught.value.reason == "text_lost"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_library_that_panics_is_a_refusal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline = byte_level(lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.ByteLevel(False)))
    folder = write(tmp_path, pipeline)
    file = folder / "tokenizer.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps({**written, "decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 5}}))
    with pytest.raises(CheckpointError, match="cannot give back the texts") as caught:
        encode(load_tokenizer(folder), ["a", "b", "the words"])
    assert caught.value.reason == "load_failed"
    capfd.readouterr()


def test_ids_beyond_the_embedding_are_refused(tmp_path: Path) -> None:
    from klray.likelihood.loading import load
    from klray.likelihood.score import log_likelihood

    folder = save_checkpoint(tmp_path, "llama")
    pipeline = byte_level()
    pipeline.add_tokens(["東京"])
    pipeline.save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="token id 320 and the model's vocabulary has 320"):
        log_likelihood(load(folder).model, load_tokenizer(folder), TEXTS)


@pytest.mark.parametrize("kept_in", ["added_tokens.json", "tokenizer_config.json"])
def test_a_token_that_the_pipeline_lacks_is_refused_in_a_text_that_has_it(tmp_path: Path, kept_in: str) -> None:
    """A checkpoint whose vocabulary grew, with the pipeline of its base: the token would fall apart into letters."""
    words = {"<|endoftext|>": 0, "<|im_start|>": 400}
    decoder = {str(number): {"content": word, "special": True} for word, number in words.items()}
    settings = {"added_tokens_decoder": decoder} if kept_in == "tokenizer_config.json" else {}
    folder = write(tmp_path, byte_level(), **settings)
    if not settings:
        (folder / kept_in).write_text(json.dumps(words))
    tokenizer = load_tokenizer(folder)
    assert encode(tokenizer, TEXTS[:3]).ids.size
    with pytest.raises(CheckpointError, match=r"text 1 has .*im_start.* save the tokenizer") as refused:
        encode(tokenizer, [TEXTS[0], f"<|im_start|>{TEXTS[1]}"])
    assert refused.value.reason == "load_failed"
