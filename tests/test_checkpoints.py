"""Selections resolved against a real hub server: expansion, identity, choice of files, and what is not available."""

from __future__ import annotations

import base64
import json
import pickle
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.utils._http as hub_http
import numpy as np
import pytest
from safetensors.numpy import save_file

from klray.checkpoints import (
    Checkpoint,
    Facts,
    Hub,
    RemoteFile,
    RepositorySpec,
    Selection,
    Unavailable,
    resolve,
    step_of,
)
from klray.checkpoints import selection as selecting
from klray.checkpoints.download import Downloader
from klray.checkpoints.hub import SilentHubError, listing, without_secrets
from klray.embedded.hub import HubServer
from klray.errors import CheckpointError, KlrayError
from tests.hub_faults import FaultyHub, write_model

RUN = "tiny/run"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    for step in (0, 2, 10, 100, 1000):
        write_model(root / RUN / f"step{step}", seed=step, weight_bytes=1000)
    (root / RUN / "repo.json").write_text(json.dumps({"base_model": "tiny/parent"}))
    write_model(root / "tiny/merged" / "main")
    (root / "tiny/merged" / "repo.json").write_text(json.dumps({"base_model": ["tiny/a", "tiny/b"]}))
    write_model(root / "tiny/gated" / "main")
    (root / "tiny/gated" / ".gated").touch()
    return root


@pytest.fixture
def server(root: Path) -> Iterator[HubServer]:
    with HubServer(root) as server:
        yield server


def hub_of(server: HubServer) -> Hub:
    return Hub(server.endpoint, server.token)


def select(*specs: RepositorySpec, **options: int) -> Selection:
    return Selection("tiny", specs, **options)


def only_error(hub: Hub, spec: RepositorySpec) -> Unavailable:
    checkpoints, unavailable = resolve(hub, select(spec))
    assert not checkpoints
    assert len(unavailable) == 1
    return unavailable[0]


@pytest.mark.parametrize(
    ("revision", "step"),
    [
        ("step1000", 1000),
        ("step0", 0),
        ("step1000-tokens4B", 1000),
        ("stage1-step1000-tokens3B", 1000),
        ("global_step64", 64),
        ("step-125000", 125000),
        ("checkpoint-500", 500),
        ("main", None),
        ("step10k", None),
        ("footstep3", None),
        ("v1.0", None),
    ],
)
def test_step_of_names(revision: str, step: int | None) -> None:
    assert step_of(revision) == step


def test_glob_expands_in_the_order_of_steps_with_two_requests_and_one_per_further_commit(server: HubServer) -> None:
    checkpoints, unavailable = resolve(hub_of(server), select(RepositorySpec(RUN, "step*", size="1k", seed=3)))
    assert not unavailable
    assert [checkpoint.revision for checkpoint in checkpoints] == ["step0", "step2", "step10", "step100", "step1000"]
    assert checkpoints[1].facts == Facts("tiny", RUN, 2, "1k", 3, "tiny/parent", "", "tiny/parent", "finetune")
    assert len({checkpoint.commit for checkpoint in checkpoints}) == 5
    assert server.requests == {"info": 5, "refs": 1}  # main is step1000


def test_glob_narrows(server: HubServer) -> None:
    checkpoints, _ = resolve(hub_of(server), select(RepositorySpec(RUN, ["step1*", "step[0-9]"])))
    assert [checkpoint.facts.step for checkpoint in checkpoints] == [0, 2, 10, 100, 1000]
    checkpoints, _ = resolve(hub_of(server), select(RepositorySpec(RUN, "step[0-9]*00")))
    assert [checkpoint.facts.step for checkpoint in checkpoints] == [100, 1000]


@pytest.mark.parametrize(("stride", "steps"), [(1, [0, 2, 10, 100, 1000]), (2, [0, 10, 1000]), (3, [0, 100, 1000])])
def test_stride_keeps_every_kth_and_the_last(server: HubServer, stride: int, steps: list[int]) -> None:
    checkpoints, _ = resolve(hub_of(server), select(RepositorySpec(RUN, "step*"), stride=stride))
    assert [checkpoint.facts.step for checkpoint in checkpoints] == steps


def test_limit_bounds_requests_too(server: HubServer) -> None:
    checkpoints, _ = resolve(hub_of(server), select(RepositorySpec(RUN, "step*"), limit=2))
    assert [checkpoint.facts.step for checkpoint in checkpoints] == [0, 2]
    assert server.requests == {"info": 3, "refs": 1}


