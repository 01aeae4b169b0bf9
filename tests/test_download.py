"""Downloads from hubs that break off, ask for pauses, offer Xet or lead elsewhere: real servers, real client."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
from huggingface_hub import constants

from klray.checkpoints import Cache, Checkpoint, RemoteFile
from klray.checkpoints.download import Downloader
from klray.checkpoints.patience import Patience
from klray.errors import CheckpointError
from klray.tiny.hub_server import HubServer
from klray.tiny.routes import BLOCK_BYTES, HubHandler
from tests.hub_faults import RUN, WEIGHT_BYTES, FaultyHub, checkpoints_of, hub_of, write_run

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("hub"), 2)


def weights_of(checkpoint: Checkpoint) -> RemoteFile:
    (weights,) = (file for file in checkpoint.files if file.is_weight)
    return weights


def fetch_weights(server: HubServer, folder: Path) -> bytes:
    checkpoint = checkpoints_of(server)[0]
    wrong = Downloader().download(hub_of(server), RUN, checkpoint.commit, weights_of(checkpoint), folder)
    assert wrong == ""
    return (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_broken_body_goes_on_where_it_broke(root: Path, tmp_path: Path, fault: str, no_pauses: None) -> None:
    with FaultyHub(root, **{fault: 3}) as server:
        assert fetch_weights(server, tmp_path) == (root / RUN / "step0" / WEIGHTS).read_bytes()
    starts = [int(asked.removeprefix("bytes=").removesuffix("-") or 0) for _, asked in server.seen]
    assert len(starts) == 4
    assert all(earlier < later for earlier, later in pairwise(starts)), starts  # half a block more each time


def test_server_error_on_a_part_does_not_lose_what_came_before(root: Path, tmp_path: Path, no_pauses: None) -> None:
    with FaultyHub(root, cut=1) as server:
        first = threading.Event()

        def spoil() -> None:
            if not first.is_set():
                first.set()
                server.faults["broken"] = 2

        server.before_weights = spoil
        assert fetch_weights(server, tmp_path) == (root / RUN / "step0" / WEIGHTS).read_bytes()
    asked = [where for _, where in server.seen]
    assert asked[0] == "" and asked[1] != "" and asked[1:] == [asked[1]] * 3


def test_server_without_ranges_is_read_from_the_start_again(root: Path, tmp_path: Path, no_pauses: None) -> None:
    with FaultyHub(root, cut=1, deaf=1) as server:
        assert fetch_weights(server, tmp_path) == (root / RUN / "step0" / WEIGHTS).read_bytes()


def test_body_that_always_breaks_is_given_up_after_six_attempts_without_a_mebibyte(
    root: Path, tmp_path: Path, no_pauses: None
) -> None:
    with FaultyHub(root, reset=1000) as server:
        with pytest.raises(CheckpointError, match=r"model\.safetensors of tiny/run@\w+ could") as raised:
            fetch_weights(server, tmp_path)
        assert raised.value.reason == "download_failed"
        assert len(server.seen) == 6


@pytest.mark.parametrize("fault", ["busy", "later"])
def test_time_that_the_hub_names_is_waited_for_by_all_who_share_the_patience(
    root: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is told to wait; another, that was told nothing, waits as well."""
    patience = Patience()
    with FaultyHub(root, pause=2) as server, Cache(tmp_path, 10**9, patience) as other:
        first, following = checkpoints_of(server)
        told = threading.Event()
        pause = patience.pause

        def tell(seconds: float) -> None:
            pause(seconds)
            told.set()

        monkeypatch.setattr(patience, "pause", tell)
        server.faults[fault] = 1
        work = (hub_of(server), RUN, first.commit, weights_of(first), tmp_path / "first")
        thread = threading.Thread(target=Downloader(patience).download, args=work)
        thread.start()
        assert told.wait(30)
        other.fetch(hub_of(server), following)
        thread.join(30)
    refused, *later = (when for when, _ in server.seen)
    assert len(later) == 2
    assert min(later) - refused >= 2


def test_time_may_be_a_date(root: Path, tmp_path: Path) -> None:
    class Noting(Patience):
        asked: list[float]

        def pause(self, seconds: float) -> None:
            self.asked = [seconds]

    patience = Noting()
    with FaultyHub(root, pause=formatdate(time.time() + 100, usegmt=True)) as server:
        checkpoints = checkpoints_of(server)
        server.faults["later"] = 1
        Downloader(patience).download(hub_of(server), RUN, checkpoints[0].commit, checkpoints[0].files[0], tmp_path)
    assert 90 < patience.asked[0] <= 100


