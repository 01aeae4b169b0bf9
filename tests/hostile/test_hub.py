"""A hub that lies, over real HTTP: each lie costs its repository one sentence, bounded seconds and memory, no token."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from klray.checkpoints import Cache, Checkpoint, Facts, Hub, RemoteFile, RepositorySpec, answers, patience, resolve
from klray.checkpoints import hub as hub_module
from klray.errors import CheckpointError, Pauses
from tests.hub_faults import select

TOKEN = "hf_secretsecretsecret"
COMMIT = "a" * 40
SOUND = "lab/sound"
SECONDS = 120.0  # in which a busy machine does what takes 1 s, and a server that says nothing stays silent
CONFIG = b'{"model_type": "gpt_neox"}'

PACKED = gzip.compress(gzip.compress(bytes(1 << 24)))

Answer = Callable[["Lying"], None]


def git_sha1(body: bytes) -> str:
    return hashlib.sha1(f"blob {len(body)}\0".encode() + body, usedforsecurity=False).hexdigest()


def sibling(name: Any, body: bytes = CONFIG, **changes: Any) -> dict[str, Any]:
    return {"rfilename": name, "size": len(body), "blobId": git_sha1(body), **changes}


def info(*siblings: Any, **changes: Any) -> dict[str, Any]:
    files = list(siblings) or [sibling("config.json"), sibling("model.safetensors")]
    return {"sha": COMMIT, "siblings": files, **changes}


class Lying(BaseHTTPRequestHandler):
    """Answers of the hub by the beginning of the path; what it was asked, and by whom."""

    protocol_version = "HTTP/1.1"
    answers: dict[str, Answer] = {}  # noqa: RUF012 - of each hub its own class
    asked: list[tuple[str, str]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization", "")))
        found = next((answer for path, answer in self.answers.items() if self.path.startswith(path)), None)
        with contextlib.suppress(OSError):
            if found is None:
                self.say(info())
            else:
                found(self)
                return
        self.close_connection = found is not None

    def head(self, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        else:
            self.close_connection = True
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def say(self, what: Any, status: int = 200, **headers: str) -> None:
        body = what if isinstance(what, bytes) else json.dumps(what).encode()
        self.head(status, len(body), **headers)
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


class LyingHub(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, answers: dict[str, Answer]):
        self.kind = type("Kind", (Lying,), {"answers": answers, "asked": []})
        super().__init__(("127.0.0.1", 0), self.kind)

    @property
    def hub(self) -> Hub:
        return Hub(f"http://127.0.0.1:{self.server_port}", TOKEN)

    def handle_error(self, *_: object) -> None:
        """Who hangs up is no error here."""


@contextlib.contextmanager
def lying(answers: dict[str, Answer]) -> Iterator[LyingHub]:
    with LyingHub(answers) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes half a minute against a real hub takes parts of a second here."""
    monkeypatch.setattr(patience, "PAUSES", Pauses(0.0, 3, 0.0, longest=900.0))
    monkeypatch.setattr(patience, "ANSWERS_SECONDS", 0.3)
    monkeypatch.setattr(hub_module, "TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(answers, "SLOWEST_SECONDS", 0.3)
    monkeypatch.setattr(answers, "ANSWER_BYTES", 1 << 20)
    monkeypatch.setattr(answers, "CONTAINERS", 100_000)


def drip(self: Lying) -> None:
    self.head(length=10**6)
    while True:
        self.wfile.write(b" ")
        time.sleep(0.1)


def dripping_headers(self: Lying) -> None:
    self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
    while True:
        self.wfile.write(b"a")
        time.sleep(0.1)


def informed_without_end(self: Lying) -> None:
    while True:
        self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 100)


def headers_without_end(self: Lying) -> None:
    self.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        self.wfile.write(b"X: y\r\n" * 1000)


def chunks_without_end(self: Lying) -> None:
    self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;")
    while True:
        self.wfile.write(b"x" * 65536)


def endless(self: Lying, status: int = 200) -> None:
    self.head(status)
    while True:
        self.wfile.write(b'"' * 65536)


def endless_error(self: Lying) -> None:
    endless(self, 404)


def short(self: Lying) -> None:
    self.head(length=100)
    self.wfile.write(b"{")
    self.connection.shutdown(socket.SHUT_RDWR)


