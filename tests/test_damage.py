"""Damage of every kind of object: found, said in words, never handed on, and with a way out that works."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import klray
from klray.errors import StoreError, StoreUnreachableError
from klray.store import Store, layout
from klray.store.columns import commit_column
from klray.store.objects import JSON_BYTES, FolderObjects
from tests.stores import ON_S3_TOO, TEXTS, add, assert_holds, change, column, put_column
from tests.test_cli import klray as klray_says

NOW = timedelta(0)


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store.create(str(tmp_path_factory.mktemp("undamaged") / "store"), TEXTS)
    add(store, column("b", 1), column("b", 2))
    store.publish()
    add(store, column("a", 1))
    return Path(store.url)


@pytest.fixture
def store(undamaged: Path, tmp_path: Path) -> Store:
    """Two columns published, one more committed; a copy for each test."""
    shutil.copytree(undamaged, tmp_path / "store")
    return Store.open(str(tmp_path / "store"))


@pytest.mark.parametrize("name", ["text_bytes/c/0", "domain/c/0", "domain/zarr.json", "zarr.json"])
@pytest.mark.parametrize("how", ["lost", "cut", "empty"])
def test_damaged_texts_are_said_and_score_mends_them(store: Store, name: str, how: str) -> None:
    path = Path(store.url) / "texts" / name
    body = path.read_bytes()
    path.unlink() if how == "lost" else path.write_bytes(body[: len(body) // 2] if how == "cut" else b"")
    with pytest.raises(StoreError, match=r"run klray score on it once more"):
        Store.open(store.url)
    mended = Store.create(store.url, TEXTS)
    np.testing.assert_array_equal(mended.texts.text_bytes, TEXTS.n_bytes)
    assert mended.texts.domains == TEXTS.domains


@pytest.mark.parametrize("damaged", ["architecture/zarr.json", layout.CATALOG, "LATEST", "manifest", "manifest lost"])
def test_models_keep_their_places_whatever_is_damaged(store: Store, damaged: str) -> None:
    first = store.manifest()
    store.publish()
    add(store, column("0", 1))  # whose place would be the first
    second = store.manifest()
    if damaged == "LATEST":
        change(store, layout.LATEST, second.id, "9" + second.id[1:])
    elif damaged == "manifest":
        change(store, layout.manifest_path(second.id), '"generation": 2', '"generation": 7')
    elif damaged == "manifest lost":
        (Path(store.url) / layout.manifest_path(second.id)).unlink()
    else:
        (Path(store.url) / "snapshots" / second.id / damaged).write_bytes(b"other bytes")
    assert store.audit().damages
    store.publish()
    places = store.dataset()["repository"].values.tolist()
    # Where the second snapshot is no longer known, the first one's places are what is left.
    assert places[:2] == ["org/b", "org/b"] and sorted(places) == ["org/0", "org/a", "org/b", "org/b"]
    if not damaged.startswith("manifest"):
        assert places == ["org/b", "org/b", "org/a", "org/0"]
    assert store.manifest().order > first.order


def test_snapshot_is_never_read_as_other_values(store: Store) -> None:
    manifest = store.manifest()
    path = Path(store.url) / layout.chunk_path(manifest.id, 0)
    for body in (path.read_bytes()[::-1], path.read_bytes()[:-8], b""):
        path.write_bytes(body)
        with pytest.raises(StoreError, match=r"log_likelihood/c/0/0 holds .*klray verify"):
            klray.open_dataset(store.url)["log_likelihood"].load()


def test_damaged_result_is_found_and_not_removed(store: Store) -> None:
    manifest = store.manifest()
    path = store.write_result(manifest.id, "t", xr.Dataset({"kl": (("model", "other"), np.eye(2))}))
    assert store.audit().damages == ()
    chunk = Path(store.url) / path / "kl" / "c" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes() + b"x")
    assert [damage.path for damage in store.audit().damages] == [f"{path}/kl/c/0/0"]
    chunk.unlink()
    with pytest.raises(StoreError, match="kl/c/0/0 is missing"):
        store.result(manifest.id, "t").load()
    marker = layout.result_marker_path(manifest.id, "t")
    change(store, marker, "/t/", "/u/")
    assert [damage.path for damage in store.audit().damages] == [marker]
    assert store.repair(store.audit(), NOW) == []
    with pytest.raises(StoreError, match=r"is damaged .*run klray analyze again"):
        store.result(manifest.id, "t")


def test_damaged_snapshot_is_removed_when_it_is_asked_for_by_name_and_is_not_needed(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = store.manifest()
    table = xr.Dataset({"kl": (("model", "other"), np.eye(2))})
    store.write_result(old.id, "trajectory", table)
    (Path(store.url) / layout.chunk_path(old.id, 0)).write_bytes(b"other bytes")
    asked = ["verify", f"store.url={store.url}", "verify.repair=true", f"verify.snapshots=[{old.id}]"]
    code, _, errors = klray_says(capsys, monkeypatch, *asked)
    assert code == 1 and "klray publish" in errors, "it is the newest"
    new, _ = store.publish()
    code, out, _ = klray_says(capsys, monkeypatch, *asked[:2])
    assert code == 1 and f"{' '.join(asked[2:3])} '{asked[3]}'" in out
    code, _, errors = klray_says(capsys, monkeypatch, *asked)
    assert code == 1 and "trajectory" in errors and "klray analyze" in errors
    store.write_result(new.id, "trajectory", table)
    code, out, errors = klray_says(capsys, monkeypatch, *asked)
    assert code == 0, errors
    assert store.snapshot_ids() == [new.id] and (store.audit().damages, store.audit().leftovers) == ((), ())
    assert_holds(store, column("b", 1), column("b", 2), column("a", 1))
    code, _, errors = klray_says(capsys, monkeypatch, *asked[:3], f"verify.snapshots=[{new.id}]")
    assert code == 1 and "no damaged snapshot" in errors


def test_probe_of_a_job_at_work_is_no_leftover(store: Store) -> None:
    for name, minutes in (("young", 1), ("old", 60)):
        store.objects.put(f"probes/{name}/0", b"x")
        then = time.time() - 60 * minutes
        os.utime(Path(store.url) / f"probes/{name}/0", (then, then))
    assert [(each.kind, each.path) for each in store.leftovers(store.catalog())] == [("probe", "probes/old")]


def test_repair_leaves_what_became_visible_since_the_audit(store: Store) -> None:
    commit = put_column(store, column("a", 2), "d" * 32)
    found = store.audit()
    assert [each.path for each in found.leftovers] == [commit.path]
    assert commit_column(store.objects, commit)
    assert store.repair(found, NOW) == []
    store.read_column(commit)


def test_publisher_that_was_stopped_until_its_folder_was_removed_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = FolderObjects.fingerprints

    def remove(objects: FolderObjects, prefix: str) -> dict[str, str]:
        objects.delete_tree("/".join(prefix.split("/")[:2]))
        return look(objects, prefix)

    before = store.snapshot_ids()
    with monkeypatch.context() as patch, pytest.raises(StoreError, match=r"removed meanwhile; run publish"):
        patch.setattr(FolderObjects, "fingerprints", remove)
        store.publish()
    assert store.snapshot_ids() == before
    assert store.publish()[1]


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'{"family": 3}'])
def test_plan_that_cannot_be_read_is_passed_over(store: Store, body: bytes) -> None:
    store.record_plan("fam", ["a", "b"])
    store.objects.put("plans/other-0000.json", body)
    assert store.wanted_keys()["fam"] == {"a", "b"}


def test_server_that_is_busy_is_not_taken_for_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    key = column("a", 1).identity.key
    store.objects.put(layout.commit_path(key), b"{cut")
    found = store.audit()
    assert [damage.key for damage in found.damages if damage.key] == [key]

    def busy(objects: FolderObjects, keys: list[str], most: int = 0) -> list[bytes | None]:
        raise StoreUnreachableError("the server is busy")

    with monkeypatch.context() as patch:
        patch.setattr(FolderObjects, "get_many", busy)
        for work in (store.audit, lambda: store.repair(found, NOW), store.publish):
            with pytest.raises(StoreUnreachableError):
                work()
    assert store.objects.get(layout.commit_path(key)) == b"{cut"


@pytest.mark.parametrize("opens", [Store.open, lambda url: Store.create(url, TEXTS)])
def test_texts_that_a_busy_server_keeps_back_are_not_damaged(
    store: Store, opens: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    get = FolderObjects.get

    def busy(objects: FolderObjects, key: str, most: int = JSON_BYTES) -> bytes | None:
        if key.startswith("texts/text_bytes/c"):
            raise StoreUnreachableError("the server is busy")
        return get(objects, key, most)

    monkeypatch.setattr(FolderObjects, "get", busy)
    with pytest.raises(StoreUnreachableError):
        opens(store.url)


def test_column_that_a_busy_server_keeps_back_is_not_damaged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are not those of the commit are read once more, as columns of before the first release were."""

    def busy(objects: FolderObjects, key: str, most: int = JSON_BYTES) -> bytes | None:
        raise StoreUnreachableError("the server is busy")

    commit = store.commits()[0]

    def other_values(objects: FolderObjects, keys: list[str], most: int = 0) -> list[bytes | None]:
        return [b"other" if "/c/" in key else busy(objects, key) for key in keys]

    monkeypatch.setattr(FolderObjects, "get_many", other_values)
    monkeypatch.setattr(FolderObjects, "get", busy)
    with pytest.raises(StoreUnreachableError):
        store.read_column(commit)


