"""Listings of commits that are kept: a repository that is known costs one request, and what is kept is believed no
more than the hub."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from klray.checkpoints import Checkpoint, Hub, RepositorySpec, resolve
from klray.checkpoints import kept as module
from klray.checkpoints.hub import listing
from klray.config import sweep as sweep_configs
from klray.tiny.hub_server import HubServer
from tests.hub_faults import RUN, hub_of, select, write_model, write_run

STEPS = 4
ASKED = select(RepositorySpec(RUN, "step*"))


@pytest.fixture
def server(tmp_path: Path) -> HubServer:
    root = write_run(tmp_path / "hub", STEPS)
    write_model(root / "tiny" / "parent" / "main", seed=9)
    (root / RUN / "repo.json").write_text('{"base_model": "tiny/parent", "base_model_relation": "quantized"}')
    return HubServer(root)


def found(server: HubServer, folder: Path) -> list[Checkpoint]:
    checkpoints, unavailable = resolve(hub_of(server), ASKED, folder)
    assert not unavailable and len(checkpoints) == STEPS
    return checkpoints


def kept_file(folder: Path) -> Path:
    (file,) = folder.glob("*/*.jsonl")
    return file


def test_a_known_repository_is_asked_for_its_branches_alone(server: HubServer, tmp_path: Path) -> None:
    with server:
        first = found(server, tmp_path / "kept")
        assert server.requests["info"] == STEPS
        server.requests.clear()
        assert found(server, tmp_path / "kept") == first
        assert server.requests == {"refs": 1, "resolve HEAD": 1}  # HEAD: of the parent
        write_model(tmp_path / "hub" / RUN / "step9", seed=9)  # main moves on to it
        server.requests.clear()
        more, _ = resolve(hub_of(server), ASKED, tmp_path / "kept")
        assert [each.revision for each in more] == [*(each.revision for each in first), "step9"]
        assert server.requests["info"] == 1
        assert more[:STEPS] == first


def test_what_is_kept_gives_the_listing_that_the_hub_gave(server: HubServer, tmp_path: Path) -> None:
    with server:
        hub = hub_of(server)
        told = listing(hub, RUN)
        module.Listings(hub, tmp_path / "kept").main(RUN)
        assert module.Listings(hub, tmp_path / "kept").kept(RUN, told.commit) == told
        assert told.lineage.parents == ("tiny/parent",) and told.parameters


def test_nothing_is_kept_without_a_folder(server: HubServer, tmp_path: Path) -> None:
    with server:
        for _ in range(2):
            resolve(hub_of(server), ASKED)
        assert server.requests["info"] == 2 * STEPS


CHANGES = {
    "no JSON": lambda answer: "{cut",
    "a list": lambda answer: "[]",
    "deep": lambda answer: "[" * 5000,
    "no files": lambda answer: json.dumps({**answer, "siblings": 7}),
    "a path that leads out": lambda answer: json.dumps({**answer, "siblings": [{"rfilename": 3}]}),
    "a hash that is none": lambda answer: json.dumps(
        {**answer, "siblings": [{"rfilename": "config.json", "blobId": "x"}]}
    ),
    "a size that is none": lambda answer: json.dumps(
        {**answer, "siblings": [{"rfilename": "config.json", "size": -1}]}
    ),
    "another repository": lambda answer: json.dumps({**answer, "id": "other/name"}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_no_answer_of_a_hub_is_asked_for_again(server: HubServer, tmp_path: Path, change: object) -> None:
    assert callable(change)
    with server:
        first = found(server, tmp_path / "kept")
        file = kept_file(tmp_path / "kept")
        lines = file.read_text().splitlines()
        file.write_text("".join(f"{change(json.loads(line))}\n" for line in lines[:2]) + f"{lines[2]}\n")
        server.requests.clear()
        assert found(server, tmp_path / "kept") == first
        assert server.requests["info"] in (STEPS - 1, STEPS)  # main is asked for beside those that are damaged
        server.requests.clear()
        assert found(server, tmp_path / "kept") == first


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_another_user_left_is_not_believed(server: HubServer, tmp_path: Path) -> None:
    """Whoever made the folder first, where several share one for what can be made again."""
    with server:
        first = found(server, tmp_path / "kept")
        file = kept_file(tmp_path / "kept")
        lines = file.read_text().splitlines()
        fewer = [{**each, "siblings": each["siblings"][:-1]} for each in map(json.loads, lines)]
        file.write_text("".join(f"{json.dumps(each)}\n" for each in fewer))
        os.chown(file, 12345, -1)
        assert found(server, tmp_path / "kept") == first


def test_pipes_and_files_that_are_too_large_are_passed_over(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server:
        first = found(server, tmp_path / "kept")
        file = kept_file(tmp_path / "kept")
        with monkeypatch.context() as small:
            small.setattr(module, "KEPT_BYTES", 100)
            assert found(server, tmp_path / "kept") == first
        assert len(file.read_text().splitlines()) == STEPS
        file.unlink()
        os.mkfifo(file)
        assert found(server, tmp_path / "kept") == first


def test_a_repository_that_is_gone_or_refused_is_not_resolved_from_what_is_kept(
    server: HubServer, tmp_path: Path
) -> None:
    with server:
        found(server, tmp_path / "kept")
        _, (refused,) = resolve(Hub(server.endpoint, "another token"), ASKED, tmp_path / "kept")
        assert refused.reason == "gated"


def test_a_folder_that_cannot_be_written_is_told_once(
    server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kept").write_text("a file")
    with server, caplog.at_level("WARNING", "klray"):
        found(server, tmp_path / "kept")
    assert len([each for each in caplog.messages if "is not kept in" in each]) == 1


def test_how_far_it_is_is_told_of_many(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    with server:
        resolve(hub_of(server), ASKED, report=lambda *each: told.append(each))
        assert told == []
        monkeypatch.setattr("klray.checkpoints.selection.TOLD_FROM", STEPS)
        resolve(hub_of(server), ASKED, report=lambda *each: told.append(each))
    assert told == [("checkpoints", number, STEPS) for number in range(1, STEPS + 1)]


@pytest.mark.parametrize(
    ("endpoint", "here"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost:1", True),
        ("http://[::1]:1", True),
        ("https://huggingface.co", False),
    ],
)
def test_a_hub_on_this_machine_is_asked_each_time(endpoint: str, here: bool) -> None:
    assert sweep_configs._is_here(Hub(endpoint)) == here
