"""Checkpoints of some kilobytes that would take any amount of memory or time: refused before, or ended from outside."""

from __future__ import annotations

import json
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from klray.checkpoints import Checkpoint, Hub, RepositorySpec, Selection, resolve
from klray.checkpoints.pickles import read_pickled
from klray.errors import CheckpointError, KlrayError
from klray.likelihood.loading import load
from klray.likelihood.plausible import check_config
from klray.likelihood.tokenizer import load_tokenizer
from klray.sweep.child import apart
from klray.sweep.limits import Limits, limits_of, memory_of
from klray.sweep.model_process import ModelProcess
from klray.sweep.settings import ScoringSettings
from klray.texts import TextSet, from_folder, from_jsonl, textset
from tests import tiny_models
from tests.hostile.apart import is_killed, is_refused, takes_memory, waits, warns_and_tells
from tests.test_cli import klray as klray_says

TEXTS = TextSet("short", ("some words of a text",), ("a",))


def zipped(pickled: bytes, file: Path, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/version", "3\n")


def word(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def doubled_text(file: Path) -> None:
    bomb = b"c_codecs\nencode\n" + word("a" * 64) + word("latin1") + b"\x86R"
    for _ in range(29):
        bomb = b"c_codecs\nencode\n" + bomb + word("hex") + b"\x86R"
    zipped(b"\x80\x02}" + word("a") + bomb + b"s.", file)


class Called:
    """Pickled as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


PICKLES: dict[str, Callable[[Path], object]] = {
    "one number in a large shape": lambda file: torch.save({"a": torch.zeros(1).expand(1 << 20, 1 << 20)}, file),
    "the same in the old format": lambda file: torch.save(
        {"a": torch.zeros(1).expand(1 << 20, 1 << 20)}, file, _use_new_zipfile_serialization=False
    ),
    "one storage a thousand times": lambda file: torch.save(
        dict.fromkeys(map(str, range(1000)), torch.ones(999)), file
    ),
    "text that doubles": doubled_text,
    "compressed": lambda file: zipped(b"\x80\x02" + b"N0" * 10_000_000 + b"}.", file, zipfile.ZIP_DEFLATED),
    "long": lambda file: zipped(b"\x80\x02" + b"N0" * 10_000_000 + b"}.", file),
    "bytes by number": lambda file: torch.save({"a": Called(bytearray, 1 << 40)}, file),
    "sparse": lambda file: torch.save({"a": torch.zeros(4).to_sparse()}, file),
    "without numbers": lambda file: torch.save({"a": torch.zeros(1 << 20, 1 << 20, device="meta")}, file),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_holds_no_more_than_its_bytes(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    PICKLES[kind](file)
    with pytest.raises(pickle.UnpicklingError):
        read_pickled(file)


def test_tensors_of_a_model_are_read_as_they_were_saved(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    tied = torch.arange(12.0).reshape(3, 4)
    saved = {
        "tied": tied,
        "head": torch.nn.Parameter(tied),
        "turned": tied.T,
        "part": tied[1],
        "half": torch.ones(2, dtype=torch.bfloat16),
        "mask": torch.ones(2, dtype=torch.bool),
        "none": torch.zeros(0),
    }
    for new in (True, False):
        torch.save(saved, file, _use_new_zipfile_serialization=new)
        found = read_pickled(file)
        assert found.keys() == saved.keys() and all(torch.equal(found[name], saved[name]) for name in saved)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "labels": ({"num_labels": 10**9}, "num_labels=1,000,000,000"),
    "layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers=1,000,000,000"),
    "heads": ({"num_attention_heads": 10**9}, "num_attention_heads=1,000,000,000"),
    "rotary": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1e9}},
        "beside",
    ),
    "vocabulary": ({"vocab_size": 10**10}, "parameters"),
    "width": ({"intermediate_size": 10**9}, "parameters"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_asks_for_no_more_than_its_weights(kind: str, tmp_path: Path) -> None:
    folder = tiny_models.save_checkpoint(tmp_path / "model", "gpt_neox")
    changes, words = CONFIGS[kind]
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=words) as caught:
        load(folder)
    assert caught.value.reason == "load_failed" and "take config and weights from one checkpoint" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["num_labels", "num_attention_heads", "n_head", "n_head_kv", "n_routed_experts", "moe_num_experts", "n_group"],
)
def test_a_config_counts_no_more_than_a_million(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{name}=2,000,000"):
        check_config(tmp_path, {"text_config": {name: 2_000_000}})


def test_a_key_of_any_length_is_looked_at_in_no_time(tmp_path: Path) -> None:
    """Words of its end are what is looked for: a megabyte of them took an hour, in klray plan without any limit."""
    start = time.process_time()
    check_config(tmp_path, {"n_" * 500_000: 2_000_000})
    with pytest.raises(CheckpointError) as refused:
        check_config(tmp_path, {"num_" * 250_000 + "experts": 2_000_000})
    assert time.process_time() - start < 60 and len(str(refused.value)) < 1000


def test_notes_on_the_training_in_a_config_count_nothing(tmp_path: Path) -> None:
    notes = {"num_train_samples": 5_000_000, "num_flops": 10**21, "head_lr_steps": 10**7, "num_train_examples": 10**7}
    check_config(tmp_path, {**notes, "training": {"num_steps": 2_000_000, "block_offset": 10**8}}, 10)


SWELL = {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 30}
AROUND = [{"SpecialToken": {"id": "s", "type_id": 0}}] * 100 + [{"Sequence": {"id": "A", "type_id": 0}}]


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("normalizer", {"type": "Sequence", "normalizers": [SWELL, SWELL]}, "900 times as much"),
        ("decoder", {"type": "Sequence", "decoders": [SWELL, SWELL]}, "900 times as much"),
        (
            "post_processor",
            {
                "type": "TemplateProcessing",
                "single": AROUND,
                "pair": [],
                "special_tokens": {"s": {"id": "s", "ids": [0] * 50, "tokens": ["s"] * 50}},
            },
            "adds 5,000 tokens",
        ),
    ],
)
def test_a_tokenizer_makes_no_flood_of_a_text(part: str, value: object, words: str, tmp_path: Path) -> None:
    folder = tiny_models.save_checkpoint(tmp_path / "model", "gpt_neox")
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), part: value}))
    with pytest.raises(CheckpointError, match=words):
        load_tokenizer(folder)


def in_folder(folder: Path) -> Checkpoint:
    (found,), _ = resolve(Hub("http://127.0.0.1:9", ""), Selection("here", (RepositorySpec(str(folder)),)))
    return found


def test_limits_grow_with_files_and_texts_and_are_those_that_were_set(tmp_path: Path) -> None:
    checkpoint = in_folder(tiny_models.save_checkpoint(tmp_path / "model", "gpt_neox"))
    by_size = limits_of(checkpoint, TEXTS, ScoringSettings())
    longer = limits_of(checkpoint, TextSet("long", TEXTS.texts * 1000, ("a",) * 1000), ScoringSettings())
    assert longer.seconds > by_size.seconds > 60 and longer.memory > by_size.memory > 1e9
    asked = limits_of(checkpoint, TEXTS, ScoringSettings(limit_seconds=7, limit_bytes=8))
    assert (asked.seconds, asked.memory) == (7, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "key"),
    [({"limit_seconds": 1e-3}, "scoring.limit_seconds"), ({"limit_bytes": 1e6}, "scoring.limit_gigabytes")],
)
def test_a_process_that_takes_more_than_it_may_is_ended_and_the_reason_is_its_own(
    settings: dict[str, float], key: str, tmp_path: Path
) -> None:
    checkpoint = in_folder(tiny_models.save_checkpoint(tmp_path / "model", "gpt_neox"))
    process, read = ModelProcess(ScoringSettings(sketch=0, **settings), TEXTS), []
    with pytest.raises(CheckpointError, match=key) as caught:
        process.score(checkpoint, tmp_path / "model", lambda: read.append(True))
    assert caught.value.reason == "limit_exceeded" and read == [True] and process.pid is None
    again = ModelProcess(ScoringSettings(sketch=0), TEXTS)
    assert again.score(checkpoint, tmp_path / "model", lambda: None).n_tokens.sum() > 0
    assert again.pid is not None and memory_of(again.pid) > 1e7
    again.close()


@pytest.mark.slow
def test_work_apart_tells_what_it_does_and_ends_at_its_limits(caplog: pytest.LogCaptureFixture) -> None:
    """What ``klray noise``, ``klray weights`` and ``klray lens`` do with a model."""
    told: list[str] = []
    enough = Limits(600, 1e11, "")
    assert apart(warns_and_tells, enough, told.append) == "done"
    assert told == ["half"] and "one thing" in caplog.text
    for work, limits, reason in (
        (takes_memory, Limits(600, 5e8, ""), "limit_exceeded"),
        (waits, Limits(1, 1e11, ""), "limit_exceeded"),
        (is_refused, enough, "not_causal"),
        (is_killed, enough, "worker_died"),
    ):
        with pytest.raises(CheckpointError) as caught:
            apart(work, limits, told.append)
        assert caught.value.reason == reason


@pytest.mark.slow
def test_noise_of_a_checkpoint_ends_at_its_limits_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_models.save_checkpoint(tmp_path / "model", "gpt_neox")
    words = [f"models.repo={tmp_path / 'model'}", f"scoring.cache_dir={tmp_path / 'cache'}", "texts.n=4"]
    words += ["noise.dtypes=[float32]", "noise.tokens_per_batch=[1]", "scoring.limit_gigabytes=0.001"]
    code, out, errors = klray_says(capsys, monkeypatch, "noise", *words)
    assert code == 1 and "scoring.limit_gigabytes" in out and str(tmp_path / "model") in out, errors


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that Python held while ``work`` was done."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_line_without_end_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    with file.open("wb") as stream:
        stream.truncate(1 << 30)

    def read() -> None:
        with pytest.raises(KlrayError, match=r"line 1 has more than .* bytes"):
            from_jsonl(file)

    assert peak_bytes(read) < 300e6


def test_one_character_ten_million_times_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"text": "a" * 10_000_000}) + "\n")
    with pytest.raises(KlrayError, match=r"text 0 has 10,000,000 bytes.*texts\.chunked=false"):
        from_jsonl(file)
    assert len(from_jsonl(file, n=5, chunked=False)) == 5


def test_a_few_texts_of_very_many_take_the_memory_of_a_few(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("many words and one more " * 500_000)  # 12 MB
    drawn: list[TextSet] = []
    assert peak_bytes(lambda: drawn.append(from_folder(folder, n=10, seed=3))) < 8e6
    whole = from_folder(folder)
    chosen = np.sort(np.argsort(np.random.default_rng(3).random(len(whole)))[:10])
    assert drawn[0].texts == tuple(whole.texts[place] for place in chosen)


def test_texts_that_no_memory_should_hold_and_domains_of_one_text_each_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(textset, "MOST_CHARACTERS", 1000)
    monkeypatch.setattr(textset, "MOST_DOMAINS", 50)
    pairs = [("x" * 100, "a")] * 20
    with pytest.raises(KlrayError, match=r"texts\.n"):
        textset.draw("here", pairs, n=None, seed=0, domain=None)
    assert len(textset.draw("here", pairs, n=5, seed=0, domain=None)) == 5
    with pytest.raises(KlrayError, match=r"texts\.domain_field"):
        textset.draw("here", ((f"text {n}", f"domain {n}") for n in range(99)), n=5, seed=0, domain=None)