@pytest.mark.parametrize(("wrong", "right"), [("stride", "limit"), ("limit", "stride")])
def test_stride_and_limit_are_at_least_one_and_the_wrong_one_is_named(wrong: str, right: str) -> None:
    words = rf"models\.{wrong}=0 was asked for: set models\.{wrong} \(in Python: {wrong}=\) to 1 or more"
    with pytest.raises(KlrayError, match=words) as raised:
        select(RepositorySpec(RUN), **{wrong: 0, right: 2})
    assert right not in str(raised.value)


def test_main_costs_one_request(server: HubServer) -> None:
    (checkpoint,), _ = resolve(hub_of(server), select(RepositorySpec("tiny/merged")))
    assert checkpoint.facts.base_model == ""  # two parents are none
    assert server.requests == {"info": 1}


def test_same_commit_is_one_checkpoint_named_by_its_step(server: HubServer) -> None:
    main, both = RepositorySpec(RUN), RepositorySpec(RUN, ["main", "step1000"])
    for selection in (select(both), select(main, both), select(both, main)):
        checkpoints, _ = resolve(hub_of(server), selection)
        assert [checkpoint.revision for checkpoint in checkpoints] == ["step1000"]


def test_commit_sha_is_a_revision(server: HubServer) -> None:
    (named,), _ = resolve(hub_of(server), select(RepositorySpec(RUN, "step10")))
    (by_commit,), _ = resolve(hub_of(server), select(RepositorySpec(RUN, named.commit)))
    assert (by_commit.commit, by_commit.files) == (named.commit, named.files)
    assert by_commit.facts.step is None


def test_checkpoint_describes_its_files(server: HubServer, root: Path) -> None:
    (checkpoint,), _ = resolve(hub_of(server), select(RepositorySpec(RUN, "step10")))
    assert [file.path for file in checkpoint.files] == ["config.json", "model.safetensors", "tokenizer.json"]
    folder = root / RUN / "step10"
    assert checkpoint.bytes == sum((folder / file.path).stat().st_size for file in checkpoint.files)
    assert [bool(file.sha256) for file in checkpoint.files] == [False, True, False]
    assert [bool(file.git_sha1) for file in checkpoint.files] == [True, False, True]
    assert pickle.loads(pickle.dumps(checkpoint)) == checkpoint


def test_weights_sha256_names_weights_alone() -> None:
    config, other = (RemoteFile("config.json", 2, None, digit * 40) for digit in "12")
    weights, different = (RemoteFile("model.safetensors", 9, digit * 64, None) for digit in "34")

    def identity(*files: RemoteFile) -> str:
        return Checkpoint("a/b", "main", "0" * 40, files, Facts()).weights_sha256

    assert identity(config, weights) == identity(other, weights) != identity(config, different)


def test_missing_repository(server: HubServer) -> None:
    error = only_error(hub_of(server), RepositorySpec("tiny/nothing", "step*"))
    assert error.reason == "repository_not_found"
    assert error.revision == "step*"
    for words in ("tiny/nothing", server.endpoint, "check the spelling", "HF_TOKEN"):
        assert words in error.message


def test_name_that_no_hub_could_have() -> None:
    error = only_error(Hub("http://127.0.0.1:9"), RepositorySpec("a/b/c"))
    assert error.reason == "repository_not_found"
    assert "organisation/name" in error.message


def test_gated_repository_is_found_out_before_any_download(server: HubServer) -> None:
    error = only_error(hub_of(server), RepositorySpec("tiny/gated"))
    assert error.reason == "gated"
    assert "accept its terms" in error.message
    assert server.requests == {"info": 1, "auth-check": 1}


def test_missing_revision_names_near_ones(server: HubServer) -> None:
    error = only_error(hub_of(server), RepositorySpec(RUN, "step99"))
    assert (error.reason, error.revision) == ("revision_not_found", "step99")
    for words in ("'step99'", "6 branches and tags", "step0"):
        assert words in error.message


def test_missing_commit(server: HubServer) -> None:
    error = only_error(hub_of(server), RepositorySpec(RUN, "0" * 40))
    assert error.reason == "revision_not_found"
    assert "no such revision" in error.message


def test_glob_without_a_match(server: HubServer) -> None:
    checkpoints, unavailable = resolve(hub_of(server), select(RepositorySpec(RUN, ["stage2-*", "step0"])))
    assert [checkpoint.revision for checkpoint in checkpoints] == ["step0"]
    (error,) = unavailable
    assert (error.reason, error.revision) == ("revision_not_found", "stage2-*")
    for words in (
        "models.revisions='stage2-*' matches none of the 6 branches and tags of tiny/run",
        "step",
        "set models.revisions",
    ):
        assert words in error.message


