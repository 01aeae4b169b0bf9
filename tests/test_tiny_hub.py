"""The embedded hub under its real clients, huggingface_hub and transformers, and under plain HTTP for the details."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from klray.checkpoints.hub import listing
from klray.config import ModelsConfig, ModelSource
from klray.config import sweep as sweep_configs
from klray.errors import KlrayError
from klray.tiny import serving
from klray.tiny.hub_server import HubServer, local_hub
from tests.hub_faults import write_model

pytestmark = pytest.mark.slow

REPOSITORY = "tiny/run"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    for step in (2, 10):
        folder = write_model(root / REPOSITORY / f"step{step}", seed=step)
        (folder / "extra/deep").mkdir(parents=True)
        (folder / "extra/deep/note.txt").write_text("deep")
    (root / REPOSITORY / ".step11").mkdir()  # being written
    (root / REPOSITORY / "repo.json").write_text(json.dumps({"base_model": "tiny/parent", "license": "mit"}))
    write_model(root / "tiny/gated/main")
    (root / "tiny/gated/.gated").touch()
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[HubServer]:
    with HubServer(root) as server:
        yield server


@pytest.fixture
def api(server: HubServer) -> HfApi:
    return HfApi(server.endpoint, token=server.token)


def request(
    server: HubServer, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(server.endpoint.removeprefix("http://"), timeout=30)
    connection.request(method, path, headers={"Authorization": f"Bearer {server.token}", **(headers or {})})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, dict(response.getheaders()), body


def git_blob_id(path: Path) -> str:
    return subprocess.run(["git", "hash-object", str(path)], capture_output=True, text=True, check=True).stdout.strip()


def test_references(api: HfApi) -> None:
    refs = {branch.name: branch.target_commit for branch in api.list_repo_refs(REPOSITORY).branches}
    assert sorted(refs) == ["main", "step10", "step2"]
    assert refs["main"] == refs["step10"] != refs["step2"]  # the highest step, not the last name
    assert all(len(commit) == 40 for commit in refs.values())


def test_model_info(api: HfApi, root: Path) -> None:
    info = api.model_info(REPOSITORY, revision="step2", files_metadata=True)
    assert info.card_data is not None and info.card_data.base_model == "tiny/parent"
    assert info.gated is False
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    weights, config = siblings["model.safetensors"], siblings["config.json"]
    folder = root / REPOSITORY / "step2"
    assert weights.lfs is not None
    assert weights.lfs.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert weights.size == weights.lfs.size == (folder / "model.safetensors").stat().st_size
    assert config.lfs is None
    assert api.model_info(REPOSITORY, revision=info.sha).sha == info.sha
    assert api.model_info("tiny/gated").gated == "manual"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is the reference for blob ids")
def test_blob_ids_are_those_of_git(api: HfApi, root: Path, tmp_path: Path) -> None:
    entries = {entry.path: entry for entry in api.list_repo_tree(REPOSITORY, revision="step2")}
    config, weights = entries["config.json"], entries["model.safetensors"]
    assert config.blob_id == git_blob_id(root / REPOSITORY / "step2/config.json")
    pointer = tmp_path / "pointer"
    pointer.write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{weights.lfs.sha256}\nsize {weights.size}\n"
    )
    assert weights.blob_id == git_blob_id(pointer)
    assert weights.lfs.pointer_size == pointer.stat().st_size


def test_tree(api: HfApi) -> None:
    def paths(**options: object) -> list[str]:
        return sorted(entry.path for entry in api.list_repo_tree(REPOSITORY, **options))  # type: ignore[arg-type]

    top = ["README.md", "config.json", "extra", "model.safetensors", "tokenizer.json"]
    assert paths() == top
    assert paths(recursive=True) == sorted([*top, "extra/deep", "extra/deep/note.txt"])
    assert paths(path_in_repo="extra") == ["extra/deep"]
    with pytest.raises(RemoteEntryNotFoundError):
        paths(path_in_repo="nothing")


def test_snapshot_download(server: HubServer, root: Path, tmp_path: Path) -> None:
    folder = snapshot_download(
        REPOSITORY, revision="step2", cache_dir=tmp_path, endpoint=server.endpoint, token=server.token
    )
    for path in (root / REPOSITORY / "step2").rglob("*"):
        if path.is_file():
            assert (Path(folder) / path.relative_to(root / REPOSITORY / "step2")).read_bytes() == path.read_bytes()


TRANSFORMERS = """
from transformers import AutoConfig, AutoTokenizer
print(AutoConfig.from_pretrained("tiny/run", revision="step2").model_type)
print(len(AutoTokenizer.from_pretrained("tiny/run", revision="step2")))
"""


def test_transformers_loads_from_it(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    folder = write_model(tmp_path / REPOSITORY / "step2", tokenizer=tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with HubServer(tmp_path) as server:
        environment = {**os.environ, "HF_ENDPOINT": server.endpoint, "HF_TOKEN": server.token, "HF_HOME": str(tmp_path)}
        said = subprocess.run(
            [sys.executable, "-c", TRANSFORMERS], env=environment, capture_output=True, text=True, timeout=300
        )
    assert said.stdout.split() == ["gpt_neox", "3"], said.stderr


@pytest.mark.parametrize(
    ("repository", "revision", "path", "error"),
    [
        ("tiny/nothing", "main", "config.json", RepositoryNotFoundError),
        (REPOSITORY, "step3", "config.json", RevisionNotFoundError),
        (REPOSITORY, ".step11", "config.json", RevisionNotFoundError),
        (REPOSITORY, "main", "nothing.json", RemoteEntryNotFoundError),
        ("tiny/gated", "main", "config.json", GatedRepoError),
    ],
)
def test_errors_as_the_client_knows_them(
    server: HubServer, tmp_path: Path, repository: str, revision: str, path: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        hf_hub_download(
            repository, path, revision=revision, cache_dir=tmp_path, endpoint=server.endpoint, token=server.token
        )


def test_token_is_required(server: HubServer) -> None:
    for token in ("wrong", False):
        with pytest.raises(HfHubHTTPError) as raised:
            HfApi(server.endpoint, token=token).model_info(REPOSITORY)
        assert raised.value.response.status_code == 401
    assert HubServer(server.repositories.root).token != server.token


def test_head_announces_what_get_sends(server: HubServer, root: Path) -> None:
    path = f"/{REPOSITORY}/resolve/step2/model.safetensors"
    status, head, body = request(server, path, "HEAD")
    assert (status, body) == (200, b"")
    status, got, body = request(server, path)
    content = (root / REPOSITORY / "step2/model.safetensors").read_bytes()
    assert body == content
    assert {**head, "Date": ""} == {**got, "Date": ""}
    assert head["Content-Length"] == head["X-Linked-Size"] == str(len(content))
    assert head["ETag"] == head["X-Linked-Etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert len(head["X-Repo-Commit"]) == 40


@pytest.mark.parametrize("asked", [(0, 0), (70_000, ""), ("", 5), (10, 999_999_999), (65_535, 65_536)])
def test_range(server: HubServer, root: Path, asked: tuple[int | str, int | str]) -> None:
    content = (root / REPOSITORY / "step2/model.safetensors").read_bytes()
    first, last = asked
    expected = content[-5:] if first == "" else content[int(first) : len(content) if last == "" else int(last) + 1]
    headers = {"Range": f"bytes={first}-{last}"}
    status, got, body = request(server, f"/{REPOSITORY}/resolve/step2/model.safetensors", headers=headers)
    assert (status, body) == (206, expected)
    start = len(content) - 5 if first == "" else int(first)
    assert got["Content-Range"] == f"bytes {start}-{start + len(body) - 1}/{len(content)}"


@pytest.mark.parametrize("asked", ["bytes=999999999-", "bytes=5-4", "lines=1-2", "bytes=0-1,3-4"])
def test_range_that_cannot_be(server: HubServer, asked: str) -> None:
    status, _, _ = request(server, f"/{REPOSITORY}/resolve/step2/model.safetensors", headers={"Range": asked})
    assert status == 416


@pytest.mark.parametrize(
    "path",
    [
        f"/{REPOSITORY}/resolve/step2/../step10/config.json",
        f"/{REPOSITORY}/resolve/step2/..%2F..%2F..%2F..%2Fetc%2Fpasswd",
        f"/{REPOSITORY}/resolve/..%2F..%2Fgated/main/config.json",
        "/..%2F..%2Fetc/resolve/main/passwd",
        "/api/models/tiny/..",
        "/nothing",
    ],
)
def test_nothing_outside_of_a_revision_is_served(server: HubServer, path: str) -> None:
    status, _, _ = request(server, path)
    assert status == 404


def test_changed_file_is_another_commit(tmp_path: Path) -> None:
    folder = write_model(tmp_path / REPOSITORY / "step1")
    with HubServer(tmp_path) as server:
        api = HfApi(server.endpoint, token=server.token)
        first = api.model_info(REPOSITORY).sha
        assert first is not None
        (folder / "config.json").write_text("{}")
        assert api.model_info(REPOSITORY).sha != first
        with pytest.raises(RevisionNotFoundError):
            api.model_info(REPOSITORY, revision=first)
        write_model(tmp_path / REPOSITORY / "step3", seed=3)  # a run that goes on
        assert api.model_info(REPOSITORY).sha == api.model_info(REPOSITORY, revision="step3").sha


def test_rate_is_bounded_over_all_connections(root: Path) -> None:
    size = (root / REPOSITORY / "step2/model.safetensors").stat().st_size
    with HubServer(root, bytes_per_second=4 * size) as server:
        path = f"/{REPOSITORY}/resolve/step2/model.safetensors"
        threads = [threading.Thread(target=request, args=(server, path)) for _ in range(4)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began >= 0.99


def test_requests_are_counted_by_route(root: Path, tmp_path: Path) -> None:
    with HubServer(root) as server:
        hf_hub_download(REPOSITORY, "config.json", cache_dir=tmp_path, endpoint=server.endpoint, token=server.token)
        HfApi(server.endpoint, token=server.token).list_repo_refs(REPOSITORY)
        assert server.requests == {"resolve HEAD": 1, "resolve GET": 1, "refs": 1}


def test_open_connections_end_with_the_server(root: Path) -> None:
    with HubServer(root) as server:
        connection = http.client.HTTPConnection(server.endpoint.removeprefix("http://"), timeout=30)
        headers = {"Authorization": f"Bearer {server.token}"}
        connection.request("GET", f"/api/models/{REPOSITORY}", headers=headers)
        connection.getresponse().read()
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        connection.request("GET", f"/api/models/{REPOSITORY}", headers=headers)
        connection.getresponse()


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KlrayError, match="does not exist"):
        HubServer(tmp_path / "nothing")
    with pytest.raises(KlrayError, match="did not start"), local_hub(tmp_path / "nothing"):
        pass


def test_process_of_its_own_serves_and_ends(root: Path) -> None:
    with local_hub(root) as (endpoint, token):
        assert HfApi(endpoint, token=token).model_info(REPOSITORY).id == REPOSITORY
        assert HfApi(endpoint, token="wrong").endpoint == endpoint
    connection = http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=30)
    with pytest.raises(ConnectionRefusedError):
        connection.request("GET", "/")


def test_the_hub_of_a_family_is_handed_over_and_the_environment_stays(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "embedded_root", lambda recipe: root)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    before = dict(os.environ)
    with sweep_configs.hub(ModelsConfig(source=ModelSource.embedded)) as hub:
        assert dict(os.environ) == before
        assert listing(hub, REPOSITORY).files
    with sweep_configs.hub(ModelsConfig()) as hub:
        assert hub.endpoint == "http://127.0.0.1:9"


PARENT = """
import os, sys
from klray.tiny.hub_server import local_hub
with local_hub(sys.argv[1]) as (endpoint, token):
    print(endpoint, flush=True)
    os.kill(os.getpid(), 9)
"""


def test_process_ends_when_its_parent_is_killed(root: Path) -> None:
    parent = subprocess.run([sys.executable, "-c", PARENT, str(root)], capture_output=True, text=True, timeout=480)
    endpoint = parent.stdout.strip()
    assert endpoint.startswith("http://127.0.0.1:")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=30).connect()
        except ConnectionRefusedError:
            return
        time.sleep(0.02)
    pytest.fail("the hub outlived its parent")


def test_command_prints_what_to_export_and_a_new_token_only(root: Path) -> None:
    command = [sys.executable, "-m", "klray.tiny.hub_server", "--root", str(root), "--until-stdin-closes"]
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    for given in ({}, {"HF_TOKEN": "secret-word"}):
        said = subprocess.run(
            command, env={**environment, **given}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=480
        )
        lines = said.stdout.splitlines()
        assert lines[0].startswith("export HF_ENDPOINT=http://127.0.0.1:")
        assert [line.startswith("export HF_TOKEN=") for line in lines[1:]] == ([] if given else [True])
        assert "secret-word" not in said.stdout + said.stderr
