"""Strings and numbers of strangers: what is shown, logged and kept of them is fit for it, or refused by name."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from klray.errors import CheckpointError, KlrayError
from klray.words.outside import DEEPEST, LONGEST, contents, fault, fit, one_line, parsed, printable, whole_number
from klray.words.secrets import Discreet
from klray.words.tables import say, text_table

# Escapes that clear the screen, set the title and write to the clipboard, a forged line, HTML, half of a surrogate
# pair, a byte order mark, marks that turn the direction of writing, C1 controls, breaks of lines and paragraphs.
HOSTILE = {
    "escapes": "\x1b[2J\x1b]0;owned\x07\x1b]52;c;b3duZWQ=\x07",
    "forged line": "\n12:00:00 all 1,000 checkpoints are scored",
    "carriage return": "bad\rgood",
    "surrogate": "lab/base-\ud83d",
    "byte order mark": "\ufeffbase",
    "direction": "\u202eesab/bal\u2066",
    "C1": "\x9b31m",
    "separators": "a\u2028b\u2029c\x85d",
    "nothing": "\x00\x7f",
}
each_hostile = pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)


def assert_clean(text: str) -> None:
    for line in text.split("\n"):
        assert line.isprintable(), ascii(line)
        assert not line.startswith("12:00:00")
    text.encode()


@each_hostile
def test_what_is_shown_is_on_one_line_and_printable(hostile: str) -> None:
    for words in (printable(hostile), one_line(hostile), str(KlrayError(f"repository {hostile}"))):
        assert_clean(words)
        assert "\n" not in words
    with redirect_stdout(io.StringIO()) as said:
        say(hostile)
    assert_clean(said.getvalue())
    assert said.getvalue().count("\n") == 1


@each_hostile
def test_cells_of_a_table_stay_in_their_line(hostile: str) -> None:
    table = text_table(("model", "n", "words"), [(hostile, "1", hostile), ("a", "2", "b")], text_columns=3)
    assert_clean(table)
    assert table.count("\n") == 3


@each_hostile
def test_log_has_one_line_for_one_message(hostile: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(Discreet())
    log = logging.Logger("strings")
    log.addHandler(handler)
    log.warning("%s: %s", hostile, hostile)
    assert_clean(stream.getvalue())
    assert stream.getvalue().count("\n") == 1
    try:
        raise RuntimeError(hostile)
    except RuntimeError:
        log.exception("failed")
    assert_clean(stream.getvalue())


def test_a_table_is_no_wider_than_a_screen_for_a_name_of_a_megabyte() -> None:
    table = text_table(("model", "words"), [("x" * 2**20, "the whole sentence " * 20), ("a", "b")], text_columns=2)
    assert max(map(len, table.split("\n"))) < 700
    assert "the whole sentence " * 19 in table


def test_error_is_one_sentence_that_ends_with_its_cure_and_survives_pickling() -> None:
    error = CheckpointError(f"its config.json names {'x' * 2**20}\x1b[2J: choose another revision", "load_failed")
    assert len(error.message) < 2 * LONGEST
    assert str(error) == error.message
    assert error.message.endswith("x�[2J: choose another revision")
    again = pickle.loads(pickle.dumps(error))
    assert (again.message, again.reason) == (error.message, "load_failed")


@each_hostile
def test_what_is_kept_is_fit_or_refused(hostile: str) -> None:
    facts = {"revision": hostile, "list": ["a", hostile], "nested": {"a": {"b": hostile}}, hostile: 1}
    for name, value in facts.items():
        assert fault({name: value}), name
    kept = fit(facts)
    assert fault(kept) == ""
    json.dumps(kept, ensure_ascii=False).encode()


def test_sound_values_are_kept_as_they_are() -> None:
    facts = {
        "run": "org/model-7b_v1.0",
        "label": "Küche, 日本語\u3000и\u00a0العربية",
        "step": 2**63 - 1,
        "seed": -1,
        "size": "",
        "loss": 0.5,
        "none": None,
        "html": "<script>alert(1)</script>",
        "flags": [True, {"a": []}],
    }
    assert fault(facts) == ""
    assert fit(facts) == facts


@pytest.mark.parametrize("number", [2**63, 10**20, -(2**63) - 1, int("9" * 4000)])
def test_numbers_are_of_64_bits(number: int) -> None:
    assert fault({"facts": {"step": number}}) == "facts step is beyond 64 bits"
    assert fit({"step": number}) == {"step": None}
    assert whole_number(number) is None


@pytest.mark.parametrize("value", ["9" * 10**6, "-1", "1e3", "", "0x10", "¹", 1.5, float("inf"), True, None, [1], -1])
def test_what_is_no_count_is_none(value: object) -> None:
    assert whole_number(value) is None


def test_long_and_deep_values_cost_nothing() -> None:
    deep: object = "x"
    for _ in range(100_000):
        deep = [deep]
    assert fault({"base_model": "x" * 10**6}).startswith("base_model has 1,000,000 characters")
    assert len(fit({"base_model": "x" * 10**6})["base_model"]) == LONGEST
    assert f"more than {DEEPEST} levels deep" in fault(deep)
    assert fault(fit(deep)) == ""


@pytest.mark.parametrize("depth", [DEEPEST + 1, 900, 100_000])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_deep_json_is_refused_in_a_sentence(depth: int, brackets: str) -> None:
    opening, closing = brackets if brackets == "[]" else ('{"a":', "}")
    for body in (opening * depth + "1" + closing * depth, "[" * depth):
        with pytest.raises(ValueError, match=r"levels deep|Expecting|column"):
            parsed(body)
    assert parsed(opening * (DEEPEST - 1) + "1" + closing * (DEEPEST - 1)) is not None
    assert len(parsed(json.dumps([{}] * 1000).encode())) == 1000


def test_only_regular_files_are_read_and_no_more_of_them_than_wanted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(b"x" * 1001)
    (tmp_path / "small").write_bytes(b"x" * 1000)
    for name in ("pipe", "device", "."):
        with pytest.raises(ValueError, match="not a regular file"):
            contents(tmp_path / name, 1000)
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        contents(tmp_path / "large", 1000)
    with pytest.raises(FileNotFoundError):
        contents(tmp_path / "gone", 1000)
    assert contents(tmp_path / "small", 1000) == b"x" * 1000