def write_files(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(name.encode())


SHARDS = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
BINS = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        (["model.safetensors", "pytorch_model.bin", "flax_model.msgpack"], ["model.safetensors"]),
        ([*SHARDS, "model.safetensors.index.json", *BINS], ["model.safetensors.index.json", *SHARDS]),
        (["model.safetensors", *SHARDS, "model.safetensors.index.json"], ["model.safetensors"]),
        (["pytorch_model.bin", "training_args.bin"], ["pytorch_model.bin"]),
        ([*SHARDS[:2], *BINS, "pytorch_model.bin.index.json"], ["pytorch_model.bin.index.json", *BINS]),
        ([*SHARDS, *BINS, "pytorch_model.bin.index.json"], ["pytorch_model.bin.index.json", *BINS]),
        (
            ["model.safetensors", "vocab.json", "merges.txt", "modeling_x.py"],
            ["merges.txt", "model.safetensors", "vocab.json"],
        ),
        (["model.safetensors", "onnx/model.onnx", "original/tokenizer.model"], ["model.safetensors"]),
    ],
)
def test_one_format_of_weights_is_taken(tmp_path: Path, offered: list[str], taken: list[str]) -> None:
    folder = tmp_path / "tiny/one/main"
    write_files(folder, "config.json")
    for name in offered:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    with HubServer(tmp_path) as server:
        (checkpoint,), _ = resolve(hub_of(server), select(RepositorySpec("tiny/one")))
    assert [file.path for file in checkpoint.files] == sorted(["config.json", *taken])


@pytest.mark.parametrize(
    ("offered", "words"),
    [
        (["tf_model.h5", "flax_model.msgpack", "model.gguf"], "found: flax_model.msgpack, model.gguf, tf_model.h5"),
        (["adapter_model.safetensors"], "found: adapter_model.safetensors"),
        (["consolidated.00.pth", "weights.ckpt"], "consolidated.00.pth, weights.ckpt"),
        (SHARDS[:2], "2 of 3 shards"),
        (SHARDS, "all 3 shards, but no model.safetensors.index.json"),
        (BINS, "all 2 shards, but no pytorch_model.bin.index.json"),
        ([], "no weights at all"),
    ],
)
def test_no_safe_weights(tmp_path: Path, offered: list[str], words: str) -> None:
    write_files(tmp_path / "tiny/one/main", "config.json", *offered)
    with HubServer(tmp_path) as server:
        error = only_error(hub_of(server), RepositorySpec("tiny/one"))
    assert error.reason == "no_safe_weights"
    assert words in error.message
    assert "convert" in error.message


def test_no_config(tmp_path: Path) -> None:
    write_files(tmp_path / "tiny/one/main", "model.safetensors")
    with HubServer(tmp_path) as server:
        error = only_error(hub_of(server), RepositorySpec("tiny/one"))
    assert error.reason == "load_failed"
    assert "no config.json" in error.message


def test_one_bad_revision_does_not_hide_the_others(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny/one/step1", seed=1)
    write_files(tmp_path / "tiny/one/step2", "config.json")
    with HubServer(tmp_path) as server:
        checkpoints, unavailable = resolve(hub_of(server), select(RepositorySpec("tiny/one", "step*")))
    assert [checkpoint.revision for checkpoint in checkpoints] == ["step1"]
    assert [(error.revision, error.reason) for error in unavailable] == [("step2", "no_safe_weights")]


def test_waits_out_429_and_500(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(hub_http, "time", SimpleNamespace(sleep=waits.append))
    with FaultyHub(root, busy=2, broken=1) as server:
        checkpoints, unavailable = resolve(hub_of(server), select(RepositorySpec(RUN, "step*")))
    assert len(checkpoints) == 5
    assert not unavailable
    assert waits == [1.0, 1.0, 4.0]  # twice what RateLimit says, and a second; then the third wait of a growing row


def test_hub_that_stays_broken_is_download_failed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_http, "time", SimpleNamespace(sleep=lambda seconds: None))
    with FaultyHub(root, broken=1000) as server:
        error = only_error(hub_of(server), RepositorySpec(RUN))
    assert error.reason == "download_failed"
    for words in (server.endpoint, "500", "after all attempts", "run again"):
        assert words in error.message


def test_hub_that_is_not_there_is_said_once_and_not_asked_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_http, "time", SimpleNamespace(sleep=lambda seconds: None))
    asked: list[str] = []
    monkeypatch.setattr(selecting, "listing", lambda hub, name: (asked.append(name), listing(hub, name))[1])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
    specs = [RepositorySpec(f"tiny/run{n}") for n in range(100)]  # threads share a client, which each refusal closes
    with pytest.raises(SilentHubError, match=r"tiny/run\d+@main could not be fetched from http.*refused") as raised:
        resolve(Hub(endpoint), select(*specs))
    assert raised.value.reason == "download_failed" and "folder" not in raised.value.message
    assert len(asked) < 50
    with pytest.raises(SilentHubError, match=r"\(nor is there a folder 'child' here\)"):
        resolve(Hub(endpoint), select(RepositorySpec("child")))