def test_hub_that_wants_to_be_left_alone_for_an_hour_is_not_waited_for(root: Path, tmp_path: Path) -> None:
    with FaultyHub(root, pause=3600) as server:
        checkpoint = checkpoints_of(server)[0]
        server.faults["busy"] = 1000
        with pytest.raises(CheckpointError, match="429") as raised:
            Downloader().download(hub_of(server), RUN, checkpoint.commit, checkpoint.files[0], tmp_path)
    assert raised.value.reason == "download_failed"
    assert len(server.seen) == 0 and server.faults["busy"] == 999


def test_no_more_than_announced_goes_to_the_disk(root: Path, tmp_path: Path) -> None:
    with HubServer(root) as server:
        checkpoint = checkpoints_of(server)[0]
        smaller = replace(weights_of(checkpoint), size_bytes=1000)
        wrong = Downloader().download(hub_of(server), RUN, checkpoint.commit, smaller, tmp_path)
    assert wrong.startswith("announced 1,000 bytes, found ")
    assert (tmp_path / WEIGHTS).stat().st_size <= 2 * BLOCK_BYTES < WEIGHT_BYTES


class XetHub(HubServer):
    """Offers its large files through Xet, at a storage that knows none of them."""

    def __init__(self, root: Path):
        self.asked = asked = list[str]()

        class Handler(HubHandler):
            def send_head(self, status: HTTPStatus, kind: str, size: int, headers: dict[str, str]) -> None:
                if "X-Linked-Etag" in headers:
                    headers |= {
                        "X-Xet-Hash": "a" * 64,
                        "X-Xet-Refresh-Route": f"http://{self.headers['Host']}/xet-token",
                    }
                super().send_head(status, kind, size, headers)

            def answer(self) -> None:
                place = f"http://{self.headers['Host']}"
                if self.path == "/xet-token":
                    asked.append("token")
                    expires = str(int(time.time()) + 3600)
                    token = {"X-Xet-Access-Token": self.server.token, "X-Xet-Token-Expiration": expires}
                    self.send_json({}, headers={"X-Xet-Cas-Url": place, **token})
                elif "/reconstructions/" in self.path:
                    asked.append("storage")
                    self.send_json({"error": "unknown"}, HTTPStatus.NOT_FOUND)
                else:
                    super().answer()

        self.handler = Handler
        super().__init__(root)


def test_xet_is_used_where_the_hub_offers_it_and_plain_http_where_that_fails(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with XetHub(root) as server, Cache(tmp_path, 10**9) as cache:
        for checkpoint in checkpoints_of(server):
            folder = cache.fetch(hub_of(server), checkpoint)
            content = (root / RUN / checkpoint.revision / WEIGHTS).read_bytes()
            assert (folder / WEIGHTS).read_bytes() == content
    assert server.asked.count("token") == 1 and "storage" in server.asked  # the second checkpoint no longer tries
    assert caplog.text.count("cannot be fetched through Xet") == 1


def test_xet_is_not_used_where_it_is_switched_off(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with XetHub(root) as server:
        assert fetch_weights(server, tmp_path) == (root / RUN / "step0" / WEIGHTS).read_bytes()
    assert server.asked == []


def test_xet_is_not_used_where_its_package_is_missing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hf_xet", None)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    with XetHub(root) as server:
        assert fetch_weights(server, tmp_path) == (root / RUN / "step0" / WEIGHTS).read_bytes()
    assert server.asked == []


@pytest.mark.parametrize("through", ["127.0.0.1", "localhost"])
def test_redirect_is_followed_and_takes_no_token_to_another_host(root: Path, tmp_path: Path, through: str) -> None:
    """As the hub's, which sends weights from a storage at another address."""
    tokens: list[str | None] = []

    class Storage(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.append(self.headers.get("Authorization"))
            body = (root / RUN / "step0" / WEIGHTS).read_bytes()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing on stderr."""

    class Handler(HubHandler):
        def send_resolved(self, repository: str, revision: str, path: str) -> None:
            self.send_head(HTTPStatus.FOUND, "text/plain", 5, {"Location": f"http://{through}:{storage.server_port}/x"})
            self.send_block(b"there")

    class LeadingHub(HubServer):
        handler = Handler

    with ThreadingHTTPServer(("127.0.0.1", 0), Storage) as storage, LeadingHub(root) as server:
        threading.Thread(target=storage.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        assert fetch_weights(server, tmp_path) == (root / RUN / "step0" / WEIGHTS).read_bytes()
        storage.shutdown()
    assert tokens == [None]