def test_plan_that_is_damaged_is_passed_over_and_written_again(store: Store) -> None:
    store.record_plan("fam", ["a", "b"])
    (path,) = [f"plans/{name}" for name in store.objects.names("plans")]
    whole = store.objects.get(path)
    assert whole is not None
    store.objects.put(path, whole.replace(b'"b"', b'"c"'))
    assert store.wanted_keys() == {}
    store.record_plan("fam", ["a", "b"])
    assert store.objects.get(path) == whole and store.wanted_keys() == {"fam": {"a", "b"}}


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'{"id": 3}'])
@pytest.mark.parametrize("name", ["snapshots/LATEST.json", "zarr.json"])
def test_json_of_another_kind_is_said_in_words(store: Store, name: str, body: bytes) -> None:
    store.objects.put(name, body)
    with pytest.raises(StoreError):
        klray.open_dataset(store.url)


@ON_S3_TOO
def test_store_that_was_moved_from_s3_to_a_folder_is_sound(place: str, tmp_path: Path) -> None:
    there = Store.create(place, TEXTS)
    add(there, column("b", 1), column("b", 2))
    manifest, _ = there.publish()
    there.write_result(manifest.id, "t", xr.Dataset({"kl": (("model", "other"), np.eye(2))}))
    here = FolderObjects(tmp_path / "moved")
    keys = list(there.objects.walk(""))
    bodies: Mapping[str, bytes | None] = {key: there.objects.get(key) for key in keys}
    here.put_many({key: body for key, body in bodies.items() if body is not None})
    moved = Store.open(here.url)
    assert moved.audit() == dataclasses.replace(moved.audit(), sound=2, damages=(), leftovers=())
    assert moved.publish() == (manifest, False)
    assert json.loads((tmp_path / "moved" / "snapshots" / "LATEST.json").read_text())["id"] == manifest.id


