"""A model's process: the same columns as in this one, a fresh one for each architecture, gone with its parent."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from klray.checkpoints import Checkpoint, Hub, RepositorySpec, Selection, resolve
from klray.errors import CheckpointError, KlrayError
from klray.sweep.child import sendable
from klray.sweep.model import Compute
from klray.sweep.model_process import ModelProcess
from klray.sweep.settings import ScoringSettings
from klray.texts import TextSet, python_stdlib
from klray.tiny.family import train_family
from klray.tiny.family_recipe import SMALLEST
from klray.weights.sketch import sketch
from tests import tiny_models

pytestmark = pytest.mark.slow

TEXTS = TextSet("short", tuple(text[:120] for text in python_stdlib(n=6).texts), ("a",) * 6)
REPOSITORY = "klray/tiny-46k-seed1"
SETTINGS = ScoringSettings(sketch=1024)


@pytest.fixture
def process() -> Iterator[ModelProcess]:
    process = ModelProcess(SETTINGS, TEXTS)
    yield process
    process.close()


@pytest.fixture
def checkpoints() -> list[Checkpoint]:
    """Two of one run, in their folders."""
    root = train_family(SMALLEST) / REPOSITORY
    return [local(root / "step4"), local(root / "step8")]


def local(folder: Path) -> Checkpoint:
    found, unavailable = resolve(Hub("http://127.0.0.1:9", ""), Selection("here", (RepositorySpec(str(folder)),)))
    assert not unavailable
    return found[0]


def other_architecture(folder: Path) -> Checkpoint:
    return local(tiny_models.save_checkpoint(folder, "llama"))


def score(computing: ModelProcess | Compute, checkpoint: Checkpoint) -> bytes:
    """The bytes of a column's values and sketch; its files were given back once."""
    read: list[bool] = []
    found = computing.score(checkpoint, Path(checkpoint.directory), lambda: read.append(True))
    assert read == [True]
    assert found.weight_sketch is not None and found.timings["score_seconds"] > 0
    return found.log_likelihood.tobytes() + found.weight_sketch.tobytes()


def test_a_process_gives_the_bits_of_this_one(
    process: ModelProcess, checkpoints: list[Checkpoint], one_thread: None
) -> None:
    here = Compute(SETTINGS, TEXTS)
    assert [score(process, each) for each in checkpoints] == [score(here, each) for each in checkpoints]


def test_only_another_architecture_gets_a_fresh_process(
    process: ModelProcess, checkpoints: list[Checkpoint], tmp_path: Path
) -> None:
    other = other_architecture(tmp_path / "other")
    pids = []
    for each, fresh in zip((*checkpoints, other, checkpoints[0]), (True, False, True, True), strict=True):
        timings = process.score(each, Path(each.directory), lambda: None).timings
        assert timings.get("start_seconds", 0.0) > 0 if fresh else "start_seconds" not in timings
        assert process.pid is not None
        pids.append(process.pid)
    assert pids[0] == pids[1] and len(set(pids)) == 3
    with pytest.raises(ProcessLookupError):  # ended, its memory with it
        os.kill(pids[0], 0)


def test_refusals_and_other_errors_come_back_as_they_were(
    process: ModelProcess, checkpoints: list[Checkpoint], tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(checkpoints[0].directory, folder)
    broken = local(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8}))
    read: list[bool] = []
    with pytest.raises(CheckpointError, match="the model's context holds 8") as caught:
        process.score(broken, folder, lambda: read.append(True))
    assert caught.value.reason == "text_too_long" and read == [True]
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError) as caught:
        process.score(broken, folder, lambda: read.append(True))
    assert caught.value.reason == "load_failed" and read == [True, True]
    score(process, checkpoints[0])  # it goes on
    lensed = ModelProcess(ScoringSettings(lens="tuned-12345678", lens_folder=str(tmp_path)), TEXTS)
    with contextlib.closing(lensed), pytest.raises(KlrayError, match="lens"):
        lensed.score(checkpoints[0], Path(checkpoints[0].directory), lambda: None)


def test_an_answer_that_nobody_waited_for_is_not_the_next_checkpoint_s(
    process: ModelProcess, checkpoints: list[Checkpoint], one_thread: None
) -> None:
    def broken() -> None:
        raise PermissionError("the cache")

    with pytest.raises(PermissionError):
        process.score(checkpoints[0], Path(checkpoints[0].directory), broken)
    assert score(process, checkpoints[1]) == score(Compute(SETTINGS, TEXTS), checkpoints[1])


def test_a_refusal_comes_once_the_files_are_read(
    checkpoints: list[Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any) -> Any:
        time.sleep(0.5)
        return sketch(*arguments)

    monkeypatch.setattr("klray.sweep.model.sketch", slow)
    folder = tmp_path / "short"
    shutil.copytree(checkpoints[0].directory, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8}))
    read: list[bool] = []
    with pytest.raises(CheckpointError, match="context holds 8"):
        Compute(SETTINGS, TEXTS).score(local(folder), folder, lambda: read.append(True))
    assert read == [True]


def test_an_error_that_has_no_pickle_comes_back_in_words() -> None:
    class Odd(Exception):
        def __init__(self, one: int, two: int):
            super().__init__(f"{one} and {two}")

    sent = sendable(Odd(1, 2))
    assert type(sent) is RuntimeError and str(sent) == "Odd: 1 and 2"
    plain = sendable(ZeroDivisionError("by 0"))
    assert type(plain) is ZeroDivisionError and plain.__notes__


def test_a_process_that_dies_is_a_refusal_and_the_next_checkpoint_has_another(
    process: ModelProcess, checkpoints: list[Checkpoint]
) -> None:
    score(process, checkpoints[0])
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)  # so that it dies with the next one in hand
    threading.Timer(0.3, os.kill, (process.pid, signal.SIGKILL)).start()
    read: list[bool] = []
    with pytest.raises(CheckpointError, match=r"killed by signal 9 \(SIGKILL\)") as caught:
        process.score(checkpoints[1], Path(checkpoints[1].directory), lambda: read.append(True))
    assert caught.value.reason == "worker_died" and read == [True]
    score(process, checkpoints[1])


def test_it_ends_with_its_parent_in_the_middle_of_a_forward_pass(checkpoints: list[Checkpoint]) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.test_model_process import *\n"
        "big = python_stdlib('train', n=2000)\n"
        "process = ModelProcess(ScoringSettings(sketch=0), big)\n"
        "def read():\n    print(process.pid, flush=True)\n"
        "if __name__ == '__main__':\n    folder = Path(sys.argv[1])\n    process.score(local(folder), folder, read)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, checkpoints[0].directory], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and Path(f"/proc/{child}").exists():
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_what_imports_a_scorer_needs_no_pytorch() -> None:
    code = (
        "import sys, klray.sweep.actor, klray.sweep.model_process, klray.sweep.scorer; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert torch.get_num_threads() >= 1
