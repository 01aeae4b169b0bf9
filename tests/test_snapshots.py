"""Snapshots and results of a store: what they hold, in which order, and that they are whole."""

from __future__ import annotations

import dataclasses
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import klray
from klray.errors import StoreError
from klray.store import Column, Store
from klray.store.columns import commit_column
from tests.stores import (
    EVERY_PLACE,
    N_TEXTS,
    ON_S3_TOO,
    TEXTS,
    add,
    column,
    put_column,
)


def test_snapshot_opens_in_plain_xarray_without_a_warning(folder_store: Store) -> None:
    add(folder_store, column("a", 20), column("a", 3), column("b"))
    manifest, new = folder_store.publish()
    assert new and manifest.n_models == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = xr.open_zarr(f"{folder_store.url}/snapshots/{manifest.id}")
        values = plain["log_likelihood"].load()
    assert values.dims == ("model", "text") and values.dtype == np.float32 and values.attrs["units"] == "nats"
    assert plain["model"].values.tolist() == ["org/a@step3", "org/a@step20", "org/b@main"]
    assert plain["step"].values.tolist() == [3, 20, -1]
    assert plain["seed"].values.tolist() == [-1, -1, -1]
    assert plain["domain"].values.tolist() == list(TEXTS.domains)
    assert plain["text_bytes"].values.tolist() == TEXTS.n_bytes.tolist()
    for row, each in enumerate([column("a", 3), column("a", 20), column("b")]):
        np.testing.assert_array_equal(values[row], each.log_likelihood[0].astype(np.float32))
    xr.testing.assert_identical(klray.open_dataset(folder_store.url).load(), plain.load())


@ON_S3_TOO
def test_later_snapshot_starts_with_the_models_of_the_earlier(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("klray.store.publishing.CHUNK_BYTES", 4 * N_TEXTS * 2)  # two models a chunk
    add(store, column("z", 1), column("z", 2), column("z", 3))
    first, _ = store.publish()
    assert store.publish() == (first, False)
    add(store, column("a", 1), column("zz", 2))
    second, new = store.publish()
    old_keys, new_keys = (store.dataset(each.id)["key"].values.tolist() for each in (first, second))
    assert new and new_keys[:3] == old_keys and second.n_models == 5
    old, data = store.dataset(first.id).load(), store.dataset().load()
    assert data.attrs["snapshot"] == second.id
    np.testing.assert_array_equal(data["log_likelihood"][:3], old["log_likelihood"])
    assert data["repository"].values.tolist() == ["org/z"] * 3 + ["org/a", "org/zz"]
    assert store.snapshot_ids() == sorted([first.id, second.id])


def test_damaged_column_is_never_published(folder_store: Store, caplog: pytest.LogCaptureFixture) -> None:
    add(folder_store, column("a", 1))
    (commit,) = folder_store.commits()
    chunk = next((Path(folder_store.url) / commit.path / "log_likelihood" / "c").rglob("0"))
    while chunk.is_dir():
        chunk = next(chunk.iterdir())
    body = bytearray(chunk.read_bytes())
    body[-5] ^= 1
    chunk.write_bytes(body)
    with pytest.raises(StoreError, match=r"no committed column that is sound, 1 are damaged"):
        folder_store.publish()
    assert folder_store.snapshot_ids() == []
    assert re.search(r"what was committed.*score .* again", caplog.text)


def test_missing_snapshots_are_named_with_what_there_is(store: Store) -> None:
    with pytest.raises(StoreError, match="no committed column to publish"):
        store.publish()
    add(store, column("a", 1))
    with pytest.raises(StoreError, match=r"\(committed: 1 column\); run: klray publish"):
        store.dataset()
    manifest, _ = store.publish()
    with pytest.raises(StoreError, match=f"no such snapshot; it has {manifest.id}"):
        store.dataset("20200101T000000Z-00000000")


@ON_S3_TOO
def test_result_is_there_once_whole(store: Store) -> None:
    add(store, column("a", 1))
    manifest, _ = store.publish()
    with pytest.raises(StoreError, match=r"\(none there\); run: klray analyze"):
        store.result(manifest.id, "trajectory")
    result = xr.Dataset({"kl": (("model", "other"), np.eye(2))})
    store.write_result(manifest.id, "trajectory", result.chunk(model=1))
    store.write_result(manifest.id, "trajectory", result.chunk(model=1))
    xr.testing.assert_equal(store.result(manifest.id, "trajectory").load(), result)
    with pytest.raises(StoreError, match="use letters, digits"):
        store.write_result(manifest.id, "../escape", result)


@EVERY_PLACE
def test_column_taken_out_moves_the_latest_snapshot_once(store: Store) -> None:
    add(store, column("a", 1), column("a", 2), column("a", 3))
    store.publish()
    gone = column("a", 2).identity.key
    store.objects.delete_tree(f"commits/{gone}.json")
    manifest, new = store.publish()
    assert new and manifest.n_models == 2 and store.manifest().id == manifest.id
    assert store.publish() == (manifest, False)
    again = column("a", 2)
    changed = Column(again.identity, again.log_likelihood + 1, (-1,), again.n_tokens, again.facts, {}, {})
    assert commit_column(store.objects, put_column(store, changed, "e" * 32))
    store.publish()
    values = store.dataset()["log_likelihood"].load()
    (row,) = np.flatnonzero(store.dataset()["step"].values == 2)
    np.testing.assert_array_equal(values[row], (again.log_likelihood[0] + 1).astype(np.float32))


@pytest.mark.parametrize("damage", ["lost", "garbage"])
def test_damaged_chunk_of_a_snapshot_is_not_handed_on(folder_store: Store, damage: str) -> None:
    add(folder_store, column("a", 1), column("a", 2))
    first, _ = folder_store.publish()
    chunk = Path(folder_store.url) / "snapshots" / first.id / "log_likelihood" / "c" / "0" / "0"
    chunk.unlink() if damage == "lost" else chunk.write_bytes(b"garbage")
    add(folder_store, column("a", 3))
    folder_store.publish()
    values = folder_store.dataset()["log_likelihood"].values
    for row, step in enumerate((1, 2, 3)):
        np.testing.assert_array_equal(values[row], column("a", step).log_likelihood[0].astype(np.float32))


def test_labels_tell_every_model_from_every_other(store: Store) -> None:
    half, moved = column("a", 1), column("a", 1)
    bf16 = dataclasses.replace(half.identity, dtype="bfloat16")
    other = dataclasses.replace(moved.identity, commit="f" * 40)
    add(store, half, dataclasses.replace(half, identity=bf16), dataclasses.replace(moved, identity=other))
    store.publish()
    labels = store.dataset()["model"].values.tolist()
    assert sorted(labels) == ["org/a@step1+bfloat16", "org/a@step1~00000000", "org/a@step1~ffffffff"]


def test_labels_can_be_compared_and_selected(store: Store) -> None:
    add(store, column("a", 1), column("b", 1))
    store.publish()
    data = klray.open_dataset(store.url)
    assert data.where(data.run == "org/a", drop=True).sizes["model"] == 1
    assert data.repository.values.astype(str).tolist() == ["org/a", "org/b"]
    assert data.sel(model="org/b@step1")["step"] == 1
