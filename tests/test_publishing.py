"""Publishing: only what is new is read, chunks are copied where they lie, nobody who dies or races leaves a mixture."""

from __future__ import annotations

import dataclasses
import json
import threading
import types
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from klray.errors import StoreError
from klray.store import Column, Store, layout, publishing
from klray.store.objects import JSON_BYTES, FolderObjects
from tests.stores import EVERY_PLACE, N_TEXTS, ON_S3_TOO, TEXTS, add, assert_holds, column


class Watched(FolderObjects):
    """A folder that keeps the keys that were read and copied."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.read: list[str] = []
        self.copied: list[str] = []

    def get(self, key: str, most: int = JSON_BYTES) -> bytes | None:
        self.read.append(key)
        return super().get(key, most)

    def copy(self, source: str, target: str, fingerprint: str) -> bool:
        self.copied.append(target)
        return super().copy(source, target, fingerprint)


@pytest.fixture
def two_models_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("klray.store.publishing.CHUNK_BYTES", 4 * N_TEXTS * 2)


def layered(name: str, step: int, n_layers: int) -> Column:
    plain = column(name, step)
    values = np.random.default_rng([step, n_layers]).normal(-500, 100, (n_layers, N_TEXTS))
    identity = dataclasses.replace(plain.identity, lens="logit")
    return dataclasses.replace(plain, identity=identity, log_likelihood=values, layers=tuple(range(n_layers)))


def test_only_new_columns_are_read_and_full_chunks_are_copied(tmp_path: Path, two_models_a_chunk: None) -> None:
    store = Store.create(str(tmp_path / "store"), TEXTS)
    old, new = [column("a", step) for step in range(5)], [column("b", 1), column("b", 2)]
    add(store, *old)
    store.publish()
    add(store, *new)
    watched = Watched(tmp_path / "store")
    manifest, _ = publishing.publish(watched, store.texts)
    assert_holds(store, *old, *new)
    read = set(watched.read)
    commits = {commit.key: commit for commit in store.commits()}
    for each in old:
        assert layout.values_path(commits[each.identity.key].path) not in read
        assert layout.commit_path(each.identity.key) not in read
    for each in new:
        assert layout.values_path(commits[each.identity.key].path) in read
    assert sorted(watched.copied) == [layout.chunk_path(manifest.id, number) for number in (0, 1)]


@ON_S3_TOO
def test_layers_lie_side_by_side_across_chunks(place: str, two_models_a_chunk: None) -> None:
    store = Store.create(place, TEXTS)
    first = [layered("a", 1, 3), layered("a", 2, 2)]
    add(store, *first)
    assert store.publish()[0].n_models == 5
    assert_holds(store, *first)
    add(store, layered("a", 3, 4))
    assert store.publish()[0].n_models == 9
    assert_holds(store, *first, layered("a", 3, 4))
    assert store.audit().damages == ()


@ON_S3_TOO
def test_column_that_was_scored_again_takes_its_own_place(place: str, two_models_a_chunk: None) -> None:
    store = Store.create(place, TEXTS)
    old = [column("a", step) for step in range(6)]
    add(store, *old)
    store.publish()
    again = dataclasses.replace(old[2], log_likelihood=old[2].log_likelihood + 1)
    store.objects.delete_tree(layout.commit_path(again.identity.key))  # as verify takes a damaged column out
    assert store.add_column(again)[1]  # within the second, on a server whose times are whole seconds
    manifest, new = store.publish()
    assert new and manifest.n_models == 6
    assert_holds(store, *old[:2], again, *old[3:])


def test_column_that_is_gone_closes_the_gap(place: str, two_models_a_chunk: None) -> None:
    store = Store.create(place, TEXTS)
    old = [column("a", step) for step in range(6)]
    add(store, *old)
    store.publish()
    store.objects.delete_tree(layout.commit_path(old[1].identity.key))
    store.publish()
    assert_holds(store, old[0], *old[2:])


def test_publisher_that_died_before_it_moved_latest_is_made_up_for(place: str) -> None:
    store = Store.create(place, TEXTS)
    add(store, column("a", 1))
    first, _ = store.publish()
    add(store, column("a", 2))
    second, _ = store.publish()
    store.objects.put(layout.LATEST, json.dumps({"id": first.id}).encode())
    assert store.publish() == (second, False)
    assert store.manifest() == second and store.snapshot_ids() == [first.id, second.id]


def test_publisher_that_died_before_its_manifest_leaves_nothing_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.create(str(tmp_path), TEXTS)
    add(store, column("a", 1))
    first, _ = store.publish()
    add(store, column("a", 2))

    def die(*_: object) -> tuple[str, ...]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(publishing, "write_chunks", die)
        store.publish()
    assert store.snapshot_ids() == [first.id] and store.manifest() == first
    (leftover,) = store.audit().leftovers
    assert leftover.kind == "snapshot"
    assert store.publish()[0].n_models == 2
    assert_holds(store, column("a", 1), column("a", 2))


@pytest.mark.slow
@EVERY_PLACE
def test_publishers_at_once_make_a_snapshot_each(place: str) -> None:
    store = Store.create(place, TEXTS)
    add(store, column("a", 1))
    store.publish()
    expected = [column("a", 1), *(column("b", step) for step in range(6))]
    barrier, failed = threading.Barrier(3), []

    def work(number: int) -> None:
        mine = Store.open(place)
        barrier.wait()
        for step in (number, number + 3):
            mine.add_column(column("b", step))
            try:
                mine.publish()
            except StoreError as error:
                failed.append(str(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    store.publish()
    rows = {each.identity.key: each.log_likelihood[0].astype(np.float32) for each in expected}
    for snapshot in store.snapshot_ids():
        data = store.dataset(snapshot).load()
        assert len(set(data["key"].values)) == data.sizes["model"] == store.manifest(snapshot).n_models
        for key, values in zip(data["key"].values, data["log_likelihood"].values, strict=True):
            np.testing.assert_array_equal(values, rows[key])
    assert store.manifest().n_models == 7
    assert store.audit().damages == ()


def test_id_is_above_that_of_the_snapshot_before_when_the_clock_is_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.create(str(tmp_path), TEXTS)
    add(store, column("a", 1))
    first, _ = store.publish()

    class Behind(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime.now(UTC) - timedelta(hours=3)

    add(store, column("a", 2))
    monkeypatch.setattr(publishing, "datetime", Behind)
    second, new = store.publish()
    assert new and second.id > first.id and store.manifest() == second
    monkeypatch.undo()
    add(store, column("a", 3))
    assert store.publish()[0].id > second.id and store.manifest().n_models == 3


def test_claim_of_a_publisher_that_died_in_the_same_millisecond_is_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.create(str(tmp_path), TEXTS)
    add(store, column("a", 1))

    class Still(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime(2026, 1, 1, tzinfo=UTC)

    monkeypatch.setattr(publishing, "datetime", Still)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(publishing, "write_chunks", Mock(side_effect=KeyboardInterrupt))
        store.publish()
    (claim,) = [name for name in store.objects.names("snapshots") if name.endswith(".claim")]
    assert claim.startswith("20260101T000000.000Z-")
    assert store.publish()[0].id.startswith("20260101T000000.001Z-")
    assert_holds(store, column("a", 1))


@pytest.mark.parametrize("name", ["step/c/0", layout.CATALOG])
def test_damaged_facts_of_the_snapshot_before_are_not_handed_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    store = Store.create(str(tmp_path), TEXTS)
    add(store, column("a", 1), column("a", 2))
    first, _ = store.publish()
    damaged = tmp_path / "snapshots" / first.id / name
    damaged.write_bytes(damaged.read_bytes()[::-1])
    assert [damage.path for damage in store.audit().damages] == [f"snapshots/{first.id}/{name}"]
    add(store, column("a", 3))
    store.publish()
    said = f"{layout.CATALOG} of the snapshot before is missing or damaged: reading every commit" in caplog.text
    assert said == (name == layout.CATALOG)
    assert store.dataset()["step"].values.tolist() == [1, 2, 3]
    assert_holds(store, *(column("a", step) for step in (1, 2, 3)))


@pytest.mark.parametrize("lost", ["log_likelihood/c/0/0", "step/c/0", "zarr.json"])
def test_damaged_snapshot_is_made_up_for_by_another(place: str, lost: str) -> None:
    store = Store.create(place, TEXTS)
    add(store, column("a", 1), column("a", 2))
    first, _ = store.publish()
    store.objects.put(f"snapshots/{first.id}/{lost}", b"other bytes")
    assert [damage.path for damage in store.audit().damages] == [f"snapshots/{first.id}/{lost}"]
    second, new = store.publish()
    assert new and second.content == first.content and second.id > first.id
    assert_holds(store, column("a", 1), column("a", 2))
    assert store.publish() == (second, False)


def test_progress_is_told_in_stages(tmp_path: Path) -> None:
    store = Store.create(str(tmp_path), TEXTS)
    add(store, column("a", 1), column("a", 2))
    told: list[tuple[str, int, int]] = []
    store.publish(lambda *words: told.append(words))
    assert told[0] == ("commits", 2, 2) and told[-1] == ("models", 2, 2)


def test_writing_that_took_too_long_is_done_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped may find its folder removed as left over: what it wrote then must not be committed."""
    store = Store.create(str(tmp_path), TEXTS)
    clock = iter([0.0, 601.0, 700.0, 701.0])
    monkeypatch.setattr("klray.store.columns.time", types.SimpleNamespace(time=lambda: next(clock)))
    put_many, written = store.objects.put_many, []

    def put_and_lose_the_first(bodies: Mapping[str, bytes]) -> None:
        put_many(bodies)
        written.append("/".join(next(iter(bodies)).split("/")[:4]))
        if len(written) == 1:
            store.objects.delete_tree(written[0])

    monkeypatch.setattr(store.objects, "put_many", put_and_lose_the_first)
    commit, first = store.add_column(column("a", 1))
    assert first and len(written) == 2 and commit.path == written[1]
    np.testing.assert_array_equal(store.read_column(commit), column("a", 1).log_likelihood.astype(np.float32))
