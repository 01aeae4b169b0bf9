"""The root of a store: whatever becomes of it, it is said in words, and whoever has the same texts writes it again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import klray as library
from klray.errors import StoreError
from klray.store import Store, layout
from klray.store.objects import FolderObjects
from klray.texts import TextSet
from tests.stores import N_TEXTS, TEXTS, add, assert_holds, column
from tests.test_cli import klray

OTHERS = TextSet("others", tuple(f"other {i}" for i in range(N_TEXTS)), ("a",) * N_TEXTS)
RELABELLED = TextSet("test", TEXTS.texts, ("z",) * N_TEXTS)

Damage = Callable[[bytes], bytes | None]


def edited(name: str, value: object) -> Damage:
    def edit(body: bytes) -> bytes:
        root = json.loads(body)
        root["attributes"][name] = value
        return json.dumps(root).encode()

    return edit


DAMAGES: dict[str, Damage] = {
    "lost": lambda body: None,
    "cut": lambda body: body[: len(body) // 2],
    "empty": lambda body: b"",
    "of another kind": lambda body: b"[]",
    "without attributes": lambda body: b"{}",
    "attributes of another kind": lambda body: b'{"attributes": []}',
    "another text set": edited("text_set", OTHERS.fingerprint),
    "another number of texts": edited("n_texts", 13),
    "another hash of the texts": edited("texts_sha256", "0" * 64),
    "a schema that is no number": edited("klray_schema", "one"),
}


def damage(store: Store, how: str) -> None:
    path = Path(store.url) / layout.ROOT
    body = DAMAGES[how](path.read_bytes())
    path.unlink() if body is None else path.write_bytes(body)


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store.create(str(tmp_path_factory.mktemp("undamaged") / "store"), TEXTS)
    add(store, column("b", 1), column("b", 2))
    store.publish()
    return Path(store.url)


@pytest.fixture
def store(undamaged: Path, tmp_path: Path) -> Store:
    """Two columns, published; a copy for each test."""
    shutil.copytree(undamaged, tmp_path / "store")
    return Store.open(str(tmp_path / "store"))


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_root_is_said_and_score_writes_it_again(
    store: Store, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = json.loads((Path(store.url) / layout.ROOT).read_bytes())["attributes"]
    damage(store, how)
    words = rf"its zarr\.json is .*{'missing' if how == 'lost' else 'damaged'}.*; run klray score on it once more, with"
    for opens in (Store.open, library.open_dataset, lambda url: Store.find(url, TEXTS)):
        with pytest.raises(StoreError, match=words):
            opens(store.url)
    with pytest.raises(StoreError, match=r"zarr\.json .* \(others, .*: set texts="):
        Store.create(store.url, OTHERS)
    mended = Store.create(store.url, TEXTS)
    assert "its zarr.json was lost or damaged" in caplog.text
    after = json.loads((Path(store.url) / layout.ROOT).read_bytes())["attributes"]
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"created_by", "seal"}, "of the same texts the root is the same"
    add(mended, column("a", 1))
    mended.publish()
    assert_holds(Store.open(store.url), column("b", 1), column("b", 2), column("a", 1))
    assert Store.open(store.url).audit().damages == ()


@pytest.mark.parametrize("left", ["commits", "snapshots", "texts"])
def test_one_witness_of_the_texts_is_enough(store: Store, left: str) -> None:
    for name in {"commits", "snapshots", "texts", "columns"} - {left}:
        store.objects.delete_tree(name)
    damage(store, "cut")
    with pytest.raises(StoreError, match="is of another text set"):
        Store.create(store.url, OTHERS)
    assert Store.create(store.url, TEXTS).texts.domains == TEXTS.domains


def test_root_without_a_witness_is_not_written_over(store: Store) -> None:
    for name in store.objects.names(""):
        store.objects.delete_tree("" if name == layout.ROOT else name)
    store.objects.put(layout.ROOT, b"{cut")
    with pytest.raises(StoreError, match=r"no commit, snapshot or texts .*store\.url="):
        Store.create(store.url, TEXTS)
    assert store.objects.get(layout.ROOT) == b"{cut"


def test_root_and_texts_that_are_damaged_together_are_both_written_again(store: Store) -> None:
    damage(store, "cut")
    (Path(store.url) / "texts" / "domain" / "c" / "0").write_bytes(b"")
    assert Store.create(store.url, TEXTS).texts.domains == TEXTS.domains
    assert_holds(Store.open(store.url), column("b", 1), column("b", 2))


def test_damaged_texts_are_not_written_with_other_domains(store: Store) -> None:
    (Path(store.url) / "texts" / "domain" / "c" / "0").write_bytes(b"")
    with pytest.raises(StoreError, match=r"other domains .* \(text set test\); set te"):
        Store.create(store.url, RELABELLED)
    assert Store.create(store.url, TEXTS).texts.domains == TEXTS.domains


def test_lost_root_is_not_written_again_with_other_domains(store: Store) -> None:
    damage(store, "lost")
    with pytest.raises(StoreError, match=r"zarr\.json is missing, .*\(test\): set texts="):
        Store.create(store.url, RELABELLED)
    assert Store.create(store.url, TEXTS).texts.domains == TEXTS.domains


def test_store_that_another_job_creates_meanwhile_is_taken_for_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Between the look for a root and the look for what else is there."""
    look = FolderObjects.names

    def created_before(objects: FolderObjects, prefix: str) -> list[str]:
        monkeypatch.undo()
        Store.create(str(tmp_path), TEXTS)
        return look(objects, prefix)

    monkeypatch.setattr(FolderObjects, "names", created_before)
    assert Store.create(str(tmp_path), TEXTS).texts.sha256 == Store.open(str(tmp_path)).texts.sha256
    assert "lost or damaged" not in caplog.text


def test_root_without_a_seal_is_believed(store: Store) -> None:
    path = Path(store.url) / layout.ROOT
    root = json.loads(path.read_bytes())
    del root["attributes"]["seal"]
    path.write_text(json.dumps(root))
    assert Store.open(store.url).texts.sha256 == Store.create(store.url, TEXTS).texts.sha256


def test_verify_says_how_a_damaged_root_is_mended(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(store, "another hash of the texts")
    code, _, errors = klray(capsys, monkeypatch, "verify", f"store.url={store.url}", "verify.repair=true")
    assert code == 1
    assert "; run klray score on it once more" in errors
