"""Places of stores that lie: folders with links and pipes, a clock that is ahead, web servers without end or answer."""

from __future__ import annotations

import contextlib
import errno
import http.server
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import klray
from klray.errors import KlrayError, StoreError, StoreUnreachableError
from klray.store import Store, audit, records
from klray.store.objects import FolderObjects, open_objects, probe, web
from tests.stores import add, column, put_column

OUT = ("../x", "a/../../x", "/etc/hostname", "a//b", "a/./b", "", "a\x00", "a\nb", "a\\b", "\ud800", "x" * 300, "a/")
URLS = ("folder", "s3://bucket/prefix", "http://127.0.0.1:9/store")


@pytest.mark.parametrize("key", [key for key in OUT if key])
@pytest.mark.parametrize("url", URLS)
def test_no_place_asks_for_a_key_that_leads_out(url: str, key: str, tmp_path: Path) -> None:
    objects = open_objects(str(tmp_path / "store") if url == "folder" else url, {})
    asks: list[Callable[[], object]] = [lambda: objects.get(key)]
    if objects.listable:
        asks += [lambda: objects.put(key, b""), lambda: objects.conditional_put(key, b""), lambda: objects.names(key)]
        asks += [lambda: objects.walk(key), lambda: objects.delete_tree(key), lambda: objects.copy(key, "a", "")]
        asks += [lambda: objects.copy("a", key, ""), lambda: objects.fingerprints(key)]
    for ask in asks[:-2] if url == "folder" else asks[:1]:  # asked of a server, what stands before would be sent
        with pytest.raises(StoreError, match="is no key of an object"):
            ask()
    assert list(tmp_path.rglob("*")) == []


def test_store_may_be_a_link_and_what_leads_out_of_it_is_neither_read_nor_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("real")
    objects = FolderObjects(tmp_path / "link")
    objects.put("a/b", b"body")
    (tmp_path / "real" / "inside").symlink_to("a")
    (tmp_path / "real" / "outside").symlink_to(tmp_path / "out")
    assert objects.get("a/b") == objects.get("inside/b") == b"body"
    for ask in (objects.get, objects.delete_tree, lambda key: objects.put(key, b""), objects.names, objects.walk):
        with pytest.raises(StoreError, match="out of the store; remove that link"):
            ask("outside/mine")
    assert (tmp_path / "out" / "mine").read_bytes() == b"mine"
    assert list(objects.walk("")) == ["a/b"]


def test_create_that_was_made_though_the_answer_was_lost_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def lost(source: Path, target: Path) -> None:
        link(source, target)
        raise OSError(errno.EIO, "lost") if target.name == "key0" else FileExistsError(errno.EEXIST, "made before")

    objects = FolderObjects(tmp_path)
    monkeypatch.setattr(os, "link", lost)
    assert objects.conditional_put("key0", b"body") and objects.conditional_put("key1", b"body")
    monkeypatch.setattr(os, "link", link)
    assert not objects.conditional_put("key0", b"other") and objects.conditional_put("key0", b"body")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key0", "key1"]


def test_two_jobs_that_start_at_once_find_each_others_plan_sound(
    folder_store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    records.record_plan(folder_store.objects, "fam", ["0" * 64])
    get, asked = FolderObjects.get, []

    def before_the_other(objects: FolderObjects, key: str, most: int = 2**24) -> bytes | None:
        asked.append(key)
        return None if len(asked) == 1 else get(objects, key, most)

    monkeypatch.setattr(FolderObjects, "get", before_the_other)
    records.record_plan(folder_store.objects, "fam", ["0" * 64])
    assert len(asked) == 2 and caplog.messages == []


def test_clock_of_this_machine_that_is_ahead_removes_nothing_of_others(
    folder_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + timedelta(days=3)

    add(folder_store, column("a", 1))
    written = put_column(folder_store, column("a", 2), "d" * 32)  # by a writer that is about to commit
    found = folder_store.audit()
    for module in (audit, probe):
        monkeypatch.setattr(module, "datetime", Ahead)
    assert folder_store.repair(found, timedelta(hours=24)) == []
    assert folder_store.repair(found, timedelta(0)) == [written.path]
    assert folder_store.objects.names("probes") == []


class Server(http.server.BaseHTTPRequestHandler):
    """A server whose answer is that of the first part of the path."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        kind = self.path.split("/")[1]
        with contextlib.suppress(OSError):
            if kind == "silent":
                time.sleep(120)
                return
            self.send_response(302 if kind in PLACES else 200)
            if kind in PLACES:
                self.send_header("Location", PLACES[kind].replace("HERE", self.headers["Host"]))
            if kind == "gzip":
                self.send_header("Content-Encoding", "gzip")
            if kind == "large":
                self.send_header("Content-Length", str(2**50))
            self.end_headers()
            while kind in ("endless", "drip"):
                self.wfile.write(b" " * (65536 if kind == "endless" else 1))
                time.sleep(0 if kind == "endless" else 0.05)
            self.wfile.write(b"<html>rubbish</html>")

    def log_message(self, *_: object) -> None:
        pass


PLACES = {
    "other": "http://localhost:1/x",
    "file": "file:///etc/hostname",
    "internal": "https://127.0.0.1:1/x",
    "nowhere": "http://[::bad/x",
    "circle": "http://HERE/circle/x",
}


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as served:
        served.daemon_threads = True
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("endless", "klray writes at most 1,048,576"),
        ("large", "klray writes at most 1,048,576"),
        ("drip", "it gives less than 4,096 bytes/s"),
        ("silent", r"cannot be read \(it is silent\)"),
        ("gzip", r"compressed \(gzip\) though it was asked not to"),
        ("rubbish", "zarr.json is damaged"),
        ("other", "sends zarr.json on to 'http://localhost:1/x', which is not https: klray does not go there"),
        ("file", "sends zarr.json on to 'file:///etc/hostname', which is not https"),
        ("internal", "sends zarr.json on to 'https://127.0.0.1:1/x', an internal address"),
        ("nowhere", "sends zarr.json on to"),
        ("circle", "sends zarr.json on without end"),
    ],
)
def test_server_that_lies_costs_a_sentence_and_seconds(
    kind: str, words: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(web, "PATIENCE_SECONDS", 0.2)
    start = time.monotonic()
    with pytest.raises(KlrayError, match=words) as found:
        klray.open_dataset(f"{server}/{kind}")
    assert time.monotonic() - start < 60 and "\n" not in str(found.value) and len(Server.asked) < 10


def test_what_the_options_hold_is_sent_to_no_other_host(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLACES, "other", "https://example.org/x")
    options = {"client_kwargs": {"headers": {"Authorization": "Bearer secret"}}}
    with pytest.raises(StoreUnreachableError, match="the options hold headers or credentials"):
        klray.open_dataset(f"{server}/other", storage_options=options)


@pytest.mark.parametrize("backend", ["s3fs", "obstore"])
def test_object_in_a_bucket_that_is_too_large_is_not_read(
    s3_url: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = open_objects(s3_url, {"backend": backend})
    objects.put_many({"large": bytes(2**21), "small": b"x"})
    assert [type(each).__name__ for each in objects.get_many(["large", "small", "none"], 2**20)] == [
        *("StoreDamagedError", "bytes", "NoneType"),
    ]
    with pytest.raises(StoreError, match=r"large has 2,097,152 bytes or more, and klray writes at most 1,048,576"):
        objects.get("large", 2**20)
