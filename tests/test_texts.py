"""Text sets: the laws of cutting and drawing, fingerprints, the three sources and their errors."""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
import logging
import os
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klray.errors import KlrayError
from klray.texts import TextSet, chunk, from_folder, from_jsonl, python_stdlib, stdlib_documents

# One- to four-byte characters, often enough that cuts meet them.
documents = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("aé東🙂")), max_size=80)


def text_set(*texts: str) -> TextSet:
    return TextSet("some", texts, ("text",) * len(texts))


def write_jsonl(path: Path, records: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@given(documents, st.integers(4, 40))
def test_pieces_make_up_the_document_and_each_is_as_long_as_it_can_be(document: str, max_bytes: int) -> None:
    pieces = chunk(document, max_bytes, min_bytes=0)
    assert "".join(pieces) == document
    assert all(0 < len(piece.encode()) <= max_bytes for piece in pieces)
    for piece, following in itertools.pairwise(pieces):
        assert len((piece + following[0]).encode()) > max_bytes


@given(documents, st.integers(4, 40), st.integers(0, 40))
def test_small_pieces_are_dropped_and_no_others(document: str, max_bytes: int, min_bytes: int) -> None:
    pieces = chunk(document, max_bytes, min_bytes=0)
    assert chunk(document, max_bytes, min_bytes) == [piece for piece in pieces if len(piece.encode()) > min_bytes]


def test_the_papers_bounds_are_the_defaults() -> None:
    assert chunk("a" * 256) == []
    assert [len(piece) for piece in chunk("a" * 257)] == [257]
    assert [len(piece) for piece in chunk("a" * (1024 + 1024 + 256))] == [1024, 1024]
    assert [len(piece.encode()) for piece in chunk("東" * 700)] == [1023, 1023]


def test_a_chunk_must_hold_any_character() -> None:
    with pytest.raises(KlrayError, match=r"max_bytes=3: .*set max_bytes to 4"):
        chunk("a", max_bytes=3)


def test_bytes_are_utf8_bytes() -> None:
    n_bytes = text_set("a", "é", "東京", "🙂").n_bytes
    assert n_bytes.dtype == np.int32
    assert n_bytes.tolist() == [1, 2, 6, 4]


def test_fingerprint_is_the_hash_of_the_length_prefixed_texts() -> None:
    stream = b"\0\0\0\0\0\0\0\1a" + b"\0\0\0\0\0\0\0\3" + "東".encode()
    assert text_set("a", "東").fingerprint == hashlib.sha256(stream).hexdigest()


@given(st.lists(documents, min_size=1, max_size=4), st.lists(documents, min_size=1, max_size=4))
def test_fingerprints_are_equal_exactly_when_the_texts_are(one: list[str], other: list[str]) -> None:
    assert (text_set(*one).fingerprint == text_set(*other).fingerprint) == (one == other)


def test_fingerprint_sees_order_and_borders_but_not_labels() -> None:
    assert len({text_set(*texts).fingerprint for texts in (("ab", "c"), ("a", "bc"), ("c", "ab"), ("abc",))}) == 4
    assert TextSet("x", ("ab",), ("code",)).fingerprint == TextSet("y", ("ab",), ("prose",)).fingerprint


def test_a_text_set_has_texts_and_one_domain_for_each() -> None:
    with pytest.raises(KlrayError, match=r"'some' has no texts"):
        TextSet("some", (), ())
    with pytest.raises(KlrayError, match=r"has 2 texts and 1 domain:"):
        TextSet("some", ("a", "b"), ("text",))


@pytest.fixture
def pile(tmp_path: Path) -> Path:
    """As published: chunks with the fields text and pile_set_name."""
    domains = ["Pile-CC", "GitHub", "arXiv"]
    return write_jsonl(
        tmp_path / "pile.jsonl", [{"text": f"text {i}", "pile_set_name": domains[i % 3]} for i in range(60)]
    )


def test_published_lines_are_texts_as_they_are(pile: Path) -> None:
    texts = from_jsonl(pile)
    assert texts.texts == tuple(f"text {i}" for i in range(60))
    assert texts.domains[:4] == ("Pile-CC", "GitHub", "arXiv", "Pile-CC")
    assert texts.name == "pile.jsonl"


@pytest.mark.parametrize(
    ("record", "domain"),
    [
        ({"text": "x", "meta": {"pile_set_name": "arXiv"}, "domain": "no"}, "arXiv"),
        ({"text": "x", "domain": "web"}, "web"),
        ({"text": "x"}, "text"),
    ],
)
def test_domain_fields_found_without_being_named(record: object, domain: str, tmp_path: Path) -> None:
    assert from_jsonl(write_jsonl(tmp_path / "a.jsonl", [record])).domains == (domain,)


def test_fields_can_be_named_and_lines_cut(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"body": "x" * 1500, "source": {"kind": "k"}}])
    texts = from_jsonl(path, text_field="body", domain_field="source.kind", chunked=False)
    assert [len(text) for text in texts.texts] == [1024, 476]
    assert texts.domains == ("k", "k")


