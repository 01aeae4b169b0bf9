"""Strings and numbers of strangers: what is shown, logged and kept of them is fit for it, or refused by name."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import pickle
from contextlib import redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import klray
from jobs.status import status
from klray.analysis.facts import recorded
from klray.analysis.noise_floor import NoiseFloor
from klray.analysis.recipe import Recipe
from klray.checkpoints import RepositorySpec, Selection, step_of
from klray.checkpoints.parents import lineage_of
from klray.config import Config
from klray.errors import CheckpointError, KlrayError, StoreError
from klray.likelihood.lens import load_translators
from klray.store import Column, Commit, Failure, Store, layout
from klray.store.columns import encode_column
from klray.store.objects import open_objects
from klray.store.root import claim
from klray.store.seal import sealed, sha256_of
from klray.store.text_facts import text_facts
from klray.store.twins import take_over
from klray.texts import TextSet, from_folder, from_jsonl
from klray.watch.recording import Run
from klray.words.outside import DEEPEST, LONGEST, contents, fault, fit, one_line, parsed, printable, whole_number
from klray.words.secrets import Discreet
from klray.words.tables import say, text_table
from tests.hostile.strings import HOSTILE, assert_clean, each_hostile
from tests.stores import TEXTS, column


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


@pytest.mark.slow
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


def stored(commit: Commit, **changes: Any) -> bytes:
    """A commit as another program writes it: whatever it says, sealed."""
    fields = {**dataclasses.asdict(commit), **changes}
    if "identity" in changes:
        fields["identity"] = dataclasses.asdict(changes["identity"])
    return sealed(fields)


def write_by_another(store: Store, column: Column, **facts: object) -> Commit:
    """Commit a column whose facts no klray of now would take."""
    bodies, commit = encode_column(column, "e" * 32)
    store.objects.put_many(bodies)
    store.objects.put(layout.commit_path(commit.key), stored(commit, facts={**commit.facts, **facts}))
    return commit


ODD_FACTS: dict[str, dict[str, object]] = {
    "surrogate": {"base_model": "lab/base-\ud83d"},
    "escapes": {"revision": "step1\x1b[31m\nforged", "family": HOSTILE["escapes"]},
    "megabyte": {"parents": "x" * 2**20},
    "step": {"step": 10**20},
    "words for numbers": {"parameters": "many", "seed": "1e400", "tokens": [1]},
    "floats": {"parameters": 1e300, "seed": float("inf"), "step": 1.5},
    "lists for labels": {"run": ["a", "b"], "size": {"a": 1}, "architecture": 7},
}


@pytest.mark.slow
def test_one_commit_stops_nobody_and_verify_has_a_way_out(folder_store: Store) -> None:
    folder_store.add_column(column("sound", 1))
    odd = {write_by_another(folder_store, column(name, 2), **facts).key: facts for name, facts in ODD_FACTS.items()}
    manifest, _ = folder_store.publish()
    assert manifest.n_models == len(odd) + 1
    with klray.open_dataset(folder_store.url) as dataset:
        rows = {name: values.values.tolist() for name, values in dataset.coords.items()}
    assert fault(rows) == ""
    catalog = folder_store.catalog()
    assert len(catalog) == len(odd) + 1
    damaged = {damage.key: damage.message for damage in folder_store.audit().damages}
    assert set(damaged) == {key for key, facts in odd.items() if fault(facts)}
    assert len(damaged) == 4
    assert all("verify.repair=true" in words and words.isprintable() for words in damaged.values())
    removed = folder_store.repair(folder_store.audit(), timedelta(0))
    assert {layout.commit_path(key) for key in damaged} <= set(removed)
    assert folder_store.audit().damages == ()
    assert folder_store.publish()[0].n_models == len(odd) + 1 - len(damaged)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"identity": {"repository": "lab/a\ud83d"}}, r"repository holds the character U\+D83D"),
        ({"identity": {"commit": "a\x1b"}}, r"commit holds the character U\+001B"),
        ({"facts": {"step": 2**63}}, "facts step is beyond 64 bits"),
        ({"facts": {"base_model": "x" * 5000}}, "facts base_model has 5,000 characters"),
        ({"facts": {"a": {"b": ["\u202e"]}}}, r"facts a b item 0 holds the character U\+202E"),
        ({"facts": {"a": {1, 2}}}, "facts a is a set"),
        ({"versions": {"torch": "\ufeff2"}}, r"versions torch holds the character U\+FEFF"),
    ],
)
def test_commit_is_refused_by_the_name_of_its_field(
    folder_store: Store, place: dict[str, dict[str, Any]], words: str
) -> None:
    sound = column("a", 1)
    changes: dict[str, Any] = {
        name: dataclasses.replace(sound.identity, **values)
        if name == "identity"
        else {**getattr(sound, name), **values}
        for name, values in place.items()
    }
    before = folder_store.objects.walk("")
    with pytest.raises(KlrayError, match=words):
        folder_store.add_column(dataclasses.replace(sound, **changes))
    assert folder_store.objects.walk("").keys() == before.keys()
    if "identity" in changes:
        with pytest.raises(KlrayError, match=words):
            folder_store.record_failure(changes["identity"], "main", "gated", "no", "1" * 32)
        with pytest.raises(KlrayError, match=words):
            take_over(folder_store.objects, sound.identity.key, changes["identity"], {})


def test_what_is_taken_over_from_another_is_made_fit(folder_store: Store) -> None:
    odd = write_by_another(folder_store, column("a", 1), base_model="lab/\x1b", step=10**20)
    taken = take_over(folder_store.objects, odd.key, column("b", 2).identity, {"revision": "step2", "step": 2})
    assert taken is not None
    assert taken[0].unfit == ""
    assert taken[0].facts["step"] == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_name_that_the_terminal_cannot_show_stops_nobody(encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    say("org/ü → end", file=stream)
    stream.seek(0)
    shown = stream.read()
    assert shown.startswith("org/") and shown.endswith("end\n")
    assert shown == {"ascii": "org/? ? end\n", "latin-1": "org/ü ? end\n"}.get(encoding, "org/ü → end\n")


@each_hostile
def test_record_of_a_failure_is_shown_as_it_is(folder_store: Store, hostile: str) -> None:
    folder_store.record_failure(column("a", 1).identity, f"step1{hostile}", "load_failed", f"its {hostile}", "1" * 32)
    settings = Config()
    settings.store.url = folder_store.url
    with redirect_stdout(io.StringIO()) as said:
        status(settings)
    assert_clean(said.getvalue())
    (failure,) = folder_store.failures()
    assert fault(dataclasses.asdict(failure)) == ""


def test_plan_and_failure_that_another_wrote_are_printed_clean(folder_store: Store) -> None:
    hostile = "".join(HOSTILE.values())
    identity = column("a", 1).identity
    for number, name in (("1", "odd"), ("2", hostile)):
        failure = Failure(identity.key, name, name, "gated", f"odd{hostile}", number * 32, "2026")
        folder_store.objects.put(layout.failure_path(identity.key, number * 32), sealed(dataclasses.asdict(failure)))
    body = json.dumps({"family": "odd\x1b[2J\nfamily", "keys": ["0" * 64]}).encode()
    folder_store.objects.put(layout.plan_path("odd\x1b[2J\nfamily", sha256_of(body)), body)
    settings = Config()
    settings.store.url = folder_store.url
    with redirect_stdout(io.StringIO()) as said:
        status(settings)
    assert_clean(said.getvalue())
    assert "odd@odd" in said.getvalue()


def test_texts_that_no_store_can_keep_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    for line, words in (
        (r'{"text": "a", "domain": "\ud83d"}', r"line 1: its domain holds the character U\+D83D"),
        (r'{"text": "a", "domain": "a\u001b[2J"}', r"line 1: its domain holds the character U\+001B"),
        ('{"text": "a", "meta": ' + "[" * 100_000 + "}", "line 1 is not JSON .*levels deep"),
        (r'{"text": "\ud83d"}', "line 1: 'text' must be a non-empty Unicode string"),
    ):
        (tmp_path / "texts.jsonl").write_text(line)
        with pytest.raises(KlrayError, match=words):
            from_jsonl(tmp_path / "texts.jsonl")
    with pytest.raises(KlrayError, match="domains item 0 holds"):
        TextSet("t", ("a",), ("\ufeff",))
    with pytest.raises(KlrayError, match="text 0 is no Unicode"):
        TextSet("t", ("\ud83d",), ("x",))
    (tmp_path / "odd\u202e").mkdir()
    (tmp_path / "odd\u202e" / "a.txt").write_text("word " * 100)
    with pytest.raises(KlrayError, match=r"odd\\u202e': its domain holds"):
        from_folder(tmp_path)


def test_byte_order_marks_are_no_part_of_a_text(tmp_path: Path) -> None:
    line = b'\xef\xbb\xbf{"text": "a"}\n'
    (tmp_path / "two.jsonl").write_bytes(line + line)
    assert from_jsonl(tmp_path / "two.jsonl").texts == ("a", "a")
    (tmp_path / "a.txt").write_text("word " * 100, encoding="utf-8-sig")
    assert from_folder(tmp_path).texts == ("word " * 100,)


def test_store_that_was_half_made_with_odd_domains_goes_on_with_mended_ones(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    odd = dataclasses.replace(text_facts(TEXTS), domains=("\ud83d",) * len(TEXTS))
    claim(open_objects(url), odd)  # a klray before this one wrote the root, and could not write the texts
    store = Store.create(url, TEXTS)
    store.add_column(column("a", 1))
    assert Store.open(url).texts.domains == TEXTS.domains
    other = TextSet("t", TEXTS.texts, ("other",) * len(TEXTS))
    (tmp_path / "store" / "texts" / "zarr.json").unlink()
    with pytest.raises(StoreError, match="other domains"):
        Store.create(url, other)


def test_steps_of_strangers_are_of_64_bits() -> None:
    assert step_of(f"step{2**63 - 1}") == 2**63 - 1
    for odd in (f"step{2**63}", "step99999999999999999999", "step" + "9" * 5000):
        assert step_of(odd) is None


@each_hostile
def test_parents_that_a_card_names_are_fit_to_be_kept(hostile: str) -> None:
    names = ["org/" + hostile, "x" * 2**20, "org/a@" + hostile]
    lineage = lineage_of("org/child", {"cardData": {"base_model": names}})
    assert fault(dataclasses.asdict(lineage)) == ""


@pytest.mark.parametrize(
    "field", [{"repository": "org/a\x1b"}, {"revisions": "step*\ud83d"}, {"base_model": "\u202e"}, {"seed": 2**64}]
)
def test_what_a_user_asks_for_is_refused_by_name(field: dict[str, Any]) -> None:
    with pytest.raises(KlrayError, match=f"models: {next(iter(field))} (item 0 )?(holds|is beyond)"):
        RepositorySpec(**{"repository": "org/a", **field})
    with pytest.raises(KlrayError, match="models: family holds"):
        Selection("\ud83d", (RepositorySpec("org/a"),))
    with pytest.raises(KlrayError, match="run: size holds"):
        Run("org/a", size="\x07")


@pytest.mark.parametrize("body", ["[" * 10**5, "{", '"words"', "[" * 70 + "]" * 70])
def test_what_a_result_records_is_read_within_bounds(body: str, tmp_path: Path) -> None:
    result = xr.Dataset(attrs={"choice": body})
    with pytest.raises(StoreError, match="the result's choice cannot be read"):
        recorded(result, "choice", {})
    with pytest.raises(KlrayError):
        Recipe.from_json(body)
    with pytest.raises(KlrayError):
        NoiseFloor.from_json(body)
    (tmp_path / "lens.json").write_text(body)
    (tmp_path / "lens.safetensors").touch()
    with pytest.raises(KlrayError, match=r"tuned lens in .* cannot be read"):
        load_translators(tmp_path)
    assert recorded(xr.Dataset(), "choice", {}) == {}
