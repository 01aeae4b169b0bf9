"""Readers with nothing but a URL: over https and S3, in few requests, anonymously, and never a fill value."""

from __future__ import annotations

import functools
import http.server
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import klray
from klray.errors import StoreError
from klray.store import Store
from tests.conftest import new_place
from tests.faults.proxy import Plan, proxy
from tests.s3_server import S3Server
from tests.stores import EVERY_PLACE, TEXTS, add, column

STEPS = (1, 2, 3, 5, 8)


class Served(http.server.SimpleHTTPRequestHandler):
    """A folder over HTTP that keeps the paths asked for; the first ``busy`` answers are 503."""

    asked: list[str]
    busy: list[int]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.busy and self.busy.pop():
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Store, type[Served]]]:
    """(URL, the store behind it, what was asked for)"""
    store = Store.create(str(tmp_path / "public" / "store"), TEXTS)
    add(store, *(column("a", step) for step in STEPS))
    store.publish()
    handler = type("Handler", (Served,), {"asked": [], "busy": []})
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(tmp_path / "public"))
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/store", store, handler
        server.shutdown()
        thread.join()


def test_dataset_over_http_in_at_most_ten_requests(served: tuple[str, Store, type[Served]]) -> None:
    url, store, handler = served
    data = klray.open_dataset(url)
    values = data["log_likelihood"].sel(model="org/a@step3").values
    np.testing.assert_array_equal(values, column("a", 3).log_likelihood[0].astype(np.float32))
    assert len(handler.asked) <= 10, handler.asked
    xr.testing.assert_identical(data.load(), store.dataset().load())
    count = len(handler.asked)
    assert data["step"].values.tolist() == list(STEPS) and len(handler.asked) == count  # read once, then remembered


def test_snapshot_over_http_in_plain_xarray(served: tuple[str, Store, type[Served]]) -> None:
    url, store, handler = served
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = xr.open_zarr(f"{url}/snapshots/{store.manifest().id}")
        values = plain["log_likelihood"].sel(model="org/a@step3").values
    np.testing.assert_array_equal(values, column("a", 3).log_likelihood[0].astype(np.float32))
    assert len(handler.asked) <= 10, handler.asked


def test_busy_web_server_is_asked_again(served: tuple[str, Store, type[Served]]) -> None:
    url, _, handler = served
    handler.busy += [1, 1]
    assert klray.open_dataset(url).sizes["model"] == len(STEPS)


def test_what_the_web_cannot_do_is_refused_in_words(served: tuple[str, Store, type[Served]]) -> None:
    url, *_ = served
    with pytest.raises(StoreError, match=r"http:// .*; name the bucket"):
        Store.open(url).catalog()
    with pytest.raises(StoreError, match="can be read, not written to"):
        Store.open(url).add_column(column("a", 9))
    with pytest.raises(StoreError, match="has no such snapshot"):
        klray.open_dataset(url, snapshot="20200101T000000.000Z-00000000")
    with pytest.raises(StoreError, match="there is no klray store"):
        klray.open_dataset(f"{url}/elsewhere")
    with pytest.raises(StoreError, match=r"cannot be read \(.*check the address"):
        klray.open_dataset("http://127.0.0.1:9/store")
    with pytest.raises(StoreError, match=r"store.url=https://\.\.\. holds a user") as raised:
        klray.open_dataset("https://me:wo@rd@host/x")
    assert "rd@" not in str(raised.value)
    for place in (
        *("s3://KEY:se/cret@bucket/x", "https://host/x?X-Amz-Signature=secret", "s3:/KEY:secret@bucket"),
        *("s3:KEY:secret@bucket", "https:/me:secret@host", "s3://KEY:secret%40bucket/p", "KEY:se/cret@bucket/p"),
        *("https://me:secret%40host/x", "KEY:secret@bucket://x", "gs://KEY:secret%40bucket", "s3://b?secret=1"),
    ):
        with pytest.raises(StoreError, match="take them out") as raised:
            klray.open_dataset(place)
        assert "cret" not in str(raised.value)


def test_missing_chunk_is_an_error_and_not_nan(served: tuple[str, Store, type[Served]]) -> None:
    url, store, _ = served
    folder = Path(store.url) / "snapshots" / store.manifest().id
    (folder / "log_likelihood" / "c" / "0" / "0").unlink()
    (folder / "step" / "c" / "0").unlink()
    for place in (url, store.url):
        data = klray.open_dataset(place)
        with pytest.raises(StoreError, match=r"log_likelihood/c/0/0 is missing"):
            data["log_likelihood"].load()
        with pytest.raises(StoreError, match=r"step/c/0 is missing"):
            data["step"].load()


def test_snapshot_on_s3_in_plain_xarray_without_a_warning(s3_url: str, s3_server: S3Server) -> None:
    store = Store.create(s3_url, TEXTS)
    add(store, *(column("a", step) for step in STEPS))
    manifest, _ = store.publish()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = {"endpoint_url": s3_server.endpoint}
        plain = xr.open_zarr(f"{s3_url}/snapshots/{manifest.id}", storage_options=options).load()
    xr.testing.assert_equal(plain, klray.open_dataset(s3_url).load())


@pytest.mark.parametrize("plain", [False, True])
def test_model_on_s3_in_at_most_ten_requests(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    url = new_place(s3_server, monkeypatch).replace("some/store", "schedule-reader")
    store = Store.create(url, TEXTS)
    add(store, *(column("a", step) for step in STEPS))
    manifest, _ = store.publish()
    with proxy(s3_server.endpoint) as network:
        plan = network.schedules["schedule-reader"] = Plan("", share=0.0)
        options: dict[str, object] = {"endpoint_url": network.endpoint}
        if plain:
            options["max_concurrency"] = 1  # else s3fs asks for the size of each object before it reads it
            data = xr.open_zarr(f"{url}/snapshots/{manifest.id}", storage_options=options)
        else:
            data = klray.open_dataset(url, storage_options=options)
        values = data["log_likelihood"].sel(model="org/a@step3").values
        data.close()
    np.testing.assert_array_equal(values, column("a", 3).log_likelihood[0].astype(np.float32))
    assert 0 < plan.requests <= 10


@EVERY_PLACE
def test_reader_that_opened_before_a_commit_sees_the_old_state_or_the_new(place: str) -> None:
    store, reader = Store.create(place, TEXTS), Store.open(place)
    add(store, column("a", 1))
    store.publish()
    before = reader.dataset()
    assert set(reader.objects.names("columns")) == {"org--a"}  # listed, before others write below it
    add(store, column("a", 2), column("b", 1))
    store.publish()
    assert {commit.facts["step"] for commit in reader.commits()} == {1, 2}
    for commit in reader.commits():
        np.testing.assert_array_equal(reader.read_column(commit), store.read_column(commit))
    assert before["log_likelihood"].load().sizes["model"] == 1
    after = reader.dataset()["log_likelihood"].load()
    assert after.sizes["model"] == 3 and np.isfinite(after.values).all()
