"""A column that nobody can read again stops nobody: it is told, left out, and never read as other values."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import klray
from klray.analysis.continuing import comes_first
from klray.errors import StoreError
from klray.store import Store, layout
from klray.store.seal import sealed
from klray.store.twins import take_over
from klray.texts import TextSet
from tests.stores import TEXTS, add, assert_holds, change, column
from tests.test_cli import klray as klray_says

NOW = timedelta(0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two columns published, one more committed."""
    store = Store.create(str(tmp_path_factory.mktemp("made") / "store"), TEXTS)
    add(store, column("b", 1), column("b", 2))
    store.publish()
    add(store, column("a", 1))
    return Path(store.url)


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    return Store.open(str(shutil.copytree(made, tmp_path / "store")))


@pytest.mark.parametrize(
    ("before", "after"),
    [('"step": 1', '"step": 91'), ('"repository": "org/a"', '"repository": "org/z"'), ("{", "[{")],
)
def test_change_in_a_commit_is_found_told_and_left_out_until_repair(
    store: Store, before: str, after: str, caplog: pytest.LogCaptureFixture
) -> None:
    key = column("a", 1).identity.key
    change(store, layout.commit_path(key), before, after)
    assert_left_out(store, key, caplog)
    store.repair(store.audit(), NOW)
    assert store.audit().damages == () and store.catalog().damaged == ()
    store.add_column(column("a", 1))
    assert store.publish()[0].n_left_out == 0
    assert "left_out" not in store.dataset().attrs
    assert_holds(store, column("b", 1), column("b", 2), column("c", 1), column("a", 1))


def assert_left_out(store: Store, key: str, caplog: pytest.LogCaptureFixture) -> None:
    """The commit stops nobody, none of its values is published, and publish, status, verify and readers are told."""
    assert store.publish() == (store.manifest(), False)
    assert re.search(rf"commits/{key}.json is damaged \(.*\); klray verify .*repair=true .*score .* again", caplog.text)
    assert "1 committed column cannot be read: 1 left out" in caplog.text
    store.add_column(column("c", 1))
    manifest, new = store.publish()
    assert new and manifest.n_left_out == 1
    assert_holds(store, column("b", 1), column("b", 2), column("c", 1))
    left_out = klray.open_dataset(store.url).attrs["left_out"]
    assert left_out == f"1 committed column could not be read when this was published: commits/{key}.json"
    (told,) = store.catalog().damaged
    assert (told.key, told.kept) == (key, False)
    (damage,) = store.audit().damages
    assert damage.key == key
    assert not [each for each in store.leftovers(store.catalog()) if each.kind == "column"], "whose folder it is"