def test_only_newlines_end_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "a\u2028b"}\r\n\n{"text": "c\u0085d"}'.encode())
    assert from_jsonl(path).texts == ("a\u2028b", "c\u0085d")


def test_a_byte_order_mark_is_no_part_of_the_first_line(pile: Path, tmp_path: Path) -> None:
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(codecs.BOM_UTF8 + pile.read_bytes())
    assert from_jsonl(marked).fingerprint == from_jsonl(pile).fingerprint


def test_draws_are_repeatable_ordered_and_nested(pile: Path) -> None:
    drawn = {n: from_jsonl(pile, n=n, seed=3).texts for n in (7, 20, 60)}
    assert drawn[7] == from_jsonl(pile, n=7, seed=3).texts
    assert set(drawn[7]) < set(drawn[20])
    assert drawn[60] == from_jsonl(pile).texts
    numbers = [int(text.split()[1]) for text in drawn[20]]
    assert len(set(numbers)) == 20
    assert numbers == sorted(numbers)
    assert from_jsonl(pile, n=20, seed=4).texts != drawn[20]
    assert from_jsonl(pile, n=20, seed=3).name == "pile.jsonl n=20 seed=3"


def test_draws_are_uniform(pile: Path) -> None:
    counts = Counter(text for seed in range(300) for text in from_jsonl(pile, n=20, seed=seed).texts)
    # 300 draws at 1/3: standard deviation 8.2; five of them for the largest of 60
    assert max(abs(counts[f"text {i}"] - 100) for i in range(60)) < 41


def test_one_domain(pile: Path) -> None:
    texts = from_jsonl(pile, n=5, domain="GitHub")
    assert texts.domains == ("GitHub",) * 5
    assert texts.name == "pile.jsonl domain=GitHub n=5 seed=0"


def test_unknown_domain(pile: Path) -> None:
    with pytest.raises(KlrayError, match=r"'Wiki' .* GitHub \(20 texts\).*texts\.domain "):
        from_jsonl(pile, domain="Wiki")