def silent(self: Lying) -> None:
    time.sleep(SECONDS)


def packed(self: Lying) -> None:
    self.say(PACKED, Content_Encoding="gzip, gzip")


def leads(place: str) -> Answer:
    return lambda self: self.say(b"", 307, Location=place)


def round_and_round(self: Lying) -> None:
    self.say(b"", 307, Location=self.path + "x")


def says(what: Any, status: int = 200, **headers: str) -> Answer:
    return lambda self: self.say(what, status, **headers)


LIES: dict[str, tuple[Answer, str]] = {
    "endless body": (endless, "answered with more than"),
    "announced terabytes": (lambda self: self.head(length=1 << 42), "answered with more than"),
    "length of a thousand digits": (lambda self: self.head(Content_Length="9" * 1000), "fetched|more than"),
    "drip": (drip, "too slowly"),
    "dripping headers": (dripping_headers, "no answer within"),
    "silence": (silent, "could not be fetched"),
    "packed twice": (packed, "answered in gzip, gzip"),
    "packed once": (says(gzip.compress(b"{}"), Content_Encoding="gzip"), "answered in gzip"),
    "short body": (short, "could not be fetched"),
    "no JSON": (says(b"<html>"), "did not answer in JSON"),
    "deep JSON": (says(b"[" * 10**5), "did not answer in JSON"),
    "many objects": (says(b"[" + b"{}," * 340_000 + b"{}]"), "more than 100,000 objects"),
    "another name": (says(info(id="../../x", sha=None)), "without a commit sha"),
    "busy for a time that is no number": (says(b"", 429, RateLimit=f'"api";r=0;t={"9" * 5000}'), "429"),
    "a list": (says([1]), "did not answer as a model hub"),
    "a string": (says("x"), "did not answer as a model hub"),
    "nothing": (says(b""), "without a commit sha"),
    "no sha": (says(info(sha=None)), "without a commit sha"),
    "escape in the sha": (says(info(sha="\x1b[2J")), "without a commit sha"),
    "files are a number": (says(info() | {"siblings": 7}), "did not answer as a model hub"),
    "files are strings": (says(info() | {"siblings": ["config.json"]}), "did not answer as a model hub"),
    "name is a number": (says(info(sibling(7))), "hash that is none"),
    "size is a word": (says(info(sibling("config.json", size="big"))), "told a size"),
    "size is negative": (says(info(sibling("config.json", size=-1))), "told a size"),
    "size is no int64": (says(info(sibling("config.json", size=10**30))), "told a size"),
    "size is a fraction": (says(info(sibling("config.json", size=1.5))), "told a size"),
    "hash is a path": (says(info(sibling("config.json", blobId="../../x"))), "hash that is none"),
    "hash is a list": (says(info(sibling("config.json", blobId=[1]))), "did not answer as a model hub"),
    "lfs is a list": (says(info(sibling("config.json", lfs=[1]))), "did not answer as a model hub"),
    "twice the same file": (says(info(sibling("config.json"), sibling("config.json"))), "listed a file twice"),
    "parameters are a word": (says(info(safetensors={"total": "many"})), "told a number of parameters"),
    "parameters are a list": (says(info(safetensors=[1])), "did not answer as a model hub"),
    "redirects without end": (round_and_round, "leads on and on"),
    "redirect to a file": (leads("file:///etc/passwd"), "leads from http to file"),
    "redirect to another protocol": (leads("ftp://127.0.0.1/x"), "leads from http to ftp"),
    "redirect to the cloud's metadata": (leads("http://169.254.169.254/latest"), "an address inside this network"),
    "redirect to nowhere": (leads("http://"), "could not be fetched|leads"),
    "too busy for years": (says(b"", 429, Retry_After="100000000"), "429"),
    "away for years": (says(b"", 503, Retry_After="9" * 400), "503"),
    "busy for good": (says(b"", 429, RateLimit='"api";r=0;t=99999999999'), "429"),
    "endless error": (endless_error, "more than"),
    "early hints without end": (informed_without_end, "no answer within"),
    "headers without end": (headers_without_end, "could not be fetched"),
    "a chunk's name without end": (chunks_without_end, "could not be fetched"),
    "two lengths": (lambda self: self.head(5, Content_Length="7"), "could not be fetched"),
    "commit in capitals": (says(info(sha="A" * 40)), "without a commit sha"),
    "size is true": (says(info(sibling("config.json", size=True))), "told a size"),
    "parameters without end": (says(json.dumps(info()).encode()[:-1] + b', "safetensors": {"total": 1e999}}'), "inf"),
    "redirect to the cloud's metadata as a number": (leads("http://2852039166/latest"), "inside this network"),
    "redirect to no name of a host": (leads(f"http://{'a' * 300}.invalid/"), "no name of a host"),
    "redirect to it in IPv6": (leads("http://[::ffff:169.254.169.254]/"), "inside this network"),
    "redirect into data": (leads("data:application/json,{}"), "without a commit sha"),
    **{
        f"error in {body[:12]!r}": (says(body, status), str(status))
        for status in (400, 500)
        for body in (b"\xff" * 1000, b"[1]", b"7", b'{"error": {"a": 1}}', b'{"errors": 7}', b"[" * 10**5)
    },
    "bare error": (says(b"", 418), "418"),
    "error with addresses without end": (says(json.dumps({"error": "a://b:c" * 10**5}).encode(), 500), "500"),
}