@pytest.mark.parametrize(
    "target", ["/dev/zero", "/etc/passwd", "/no/such/place", "/etc", "folder", "full folder", "itself"]
)
def test_what_is_no_file_in_place_of_a_commit_is_found_and_repair_removes_it_alone(
    store: Store, target: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = column("a", 1).identity.key
    path = Path(store.url) / layout.commit_path(key)
    path.unlink()
    if target.endswith("folder"):
        path.mkdir()
        if target == "full folder":
            (path / "a").write_bytes(b"x")
    else:
        path.symlink_to(path.name if target == "itself" else target)
    assert store.is_committed(key) and key in store.committed_keys(), "a job would wait for it in vain"
    assert_left_out(store, key, caplog)
    assert layout.commit_path(key) in store.repair(store.audit(), NOW)
    assert not path.is_symlink() and not path.exists() and store.audit().damages == ()
    assert store.publish()[0].n_models == 3
    assert store.add_column(column("a", 1))[1]


def test_a_commit_of_very_many_layers_with_long_facts_is_left_out(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    commit = next(each for each in store.commits() if each.key == column("a", 1).identity.key)
    fields = dataclasses.asdict(commit)
    fields |= {"layers": list(range(-1, 9_999)), "facts": {name: "x" * 4096 for name in ("family", "run", "parents")}}
    (Path(store.url) / layout.commit_path(commit.key)).write_bytes(sealed(fields))
    assert_left_out(store, commit.key, caplog)


def test_published_column_whose_commit_is_damaged_later_keeps_its_place_and_values(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """So results can be continued; the snapshot's own hashes vouch for the values."""
    key = column("b", 1).identity.key
    change(store, layout.commit_path(key), '"step": 1', '"step": 91')
    assert store.publish()[1]
    assert "1 committed column cannot be read: 0 left out, 1 kept as the snapshot before has it" in caplog.text
    assert_holds(store, column("b", 1), column("b", 2), column("a", 1))
    assert store.dataset()["step"].values.tolist() == [1, 2, 1] and "left_out" not in store.dataset().attrs
    assert [(each.key, each.kept) for each in store.catalog().damaged] == [(key, True)]
    assert store.publish() == (store.manifest(), False)
    store.repair(store.audit(), NOW)
    assert store.publish()[0].n_models == 2
    assert_holds(store, column("b", 2), column("a", 1))


def test_published_column_whose_commit_and_snapshot_are_damaged_is_left_out(store: Store) -> None:
    key = column("b", 1).identity.key
    change(store, layout.commit_path(key), '"step": 1', '"step": 91')
    (Path(store.url) / "snapshots" / store.manifest().id / layout.CATALOG).write_bytes(b"other bytes")
    assert store.publish()[0].n_left_out == 1
    assert_holds(store, column("b", 2), column("a", 1))


@pytest.mark.parametrize("body", [None, b"", "swapped"])
def test_column_that_is_not_what_was_committed_is_left_out(
    store: Store, body: bytes | str | None, caplog: pytest.LogCaptureFixture
) -> None:
    lost = column("a", 1).identity.key
    commits = {each.key: each for each in store.commits()}
    path = Path(store.url) / layout.values_path(commits[lost].path)
    other = Path(store.url) / layout.values_path(commits[column("b", 2).identity.key].path)
    path.unlink() if body is None else path.write_bytes(other.read_bytes() if isinstance(body, str) else body)
    store.add_column(column("c", 1))
    for new in (True, False):
        caplog.clear()
        manifest, made = store.publish()
        assert made == new and manifest.n_left_out == 1
        assert f"{commits[lost].path} of org/a" in caplog.text and f"takes commits/{lost}.json out" in caplog.text
    assert_holds(store, column("b", 1), column("b", 2), column("c", 1))
    assert f"commits/{lost}.json" in store.dataset().attrs["left_out"]
    assert store.leftovers(store.catalog()) == [], "what was begun with it is gone"
    store.repair(store.audit(), NOW)
    store.add_column(column("a", 1))
    store.publish()
    assert_holds(store, column("b", 1), column("b", 2), column("c", 1), column("a", 1))


def test_what_is_no_file_below_a_snapshot_or_a_result_is_damage_and_stops_nobody(store: Store) -> None:
    first = store.manifest()
    store.write_result(first.id, "kl", xr.Dataset({"kl": (("model", "other"), np.eye(3))}))
    objects = [layout.chunk_path(first.id, 0), next(key for key in store.objects.walk(layout.RESULTS) if "/c/" in key)]
    for key, target in zip(objects, ("itself", "/dev/zero"), strict=True):
        path = Path(store.url) / key
        path.unlink()
        path.symlink_to(path.name if target == "itself" else target)
    assert sorted(damage.path for damage in store.audit().damages) == sorted(objects)
    store.add_column(column("c", 1))
    second, made = store.publish()
    assert made and (second.n_models, second.n_left_out) == (4, 0)
    with pytest.raises(StoreError, match="remove that link"):
        store.result(first.id, "kl").load()
    store.write_result(first.id, "kl", xr.Dataset({"kl": (("model", "other"), np.eye(3))}))
    store.result(first.id, "kl").load()


def test_commit_of_other_texts_is_none_of_this_store(tmp_path: Path, store: Store) -> None:
    """A column that was copied from another store of as many texts would be read as if it were of these."""
    texts = TextSet("other", tuple(f"other {i} " * 40 for i in range(len(TEXTS))), TEXTS.domains)
    other = Store.create(str(tmp_path / "other"), texts)
    other.add_column(column("z", 1, texts))
    shutil.copytree(other.url, store.url, dirs_exist_ok=True, ignore=shutil.ignore_patterns("zarr.json", "texts"))
    for path in Path(other.url).glob("columns/**/zarr.json"):
        shutil.copy(path, Path(store.url) / path.relative_to(other.url))
    manifest, _ = store.publish()
    assert manifest.n_left_out == 1
    assert_holds(store, column("b", 1), column("b", 2), column("a", 1))
    key = column("z", 1, texts).identity.key
    assert [each.key for each in store.audit().damages] == [key]
    assert take_over(store.objects, key, column("y", 1).identity, {}) is None
    store.repair(store.audit(), NOW)
    assert store.audit().damages == ()


def test_store_whose_every_column_is_damaged_has_nothing_to_publish(tmp_path: Path) -> None:
    store = Store.create(str(tmp_path / "store"), TEXTS)
    add(store, column("a", 1))
    change(store, layout.commit_path(column("a", 1).identity.key), "{", "[{")
    with pytest.raises(StoreError, match="no committed column that is sound, 1 are damaged"):
        store.publish()


def test_status_and_publish_say_which_commits_are_damaged(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [column("a", 1).identity.key, column("b", 1).identity.key]
    for key in keys:
        change(store, layout.commit_path(key), "{", "[{")
    store.add_column(column("c", 1))
    code, out, errors = klray_says(capsys, monkeypatch, "publish", f"store.url={store.url}")
    assert code == 0 and "3 models, 12 texts; 1 committed column could not be read" in out, errors
    code, out, errors = klray_says(capsys, monkeypatch, "status", f"store.url={store.url}")
    assert code == 0, errors
    assert "damaged    2 committed columns cannot be read: 1 left out, 1 kept as the snapshot before has it\n" in out
    lines = [line for line in out.splitlines() if "is damaged (" in line]
    assert len(lines) == 2 and all(any(key in line for line in lines) for key in keys)
    assert all("verify.repair=true takes" in line for line in lines)
    code, out, _ = klray_says(capsys, monkeypatch, "verify", f"store.url={store.url}")
    assert code == 1 and "2 hold what was committed, 2 do not" in out


@pytest.mark.parametrize(
    "identifier", ["20269999T999999.999Z-00000000", "20261231T235960.000Z-aaaaaaaa", "21991231T235959.999Z-ffffffff"]
)
def test_snapshot_of_no_day_or_of_years_to_come_stops_no_publisher(store: Store, identifier: str) -> None:
    manifest = store.manifest()
    shutil.copytree(Path(store.url) / "snapshots" / manifest.id, Path(store.url) / "snapshots" / identifier)
    forged = dataclasses.replace(manifest, id=identifier, generation=9)
    store.objects.put(layout.manifest_path(identifier), forged.to_json())
    store.objects.put(layout.LATEST, json.dumps({"id": identifier}).encode())
    published, new = store.publish()
    assert new and store.manifest() == published and store.publish() == (published, False)
    assert_holds(store, column("b", 1), column("b", 2), column("a", 1))
    assert published.id[:4] == str(datetime.now(UTC).year)


def test_column_that_was_scored_again_with_other_values_is_no_part_of_an_earlier_result(store: Store) -> None:
    store.publish()
    before = store.dataset().load()
    key = column("a", 1).identity.key
    change(store, layout.commit_path(key), "{", "[{")
    assert comes_first(before, store.dataset()), "as long as its values are those of the snapshot"
    store.repair(store.audit(), NOW)
    again = column("a", 1)
    store.add_column(dataclasses.replace(again, log_likelihood=again.log_likelihood * (1 + 1e-6)))
    assert store.publish()[1]
    assert store.dataset()["key"].values.tolist() == before["key"].values.tolist()
    assert not comes_first(before, store.dataset())


def test_analysis_goes_on_without_the_sketch_of_a_commit_that_cannot_be_read(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    sketched = [column(name, 1, sketch="64-v1-x") for name in ("s", "t")]
    add(store, *(dataclasses.replace(each, weight_sketch=np.ones(64, np.float32)) for each in sketched))
    lost, kept = (each.identity.key for each in sketched)
    change(store, layout.commit_path(lost), "{", "[{")
    assert list(store.read_sketches([lost, kept])) == [kept]
    assert f"commits/{lost}.json is damaged" in caplog.text and "without its weight sketch" in caplog.text