def test_a_server_that_is_no_hub(tmp_path: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("klray.embedded.routes.HubHandler.send_info", lambda self, *_: self.send_json({"hello": 1}))
    error = only_error(hub_of(server), RepositorySpec(RUN))
    assert error.reason == "download_failed"
    assert "check HF_ENDPOINT" in error.message


@pytest.mark.parametrize("token", [None, "wrong"])
def test_token_is_required_and_never_in_words(
    server: HubServer, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", server.token)  # the environment's token is not used behind the caller's back
    error = only_error(Hub(server.endpoint, token), RepositorySpec(RUN))
    assert error.reason == "gated"
    assert "HF_TOKEN" in error.message
    assert server.token not in repr(error)
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
    monkeypatch.setattr(hub_http, "time", SimpleNamespace(sleep=lambda seconds: None))
    host, seen = proxy
    hub = Hub(f"http://bob:hush%40hush@{host}", "token-word")
    said = [only_error(hub, RepositorySpec(name)).message for name in ("tiny/run", "tiny/busy")]
    with pytest.raises(CheckpointError) as raised:
        Downloader().download(hub, "tiny/run", "0" * 40, RemoteFile("config.json", 1, None, None), tmp_path)
    assert set(seen) == {"Basic " + base64.b64encode(b"bob:hush@hush").decode()}
    assert "503" in said[1]
    assert "thrown while requesting" in caplog.text  # huggingface_hub's own words
    for words in (*said, str(raised.value), repr(hub)):
        assert f"http://{host}" in words
    for words in (*said, str(raised.value), repr(hub), caplog.text):
        assert not [secret for secret in ("bob", "hush", "token-word") if secret in words]
    assert Hub("bob:hush@host").address == "host"


def test_signed_urls_lose_their_signature() -> None:
    words = "503 for url 'https://me:hush@cdn.example/a/b@main?X-Amz-Signature=1f&b=2' (see <https://hub.example#x>)"
    assert without_secrets(words) == "503 for url 'https://cdn.example/a/b@main' (see <https://hub.example>)"


def local(hub_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(hub_root / RUN, tmp_path / "run", ignore=shutil.ignore_patterns("repo.json"))
    return tmp_path / "run"


NOWHERE = Hub("http://127.0.0.1:9")


def test_folder_of_steps(root: Path, tmp_path: Path) -> None:
    folder = local(root, tmp_path)
    checkpoints, unavailable = resolve(NOWHERE, select(RepositorySpec(str(folder), "step*"), stride=2))
    assert not unavailable
    assert [checkpoint.facts.step for checkpoint in checkpoints] == [0, 10, 1000]
    assert {checkpoint.repository for checkpoint in checkpoints} == {str(folder)}
    assert checkpoints[1].directory == str(folder / "step10")
    assert all(file.sha256 for checkpoint in checkpoints for file in checkpoint.files)


def test_folder_is_identified_by_content_of_what_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)

    def commit(path: str = str(folder)) -> str:
        (checkpoint,), _ = resolve(NOWHERE, select(RepositorySpec(path)))
        assert checkpoint.revision == "local"
        return checkpoint.commit

    first = commit()
    assert len(first) == 64
    (folder / "README.md").write_text("changed")
    assert commit() == commit("./model") == commit("model") == first
    (folder / "tokenizer.json").write_text('{"changed": 1}')
    second = commit()
    save_file({"weight": np.ones(3)}, folder / "model.safetensors")
    assert len({first, second, commit()}) == 3


def test_folder_without_a_model_is_said_at_once_and_not_asked_of_the_hub(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / RUN).mkdir(parents=True)
    (tmp_path / RUN / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    for path in (RUN, f"./{RUN}", str(tmp_path / RUN), "."):
        error = only_error(hub_of(server), RepositorySpec(path))
        assert error.reason == "repository_not_found"
        for words in (f"folder {(tmp_path / path).resolve()} holds no config.json", "give a folder", repr(path)):
            assert words in error.message
    assert not server.requests
    shutil.rmtree(tmp_path / RUN)
    (checkpoint,), _ = resolve(hub_of(server), select(RepositorySpec(RUN)))
    assert not checkpoint.directory  # no such folder: the hub's


def test_folder_that_is_not_there_or_holds_no_model(tmp_path: Path) -> None:
    error = only_error(NOWHERE, RepositorySpec(str(tmp_path / "gone")))
    assert error.reason == "repository_not_found"
    assert "does not exist" in error.message
    write_model(tmp_path / "step7")
    error = only_error(NOWHERE, RepositorySpec(str(tmp_path)))
    assert error.reason == "revision_not_found"
    assert "step7" in error.message