def test_more_texts_than_there_are(pile: Path) -> None:
    with pytest.raises(KlrayError, match=r"texts\.n=10,000 .* has 60: set texts\.n "):
        from_jsonl(pile, n=10_000)
    with pytest.raises(KlrayError, match=r"texts\.n=21 .* domain=arXiv has 20"):
        from_jsonl(pile, n=21, domain="arXiv")
    with pytest.raises(KlrayError, match=r"texts\.n=0: .*set texts\.n "):
        from_jsonl(pile, n=0)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", r"line 3 is not JSON .*one UTF-8 JSON object"),
        (b"\xff", r"line 3 is not JSON .*UTF-8"),
        ("[1]", r"line 3 holds a list: .*one JSON object"),
        ('{"b": 1, "a": 2}', r"line 3 .*'text', it has: a, b; .*texts\.text_field "),
        ("{}", r"line 3 .*'text', it has: no fields"),
        ('{"text": 5}', r"line 3: 'text' .*, found 5"),
        ('{"text": ""}', r"line 3: 'text' .*, found ''"),
        (r'{"text": "\ud800"}', r"line 3: 'text' .*, found '\\ud800'"),
    ],
)
def test_broken_lines_are_named(line: str | bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(KlrayError, match=r"broken\.jsonl, " + words):
        from_jsonl(path)


def test_a_named_domain_field_must_be_there(pile: Path) -> None:
    words = r"line 1 has no field 'kind', it has: pile_set_name, text; set texts\.domain_field "
    with pytest.raises(KlrayError, match=words):
        from_jsonl(pile, domain_field="kind")


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(KlrayError, match=r"no file .*none\.jsonl: set texts\.path "):
        from_jsonl(tmp_path / "none.jsonl")
    for content in (b"", b"\n \n", codecs.BOM_UTF8):
        (tmp_path / "empty.jsonl").write_bytes(content)
        with pytest.raises(KlrayError, match=rf"empty\.jsonl .* {len(content)} bytes; set texts\.path "):
            from_jsonl(tmp_path / "empty.jsonl")
    short = write_jsonl(tmp_path / "short.jsonl", [{"text": "x" * 256}])
    with pytest.raises(KlrayError, match=r"short\.jsonl gives no texts: .* 256 bytes"):
        from_jsonl(short, chunked=False)


def test_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, content in (("b.txt", b"b" * 300), ("a/z/1.txt", b"z" * 1400), ("a/2.txt", b"\xff" * 300)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "a/3.md").write_text("m" * 300)
    with caplog.at_level(logging.WARNING, logger="klray"):
        texts = from_folder(tmp_path)
    assert [text[0] for text in texts.texts] == ["z", "z", "b"]  # a/z/1.txt before b.txt
    assert texts.domains == ("a", "a", "text")
    assert "left out, as not UTF-8, 1 file: a/2.txt" in caplog.text
    assert from_folder(tmp_path, "**/*.md").texts == ("m" * 300,)
    assert from_folder(tmp_path, n=1, domain="a").domains == ("a",)


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(KlrayError, match=r"no folder .*nowhere: set texts\.path "):
        from_folder(tmp_path / "nowhere")
    with pytest.raises(KlrayError, match=r"no file .*'\*\*/\*\.txt': set texts\.pattern "):
        from_folder(tmp_path)
    for number in range(12):
        (tmp_path / f"{number:02}.txt").write_text("é" * 300, encoding="latin-1")
    with pytest.raises(KlrayError, match=r"12 files .* UTF-8: 00\.txt, .*, 09\.txt, \.\.\.;"):
        from_folder(tmp_path)


def test_splits_share_no_document_and_hardly_a_line() -> None:
    heldout, train = stdlib_documents("heldout"), stdlib_documents("train")
    assert not {document.name for document in heldout} & {document.name for document in train}
    for domain, most in (("prose", 0.01), ("code", 0.10)):
        seen = {line for document in train if document.domain == domain for line in document.text.splitlines()}
        lines = [
            line
            for document in heldout
            if document.domain == domain
            for line in document.text.splitlines()
            if len(line.strip()) >= 40
        ]
        assert sum(line in seen for line in lines) / len(lines) < most
    held_out_prose = sum(len(document.text.encode()) for document in heldout if document.domain == "prose")
    assert held_out_prose > 150_000  # 199 kB in Python 3.11, 208 kB in 3.12, 212 kB in 3.13


def test_stdlib_documents_are_the_librarys_own_files() -> None:
    code = [document for document in stdlib_documents("heldout") if document.domain == "code"]
    assert [document.name for document in code] == sorted(document.name for document in code)
    for document in code[::20]:
        path = Path(sysconfig.get_path("stdlib")) / document.name
        assert path.read_text(encoding="utf-8") == document.text
    names = [document.name for split in ("heldout", "train") for document in stdlib_documents(split)]
    assert not [name for name in names if {"test", "tests", "site-packages", "pydoc_data"} & set(name.split("/"))]


def test_n_is_split_evenly_as_far_as_domains_reach() -> None:
    everything = Counter(python_stdlib().domains)
    assert Counter(python_stdlib(n=101).domains) in ({"code": 51, "prose": 50}, {"code": 50, "prose": 51})
    n = 2 * everything["prose"] + 100
    assert Counter(python_stdlib(n=n).domains) == {"code": everything["prose"] + 100, "prose": everything["prose"]}
    assert Counter(python_stdlib(n=everything.total()).domains) == everything
    assert Counter(python_stdlib(n=9, domain="prose").domains) == {"prose": 9}


def test_the_same_texts_in_another_process() -> None:
    here = python_stdlib(n=64, seed=1)
    program = "from klray.texts import python_stdlib; print(python_stdlib(n=64, seed=1).fingerprint)"
    there = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "77", "LC_ALL": "C", "PYTHONUTF8": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == here.fingerprint
    assert here.fingerprint != python_stdlib(n=64, seed=2).fingerprint
    assert max(here.n_bytes) <= 1024
    assert min(here.n_bytes) > 256


def test_stdlib_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(KlrayError, match=r"'test' .*set texts\.split .*'heldout' or 'train'"):
        stdlib_documents("test")  # type: ignore[arg-type]
    with pytest.raises(KlrayError, match=r"domain 'web' .* python-3\S+-heldout, .*code"):
        python_stdlib(domain="web")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pydoc_data.topics", None)  # what the import system does for a missing module
        with pytest.raises(KlrayError, match=r"no module pydoc_data: install"):
            python_stdlib()
    zipped = tmp_path / "python311.zip"
    zipped.touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(zipped))
    with pytest.raises(KlrayError, match=r"python311\.zip has no \.py files"):
        python_stdlib()
