"""The store on a folder: the protocol's promises, one by one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from botocore.exceptions import ClientError

import klray
from klray.errors import StoreError
from klray.store import Column, Identity, Store, unresolved
from klray.store.columns import commit_column, values_sha256
from klray.store.objects import FolderObjects, open_objects
from klray.store.objects.s3 import S3Objects
from klray.texts import TextSet
from tests.faults.forked import CONTEXT, forked_from
from tests.stores import EVERY_PLACE, N_TEXTS, TEXTS, add, column, create_one, put_column


@EVERY_PLACE
def test_column_is_visible_only_after_its_commit_and_keeps_its_bits(store: Store) -> None:
    written = column("a", 1)
    commit = put_column(store, written, attempt="0" * 32)
    assert store.committed_keys() == set()
    assert commit_column(store.objects, commit)
    assert store.committed_keys() == {written.identity.key}
    (found,) = Store.open(store.url).commits()
    assert found == commit
    np.testing.assert_array_equal(store.read_column(found), written.log_likelihood.astype(np.float32))


@EVERY_PLACE
def test_first_commit_stands_and_the_second_attempt_is_an_orphan(store: Store) -> None:
    first, second = column("a", 1), column("a", 1)
    late = put_column(store, second, attempt="f" * 32)
    assert commit_column(store.objects, put_column(store, first, attempt="0" * 32))
    assert not commit_column(store.objects, late)
    (found,) = store.commits()
    assert found.attempt == "0" * 32
    assert late.path != found.path


@pytest.mark.slow
def test_sixteen_processes_create_one_object_and_one_wins(tmp_path: Path) -> None:
    with forked_from("tests.stores"), CONTEXT.Pool(4) as pool:
        won = pool.map(create_one, [(str(tmp_path), number) for number in range(16)], chunksize=1)
    assert sum(won) == 1
    body = FolderObjects(tmp_path).get("commits/one.json")
    assert body == f"attempt {won.index(True)}".encode() * 1000
    assert [path.name for path in (tmp_path / "commits").iterdir()] == ["one.json"]


def test_identity_key_is_the_sha256_of_canonical_json_and_any_part_changes_it() -> None:
    identity = Identity("org/a", "c" * 40, "t" * 64)
    canonical = (
        f'{{"commit":"{"c" * 40}","dtype":"float32","lens":"none","numerics":1,"quantization":"none",'
        f'"repository":"org/a","text_set":"{"t" * 64}",'
        '"tokenization":"tokenizer-defaults/first-token-uncounted/no-truncation"}'
    )
    assert identity.key == hashlib.sha256(canonical.encode()).hexdigest()
    variants = {
        identity.key,
        Identity("org/b", "c" * 40, "t" * 64).key,
        Identity("org/a", "d" * 40, "t" * 64).key,
        Identity("org/a", "c" * 40, "u" * 64).key,
        Identity("org/a", "c" * 40, "t" * 64, dtype="bfloat16").key,
        Identity("org/a", "c" * 40, "t" * 64, quantization="int8").key,
        Identity("org/a", "c" * 40, "t" * 64, lens="logit").key,
    }
    assert len(variants) == 7


def test_another_text_set_is_refused_with_both_sets_named(store: Store) -> None:
    fewer = TextSet("fewer", TEXTS.texts[:9], TEXTS.domains[:9])
    with pytest.raises(StoreError, match=r"12 texts .*test.* 9 texts .*fewer.*set texts="):
        Store.create(store.url, fewer)
    with pytest.raises(StoreError, match=r"column org/a@step1 has 9 texts .*the store has 12 .*set texts="):
        store.add_column(column("a", 1, text_set=fewer))


def test_newer_schema_is_refused_with_both_versions(folder_store: Store) -> None:
    root = Path(folder_store.url) / "zarr.json"
    body = json.loads(root.read_text())
    body["attributes"]["klray_schema"] = 2
    root.write_text(json.dumps(body))
    with pytest.raises(StoreError, match=r"schema 2, .* schema 1; upgrade klray"):
        Store.open(folder_store.url)
    with pytest.raises(StoreError, match="upgrade klray"):
        klray.open_dataset(folder_store.url)


def test_places_that_are_no_store_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no klray store"):
        Store.open(str(tmp_path / "nothing"))
    with pytest.raises(StoreError, match=r"folders, s3:// and https:// .*not gs://"):
        open_objects("gs://bucket/prefix")
    with pytest.raises(StoreError, match=r"store.url=s3:.*two slashes"):
        open_objects("s3:bucket/prefix")
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(StoreError, match="was not made by klray"):
        Store.open(str(tmp_path))


def test_store_whose_creation_was_cut_short_is_completed(tmp_path: Path) -> None:
    store = Store.create(str(tmp_path), TEXTS)
    (tmp_path / "texts" / "zarr.json").unlink()
    with pytest.raises(StoreError, match="its creation was cut short"):
        Store.open(store.url)
    again = Store.create(store.url, TEXTS)
    assert again.texts.domains == TEXTS.domains
    np.testing.assert_array_equal(again.texts.text_bytes, TEXTS.n_bytes)


def test_repair_leaves_a_column_that_was_written_anew_since_the_audit(folder_store: Store) -> None:
    add(folder_store, column("a", 1))
    (commit,) = folder_store.commits()
    folder_store.objects.delete_tree(f"{commit.path}/log_likelihood/c")
    found = folder_store.audit()
    assert folder_store.repair(folder_store.audit(), timedelta(hours=1)) == [f"commits/{commit.key}.json"]
    assert commit_column(folder_store.objects, put_column(folder_store, column("a", 1), "e" * 32))
    assert folder_store.repair(found, timedelta(hours=1)) == []
    assert [each.attempt for each in folder_store.commits()] == ["e" * 32]


def test_store_whose_creator_died_between_two_arrays_is_completed(
    folder_store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_many = FolderObjects.put_many

    def dies(objects: FolderObjects, bodies: Mapping[str, bytes]) -> None:
        put_many(objects, {key: body for key, body in bodies.items() if not key.startswith("texts/domain/")})
        if any(key.startswith("texts/domain/") for key in bodies):
            raise OSError("no space left")

    monkeypatch.setattr(FolderObjects, "put_many", dies)
    with pytest.raises(OSError, match="no space left"):
        Store.create(str(tmp_path / "other"), TEXTS)
    monkeypatch.undo()
    assert not (tmp_path / "other" / "texts" / "zarr.json").exists()
    with pytest.raises(StoreError, match="its creation was cut short"):
        Store.open(str(tmp_path / "other"))
    assert Store.create(str(tmp_path / "other"), TEXTS).texts.domains == TEXTS.domains


def test_failure_stands_until_the_checkpoint_is_committed(store: Store) -> None:
    each = column("a", 1)
    store.record_failure(each.identity, "step1", "download_failed", "first", attempt="1" * 32)
    store.record_failure(each.identity, "step1", "disk_full", "second", attempt="2" * 32)
    gone = Identity("org/gone", unresolved("main"), TEXTS.fingerprint)
    store.record_failure(gone, "main", "repository_not_found", "no such", attempt="3" * 32)
    assert [(f.repository, f.reason, f.message) for f in store.failures()] == [
        ("org/a", "disk_full", "second"),
        ("org/gone", "repository_not_found", "no such"),
    ]
    add(store, each)
    assert [f.repository for f in store.failures()] == ["org/gone"]


def test_all_zero_column_is_written_not_assumed(folder_store: Store) -> None:
    zero = column("zero", 1)
    add(folder_store, Column(zero.identity, np.zeros((1, N_TEXTS)), (-1,), np.zeros(N_TEXTS, int), zero.facts, {}, {}))
    (commit,) = folder_store.commits()
    assert commit.sha256 == values_sha256(np.zeros((1, N_TEXTS), np.float32))
    assert folder_store.read_column(commit).tolist() == [[0.0] * N_TEXTS]
    assert list((Path(folder_store.url) / commit.path / "status" / "c").iterdir())


def test_odd_revisions_have_a_safe_path(folder_store: Store) -> None:
    odd = column("a", 1)
    add(
        folder_store,
        Column(odd.identity, odd.log_likelihood, (-1,), odd.n_tokens, {"revision": "../refs/pr/1 é"}, {}, {}),
    )
    (commit,) = folder_store.commits()
    path = (Path(folder_store.url) / commit.path).resolve()
    assert path.is_relative_to(Path(folder_store.url) / "columns" / "org--a")
    assert len(path.relative_to(folder_store.url).parts) == 4


def test_long_names_are_shortened_and_stay_apart(folder_store: Store) -> None:
    long = "x" * 300
    first = dataclasses.replace(column("a", 1), facts={"revision": long + "1"})
    second = dataclasses.replace(column("b", 1), facts={"revision": long + "2"})
    add(folder_store, first, second)
    paths = [commit.path for commit in folder_store.commits()]
    assert all(len(part) <= 120 for path in paths for part in path.split("/"))
    assert len({path.split("/")[2] for path in paths}) == 2


def test_failure_of_what_can_be_resolved_now_is_withdrawn(store: Store) -> None:
    gone = Identity("org/gone", unresolved("main"), TEXTS.fingerprint)
    store.record_failure(gone, "main", "gated", "no access", attempt="3" * 32)
    store.withdraw_failures([Identity("org/other", unresolved("main"), TEXTS.fingerprint)])
    assert len(store.failures()) == 1
    store.withdraw_failures([gone])
    assert store.failures() == []


def test_damaged_and_foreign_places_are_named(folder_store: Store, tmp_path: Path) -> None:
    add(folder_store, column("a", 1))
    folder_store.publish()
    (Path(folder_store.url) / "snapshots" / "LATEST.json").write_text("{cut")
    with pytest.raises(StoreError, match=r"LATEST\.json is damaged .*remove it"):
        folder_store.dataset()
    assert [damage.path for damage in folder_store.audit().damages] == ["snapshots/LATEST.json"]
    folder_store.publish()
    assert folder_store.dataset().sizes["model"] == 1 and folder_store.audit().damages == ()
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is a file; name a folder"):
        Store.create(str(tmp_path / "file"), TEXTS)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(StoreError, match=r"no klray store: thesis\.tex"):
        Store.create(str(tmp_path / "home"), TEXTS)


def test_s3_error_codes_are_found_along_the_chain_of_causes() -> None:
    cause = ClientError({"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "PutObject")
    error = OSError("translated")
    error.__cause__ = cause
    assert S3Objects._codes(error) >= {"SlowDown", "503"}


@EVERY_PLACE
def test_audit_finds_what_is_damaged_and_what_is_left_over(store: Store) -> None:
    add(store, column("a", 1), column("a", 2), column("a", 3))
    manifest, _ = store.publish()
    put_column(store, column("a", 4), "d" * 32)  # a writer that died before its commit
    orphan = put_column(store, column("a", 1), "e" * 32)
    assert not commit_column(store.objects, orphan)  # a writer that came second
    for _ in range(2):
        store.write_result(manifest.id, "trajectory", xr.Dataset({"kl": (("model", "other"), np.eye(2))}))
    store.objects.put("snapshots/20200101T000000.000Z-00000000.claim", b"a publisher that died")
    store.objects.put("snapshots/20200101T000000.000Z-00000000/zarr.json", b"{}")
    clean = store.audit()
    assert clean.sound == 3 and clean.damages == ()
    assert sorted(leftover.kind for leftover in clean.leftovers) == ["column", "column", "result", "snapshot"]
    assert store.repair(clean, timedelta(hours=1)) == []
    (damaged,) = [commit for commit in store.commits() if commit.facts["step"] == 2]
    store.objects.delete_tree(f"{damaged.path}/log_likelihood/c")
    store.objects.put("commits/" + column("a", 3).identity.key + ".json", b"{cut")
    found = store.audit()
    assert found.sound == 1 and len(found.damages) == 2 and len(found.leftovers) == 4
    removed = store.repair(found, timedelta(0))
    assert len(removed) == 6
    again = store.audit()
    assert (again.sound, again.damages) == (1, ())
    assert {leftover.kind for leftover in again.leftovers} == {"column"}  # of the two columns that were taken out
    assert commit_column(store.objects, put_column(store, column("a", 2), "9" * 32))
    assert store.publish()[0].n_models == 2
    assert store.result(manifest.id, "trajectory").sizes == {"model": 2, "other": 2}


def test_texts_are_published_once_and_for_their_store_alone(folder_store: Store) -> None:
    folder = Path(folder_store.url) / "texts" / "content"
    assert not folder.exists(), "a store holds no texts by itself"
    with pytest.raises(StoreError, match="is of the texts test"):
        folder_store.publish_texts(TextSet("other", ("another text",), ("a",)))
    folder_store.publish_texts(TEXTS)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    folder_store.publish_texts(TEXTS)
    assert before and before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert zarr.open_array(str(folder), mode="r")[:].tolist() == list(TEXTS.texts)
    assert Store.open(folder_store.url).texts.fingerprint == TEXTS.fingerprint
    found = folder_store.audit()
    assert (found.damages, found.leftovers) == ((), ())