def test_labels_of_rows_that_differ_in_their_lens_alone(store: Store) -> None:
    plain = column("c", 1)
    lens = dataclasses.replace(plain, identity=dataclasses.replace(plain.identity, lens="logit"))
    add(store, plain)
    store.add_column(lens)
    store.publish()
    assert len(set(store.dataset()["model"].values)) == 5


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"\xff", b"{cut", b'{"key": 3}', "message", "reason", "key", "revision", "unsealed number"],
)
def test_damaged_failure_record_is_passed_over_with_a_warning(
    store: Store, body: bytes | str, caplog: pytest.LogCaptureFixture
) -> None:
    for name, attempt in (("c", "1" * 32), ("d", "2" * 32)):
        store.record_failure(column(name, 1).identity, "step1", "disk_full", "no room", attempt)
    path = Path(store.url) / layout.failure_path(column("c", 1).identity.key, "1" * 32)
    if isinstance(body, str):
        fields = json.loads(path.read_text())
        if body == "unsealed number":
            del fields["seal"]
            fields["message"] = 3
        else:
            fields[body] += "0"
        path.write_text(json.dumps(fields))
    else:
        path.write_bytes(body)
    assert [each.repository for each in store.failures()] == ["org/d"]
    assert f"failures/{path.name} is damaged (" in caplog.text
    assert "passed over; klray score records" in caplog.text