@pytest.mark.parametrize(("lie", "words"), LIES.values(), ids=LIES)
def test_a_lie_costs_its_repository_a_sentence_and_the_others_nothing(lie: Answer, words: str) -> None:
    with lying({"/api/models/lab/lie": lie, "/api/models?": says([])}) as server:
        start = time.monotonic()
        tracemalloc.start()
        found, unavailable = resolve(server.hub, select(RepositorySpec("lab/lie"), RepositorySpec(SOUND)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert time.monotonic() - start < SECONDS
        assert peak < 100e6
    assert [each.repository for each in found] == [SOUND]
    (refused,) = unavailable
    assert refused.repository == "lab/lie"
    assert refused.reason == "download_failed"
    assert re.search(words, refused.message), refused.message
    assert ": " in refused.message and refused.message.isprintable() and TOKEN not in refused.message


def test_another_commit_than_was_asked_for_is_refused() -> None:
    refs = {"branches": [{"name": "step1", "targetCommit": "b" * 40}], "tags": []}
    with lying({"/api/models/lab/run/refs": says(refs)}) as server:
        found, unavailable = resolve(server.hub, select(RepositorySpec("lab/run", "step1")))
    assert not found and f"asked for commit {'b' * 40} and answered with {COMMIT}" in unavailable[0].message


@pytest.mark.parametrize(
    "refs",
    [
        {"branches": [{"name": "step1", "targetCommit": "main"}]},
        {"branches": [{"name": 7, "targetCommit": COMMIT}]},
        {"branches": [{"name": "step1"}]},
        {"branches": [["step1", COMMIT]]},
        {"branches": 7},
        [7],
    ],
)
def test_branches_that_are_none_cost_their_repository(refs: Any) -> None:
    with lying({"/api/models/lab/run/refs": says(refs)}) as server:
        found, unavailable = resolve(server.hub, select(RepositorySpec("lab/run", "step*"), RepositorySpec(SOUND)))
    assert [each.repository for each in found] == [SOUND]
    assert unavailable[0].reason == "download_failed"


@pytest.mark.slow
def test_a_hundred_thousand_revisions_are_listed_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    branches = [{"name": f"step{n}", "ref": f"refs/heads/step{n}", "targetCommit": COMMIT} for n in range(10**5)]
    with lying({"/api/models/lab/run/refs": says({"branches": branches})}) as server:
        start = time.monotonic()
        found, unavailable = resolve(server.hub, select(RepositorySpec("lab/run", ["step*", "stpe*"])))
        assert time.monotonic() - start < SECONDS
    assert len(found) == 1 and found[0].commit == COMMIT
    assert "matches none of the 100000 branches" in unavailable[0].message


def files(*named: RemoteFile) -> Checkpoint:
    return Checkpoint("lab/run", "main", COMMIT, named, Facts("f", "lab/run"))


WEIGHTS = RemoteFile("model.safetensors", 1000, hashlib.sha256(bytes(1000)).hexdigest(), None)
BODIES: dict[str, tuple[Answer, str]] = {
    "endless": (endless, "announced 1,000"),
    "short": (says(bytes(999)), "announced 1,000 bytes, found 999"),
    "long": (says(bytes(1001)), "announced 1,000 bytes, found 1,001"),
    "other": (says(b"1" * 1000), "other content than it announces"),
    "other, with the right ETag": (says(b"1" * 1000, ETag=f'"{WEIGHTS.sha256}"'), "other content than it announces"),
    "packed": (says(gzip.compress(bytes(1000)), Content_Encoding="gzip"), "announced 1,000 bytes"),
    "to a file": (leads("file:///etc/passwd"), "leads from http to file"),
    "round and round": (round_and_round, "leads on and on"),
    "to the cloud's metadata": (leads("http://169.254.169.254/x"), "inside this network"),
    "endless error": (endless_error, "more than"),
    "silent": (silent, "could not be fetched"),
    "dripping headers": (dripping_headers, "could not be fetched"),
}


@pytest.mark.parametrize(("body", "words"), BODIES.values(), ids=BODIES)
def test_a_file_that_is_not_what_was_listed_is_no_file(
    body: Answer, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    with lying({"/lab/run/resolve": body}) as server, Cache(tmp_path, 10**6) as cache:
        start = time.monotonic()
        with pytest.raises(CheckpointError, match=words):
            cache.fetch(server.hub, files(WEIGHTS))
        assert time.monotonic() - start < SECONDS
        assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) == 0


def test_a_server_that_starts_again_and_again_ends(tmp_path: Path) -> None:
    """Ranges are ignored, and each body breaks a little later or earlier: progress is what nobody had before."""
    sizes = [3 << 20, 5 << 20] * 50
    large = RemoteFile("model.safetensors", 10 << 20, "0" * 64, None)

    def broken(self: Lying) -> None:
        self.head(length=10 << 20)
        self.wfile.write(bytes(sizes.pop()))
        self.connection.shutdown(socket.SHUT_RDWR)

    with lying({"/lab/run/resolve": broken}) as server, Cache(tmp_path, 10**9) as cache:
        with pytest.raises(CheckpointError, match="after all attempts"):
            cache.fetch(server.hub, files(large))
        assert len(server.kind.asked) < 10


def test_a_redirect_takes_no_token_to_another_host() -> None:
    with lying({"/": says(info())}) as other:
        with lying({"/api/models/lab/run": leads(f"http://localhost:{other.server_port}/x")}) as server:
            found, _ = resolve(server.hub, select(RepositorySpec("lab/run")))
        assert len(found) == 1
        assert [token for _, token in other.kind.asked] == [""]
        assert server.kind.asked[0][1] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("named", ["../../x.safetensors", "/etc/x.safetensors", "a//b.safetensors", "config.json", 7])
def test_an_index_on_a_hub_that_leads_elsewhere_is_refused_before_any_weights(named: Any) -> None:
    body = json.dumps({"weight_map": {"a": named, "b": "model-00001-of-00001.safetensors"}}).encode()
    listed = [sibling(name) for name in ("config.json", "model-00001-of-00001.safetensors", "../../x.safetensors")]
    index = "model.safetensors.index.json"
    listing = info(*listed, sibling(index, body))
    with lying({"/api/models/lab/run": says(listing), "/lab/run/resolve": says(body)}) as server:
        found, (refused,) = resolve(server.hub, select(RepositorySpec("lab/run")))
        assert not found and refused.reason in ("no_safe_weights", "load_failed")
        assert [path for path, _ in server.kind.asked if "resolve" in path] == [f"/lab/run/resolve/{COMMIT}/{index}"]


def test_an_index_that_is_not_what_was_listed_is_refused() -> None:
    index = "model.safetensors.index.json"
    listed = info(sibling("config.json"), sibling("model-1.safetensors"), sibling(index, b"something else"))
    body = b'{"weight_map": {"a": "model-1.safetensors"}}'
    with lying({"/api/models/lab/run": says(listed), "/lab/run/resolve": says(body)}) as server:
        _, (refused,) = resolve(server.hub, select(RepositorySpec("lab/run")))
    assert refused.reason == "checksum_mismatch"
