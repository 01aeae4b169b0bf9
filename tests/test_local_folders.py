"""Selections of folders on this machine: which models they hold, and what identifies them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from klray.checkpoints import Hub, RepositorySpec, resolve
from klray.tiny.hub_server import HubServer
from tests.hub_faults import hub_of, only_error, select, write_model

RUN = "tiny/run"


def local(hub_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(hub_root / RUN, tmp_path / "run", ignore=shutil.ignore_patterns("repo.json"))
    return tmp_path / "run"


NOWHERE = Hub("http://127.0.0.1:9")


def test_folder_of_steps(run_root: Path, tmp_path: Path) -> None:
    folder = local(run_root, tmp_path)
    checkpoints, unavailable = resolve(NOWHERE, select(RepositorySpec(str(folder), "step*"), stride=2))
    assert not unavailable
    assert [checkpoint.facts.step for checkpoint in checkpoints] == [0, 2, 4]
    assert {checkpoint.repository for checkpoint in checkpoints} == {str(folder)}
    assert checkpoints[1].directory == str(folder / "step2")
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
    run_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / RUN).mkdir(parents=True)
    (tmp_path / RUN / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    for path in (RUN, f"./{RUN}", str(tmp_path / RUN), "."):
        error = only_error(hub_of(run_server), RepositorySpec(path))
        assert error.reason == "repository_not_found"
        for words in (f"folder {(tmp_path / path).resolve()} holds no config.json", "give a folder", repr(path)):
            assert words in error.message
    assert not run_server.requests
    shutil.rmtree(tmp_path / RUN)
    (checkpoint,), _ = resolve(hub_of(run_server), select(RepositorySpec(RUN)))
    assert not checkpoint.directory  # no such folder: the hub's


def test_folder_that_is_not_there_or_holds_no_model(tmp_path: Path) -> None:
    error = only_error(NOWHERE, RepositorySpec(str(tmp_path / "gone")))
    assert error.reason == "repository_not_found"
    assert "does not exist" in error.message
    write_model(tmp_path / "step7")
    error = only_error(NOWHERE, RepositorySpec(str(tmp_path)))
    assert error.reason == "revision_not_found"
    assert "step7" in error.message
