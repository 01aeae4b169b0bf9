"""Training runs in processes of their own: killed and resumed, and one run by several processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import klray
from klray.store import Store
from klray.watch.fingerprint import weights_sha256
from tests.faults.forked import CONTEXT, forked_from
from tests.training_run import RUN, STEPS, TEXTS, collate_alike, columns, trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


class Kill(transformers.TrainerCallback):
    """The process is gone after a step, as if the machine were."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step == self.step:
            os._exit(9)


def train_in_a_process(folder: str, kill: int, environment: dict[str, str]) -> None:
    """What the processes of the next tests do."""
    os.environ.update(environment, CUDA_VISIBLE_DEVICES="")
    with Path(folder, "said").open("a") as said:
        os.dup2(said.fileno(), 2)
    torch.set_num_threads(1)
    callback = klray.KlrayCallback(f"{folder}/store", TEXTS, run=RUN)
    run = trainer(
        Path(folder) / "run", callback, Kill(kill), collator=collate_alike, save_strategy="steps", save_steps=2
    )
    run.train(resume_from_checkpoint=bool(list(Path(folder).glob("run/checkpoint-*"))))
    # a file each: what two processes print can be mixed up within a line
    Path(folder, f"end-{run.args.process_index}").write_text(weights_sha256(run.model))


@pytest.fixture(autouse=True, scope="module")
def _server() -> Iterator[None]:
    with forked_from("tests.test_watch_processes"):
        yield


def trained(folder: Path, kill: int = 0, *ranks: dict[str, str]) -> set[int | None]:
    """How the processes ended: one, or as many as there are ranks."""
    processes = [CONTEXT.Process(target=train_in_a_process, args=(str(folder), kill, rank)) for rank in ranks or ({},)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return {process.exitcode for process in processes}


def test_a_killed_run_goes_on_and_scores_no_step_twice(tmp_path: Path) -> None:
    said = tmp_path / "said"
    assert trained(tmp_path, kill=3) == {9}, said.read_text()
    store = Store.open(str(tmp_path / "store"))
    before = columns(store)
    assert list(before) == [0, 1, 2, 3]
    assert trained(tmp_path) == {0}, said.read_text()
    after = columns(store)
    assert list(after) == list(range(STEPS + 1))
    assert all(after[step] == commit for step, commit in before.items())  # attempts, times: as they were
    assert "took another way" not in said.read_text()  # checkpoint-2 leads to the same step 3
    # and the run is that of a run which nothing happened to
    callback = klray.KlrayCallback(str(tmp_path / "whole"), TEXTS, run=RUN)
    trainer(tmp_path / "other", callback, collator=collate_alike).train()
    whole = columns(Store.open(str(tmp_path / "whole")))
    assert [commit.key for commit in whole.values()] == [commit.key for commit in after.values()]


def test_of_several_processes_one_records(tmp_path: Path) -> None:
    """With the variables that torchrun sets."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    assert trained(tmp_path, 0, *ranks) == {0}, (tmp_path / "said").read_text()[-3000:]
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
