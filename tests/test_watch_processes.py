"""Training runs in processes of their own: killed and resumed, and one run by several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import klray
from klray.store import Store
from klray.watch.fingerprint import weights_sha256
from tests.training_run import RUN, STEPS, TEXTS, collate_alike, columns, trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


class Kill(transformers.TrainerCallback):
    """The process is gone after a step, as if the machine were."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step == self.step:
            os._exit(9)


def train_in_a_process(folder: str, kill: int) -> None:
    """What the processes of the next tests run."""
    torch.set_num_threads(1)
    callback = klray.KlrayCallback(f"{folder}/store", TEXTS, run=RUN)
    run = trainer(
        Path(folder) / "run", callback, Kill(kill), collator=collate_alike, save_strategy="steps", save_steps=2
    )
    run.train(resume_from_checkpoint=bool(list(Path(folder).glob("run/checkpoint-*"))))
    # a file each: what two processes print can be mixed up within a line
    Path(folder, f"end-{run.args.process_index}").write_text(weights_sha256(run.model))


def python(folder: Path, kill: int = 0, *launcher: str) -> subprocess.CompletedProcess[str]:
    program = folder / "train.py"
    program.write_text(
        f"from tests.test_watch_processes import train_in_a_process\ntrain_in_a_process({str(folder)!r}, {kill})\n"
    )
    root = str(Path(__file__).resolve().parents[1])
    return subprocess.run(
        [sys.executable, *launcher, str(program)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def test_a_killed_run_goes_on_and_scores_no_step_twice(tmp_path: Path) -> None:
    assert python(tmp_path, kill=3).returncode == 9
    store = Store.open(str(tmp_path / "store"))
    before = columns(store)
    assert list(before) == [0, 1, 2, 3]
    resumed = python(tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    after = columns(store)
    assert list(after) == list(range(STEPS + 1))
    assert all(after[step] == commit for step, commit in before.items())  # attempts, times: as they were
    assert "took another way" not in resumed.stderr  # checkpoint-2 leads to the same step 3
    # and the run is that of a run which nothing happened to
    callback = klray.KlrayCallback(str(tmp_path / "whole"), TEXTS, run=RUN)
    trainer(tmp_path / "other", callback, collator=collate_alike).train()
    whole = columns(Store.open(str(tmp_path / "whole")))
    assert [commit.key for commit in whole.values()] == [commit.key for commit in after.values()]


def test_of_several_processes_one_records(tmp_path: Path) -> None:
    run = python(tmp_path, 0, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
                 f"--master-port={free_port()}")  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    ends = {path.name: path.read_text() for path in tmp_path.glob("end-*")}
    assert set(ends) == {"end-0", "end-1"}
    found = columns(Store.open(str(tmp_path / "store")))
    assert list(found) == list(range(STEPS + 1))
    assert set(ends.values()) == {found[STEPS].identity.commit}


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