def test_failure_record_without_a_seal_is_believed(store: Store) -> None:
    failure = store.record_failure(column("c", 1).identity, "step1", "disk_full", "no room", "1" * 32)
    path = layout.failure_path(failure.key, "1" * 32)
    store.objects.put(path, json.dumps(dataclasses.asdict(failure)).encode())
    assert store.failures() == [failure]


def test_repair_says_that_the_folder_of_a_column_stays_and_when_it_goes(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (commit,) = store.commits([column("a", 1).identity.key])
    (Path(store.url) / commit.path / "status" / "zarr.json").write_bytes(b"")
    words = ["verify", f"store.url={store.url}", "verify.repair=true", "verify.grace_hours=0"]
    _, out, _ = klray_says(capsys, monkeypatch, *words)
    assert "1 folder of columns that were taken" in out
    assert f"removes what nobody wrote to for 0 h\n  {commit.path}\n" in out
    assert (Path(store.url) / commit.path).is_dir()
    _, out, _ = klray_says(capsys, monkeypatch, *words)
    assert f"removed    1\n  {commit.path}\n" in out and "stay  " not in out
    assert not (Path(store.url) / commit.path).exists()


def test_status_has_a_block_for_each_thing(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.record_failure(column("c", 1).identity, "step1", "disk_full", "no room", "1" * 32)
    code, out, errors = klray_says(capsys, monkeypatch, "status", f"store.url={store.url}")
    assert code == 0, errors
    firsts = [block.split()[0] for block in out.split("\n\n")]
    assert firsts == ["store", "jobs", "family", "repository", "failures", "warnings"]


@pytest.mark.parametrize("backend", ["s3fs", "obstore"])
def test_patterns_in_a_prefix_are_names(s3_url: str, backend: str) -> None:
    prefix, matched = "br[1]*/a?version=1#b/{a,b}25% c", "br1x/a0version=1#b/a25% c"
    store = Store.create(f"{s3_url}/{prefix}", TEXTS, {"backend": backend})
    add(store, column("a", 1), column("a", 2))
    manifest, _ = store.publish()
    beside = Store.create(f"{s3_url}/{matched}", TEXTS, {"backend": backend})
    assert beside.committed_keys() == set() and len(store.committed_keys()) == 2
    add(beside, column("b", 1))
    assert_holds(Store.open(store.url), column("a", 1), column("a", 2))
    assert store.audit().damages == () and store.audit().sound == 2
    plain = xr.open_zarr(f"{store.url}/snapshots/{manifest.id}")
    np.testing.assert_array_equal(plain["log_likelihood"], store.dataset()["log_likelihood"])


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("a//b", "a part of the prefix is '', which"),
        (
            "a/../b",
            r"prefix is '\.\.', .*; write s3://",
        ),
        ("./b", r"a part of the prefix is '\.', which"),
        ("a/b\x01c", r"prefix is 'b\\x01c', .*; write s3://"),
        ("\ud800", r"prefix is '\\ud800', with characters"),
        ("a?versionId=1", r"\?versionId= .*; write s3://"),
    ],
)
@pytest.mark.parametrize("backend", ["s3fs", "obstore"])
def test_prefix_that_libraries_take_for_something_else_is_refused(prefix: str, words: str, backend: str) -> None:
    with pytest.raises(StoreError, match=words):
        Store.open(f"s3://bucket/{prefix}", {"backend": backend})


def test_folder_where_an_object_would_be_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "failures" / ".ipynb_checkpoints").mkdir(parents=True)
    assert FolderObjects(tmp_path).get("failures/.ipynb_checkpoints") is None
    assert list(FolderObjects(tmp_path).get_many(["failures"])) == [None]


def test_a_result_is_never_read_as_other_values(store: Store) -> None:
    manifest = store.manifest()
    values = {"kl": (("model", "other"), np.eye(2)), "error": (("model", "other"), 2 * np.eye(2))}
    path = Path(store.url) / store.write_result(manifest.id, "t", xr.Dataset(values))
    for name, body in (("kl/c/0/0", (path / "error/c/0/0").read_bytes()), ("zarr.json", b"{")):
        whole = (path / name).read_bytes()
        (path / name).write_bytes(body)
        with pytest.raises(StoreError, match=rf"{name} holds .*the command that wrote it"):
            store.result(manifest.id, "t").load()
        (path / name).write_bytes(whole)
    assert store.result(manifest.id, "t")["kl"].values.tolist() == np.eye(2).tolist()
