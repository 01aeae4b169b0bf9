"""What a hub answers, and does not: asked again, said in plain words, without a secret in any of them."""

from __future__ import annotations

import base64
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.utils import close_session

from klray.checkpoints import Hub, RemoteFile, RepositorySpec, patience, resolve
from klray.checkpoints import selection as selecting
from klray.checkpoints.download import Downloader
from klray.checkpoints.hub import SilentHubError, listing
from klray.checkpoints.selection import REQUESTS_AT_ONCE
from klray.errors import CheckpointError, KlrayError
from klray.tiny.hub_server import HubServer
from tests.hub_faults import FaultyHub, hub_of, only_error, select

RUN = "tiny/run"


def test_waits_out_429_and_500(run_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
    with FaultyHub(run_root, busy=2, broken=1) as server:
        checkpoints, unavailable = resolve(hub_of(server), select(RepositorySpec(RUN, "step*")))
    assert len(checkpoints) == 5
    assert not unavailable
    assert waits == [0.0, 0.0, pytest.approx(4.2, abs=0.2)]  # what RateLimit says; then the third of a growing row


def test_hub_that_stays_broken_is_download_failed(run_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic))
    with FaultyHub(run_root, broken=1000) as server:
        error = only_error(hub_of(server), RepositorySpec(RUN))
    assert error.reason == "download_failed"
    for words in (server.endpoint, "500", "after all attempts", "run again"):
        assert words in error.message


def test_hub_that_is_not_there_is_said_once_and_not_asked_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic))
    asked: list[str] = []
    monkeypatch.setattr(selecting, "listing", lambda hub, name: (asked.append(name), listing(hub, name))[1])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
    specs = [RepositorySpec(f"tiny/run{n}") for n in range(100)]  # threads share a client, which each refusal closes
    with pytest.raises(SilentHubError, match=r"tiny/run\d+@main could not .*http.*refused") as raised:
        resolve(Hub(endpoint), select(*specs))
    assert raised.value.reason == "download_failed" and "folder" not in raised.value.message
    assert len(asked) < 50
    assert "HF_ENDPOINT" in raised.value.message and "models.repo=PATH" in raised.value.message
    lines = [record.getMessage() for record in caplog.records]
    assert all(line.startswith(f"{endpoint}: ") for line in lines)
    assert 0 < len(lines) <= patience.FIRST_ATTEMPTS * REQUESTS_AT_ONCE, "as many threads ask, and nobody waits here"
    with pytest.raises(SilentHubError, match=r"\(nor is there a folder 'child' here\)"):
        resolve(Hub(endpoint), select(RepositorySpec("child")))


def test_a_server_that_is_no_hub(tmp_path: Path, run_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("klray.tiny.routes.HubHandler.send_info", lambda self, *_: self.send_json({"hello": 1}))
    error = only_error(hub_of(run_server), RepositorySpec(RUN))
    assert error.reason == "download_failed"
    assert "check HF_ENDPOINT" in error.message


@pytest.mark.parametrize("token", [None, "wrong"])
def test_token_is_required_and_never_in_words(
    run_server: HubServer, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", run_server.token)  # the environment's token is not used behind the caller's back
    error = only_error(Hub(run_server.endpoint, token), RepositorySpec(RUN))
    assert error.reason == "gated"
    assert "HF_TOKEN" in error.message
    assert run_server.token not in repr(error)
    assert "wrong" not in repr(error)


def test_hub_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-word")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1234/")
    hub = Hub.from_environment()
    assert hub == Hub("http://127.0.0.1:1234", "secret-word")
    assert "secret-word" not in repr(hub)
    assert pickle.loads(pickle.dumps(hub)).token == "secret-word"
    monkeypatch.delenv("HF_ENDPOINT")
    assert Hub.from_environment().endpoint == "https://huggingface.co"


@pytest.mark.parametrize(
    ("variable", "address"),
    [
        ("HF_ENDPOINT", "http://bob:hush@a\x01b"),
        ("HF_ENDPOINT", "http://ü..b"),
        ("HTTP_PROXY", "http://bob:hush@a\x01b"),
        ("HTTPS_PROXY", "foo://bob:hush@host"),
        ("ALL_PROXY", "socks5://bob:hush@127.0.0.1:9"),
    ],
)
def test_an_address_that_the_client_does_not_take_is_one_sentence(
    variable: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(variable, address)
    close_session()  # the client of an earlier test has the addresses of then
    with pytest.raises(KlrayError, match=r"to a hub can be made .*: check HF_|HF_ENDPOINT holds") as raised:
        listing(Hub.from_environment(), "org/name")
    assert "hush" not in str(raised.value) and not isinstance(raised.value, CheckpointError)
    close_session()


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[str]]]:
    """A proxy that refuses whatever it is asked: its host and port, and the Authorization of each request."""
    seen: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            self.send_response(503 if "busy" in self.path else 418)
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing on stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", seen
        server.shutdown()


def test_credentials_of_the_endpoint_go_into_a_header_and_no_words(
    proxy: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic))
    host, seen = proxy
    hub = Hub(f"http://bob:hush%40hush@{host}", "token-word")
    said = [only_error(hub, RepositorySpec(name)).message for name in ("tiny/run", "tiny/busy")]
    with pytest.raises(CheckpointError) as raised:
        Downloader().download(hub, "tiny/run", "0" * 40, RemoteFile("config.json", 1, None, None), tmp_path)
    assert set(seen) == {"Basic " + base64.b64encode(b"bob:hush@hush").decode()}
    assert "503" in said[1]
    assert "asking again in 16 s" in caplog.text
    for words in (*said, str(raised.value), repr(hub)):
        assert f"http://{host}" in words
    for words in (*said, str(raised.value), repr(hub), caplog.text):
        assert not [secret for secret in ("bob", "hush", "token-word") if secret in words]
    assert Hub("bob:hush@host").address == "host"
