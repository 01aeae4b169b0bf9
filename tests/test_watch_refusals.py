"""What klray.watch refuses: models that are not here whole, steps and facts that no snapshot could hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import klray
from klray import watch
from klray.errors import CheckpointError, KlrayError, StoreError
from klray.store import Store
from klray.texts import TextSet
from tests import tiny_models
from tests.stores import TEXTS as OTHER_TEXTS
from tests.training_run import RUN, TEXTS, trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("way", ["fully_shard", "FullyShardedDataParallel", "ZeRO-3"])
def test_sharded_parameters_are_refused_before_anybody_waits_for_them(tmp_path: Path, way: str) -> None:
    """One process that is a group of its own. The parameters of fully_shard are DTensors; of DeepSpeed, which is not
    here, there is only its mark on a parameter.
    """
    from torch.distributed import fsdp

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        model = tiny_models.tiny_model("gpt2")
        if way == "fully_shard":
            fsdp.fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
        elif way == "ZeRO-3":
            next(model.parameters()).ds_id = 0
        else:
            model = fsdp.FullyShardedDataParallel(model, device_id=torch.device("cpu"))
        with pytest.raises(CheckpointError, match=r"is not here whole"):
            watch.record(model, tiny_models.tokenizer_for("gpt2"), str(tmp_path / "store"), TEXTS, run=RUN, step=0)
    finally:
        torch.distributed.destroy_process_group()


def test_what_is_wrong_from_the_start_is_said_before_the_first_step(tmp_path: Path) -> None:
    store = str(tmp_path / "store")

    def refusal(callback: Any, error: type[Exception], words: str, **changes: Any) -> None:
        run = trainer(tmp_path / "run", callback)
        for name, value in changes.items():
            setattr(run, name, value)
        with pytest.raises(error, match=words):
            run.train()
        assert run.state.global_step == 0

    long = TextSet("long", ("word " * 2000,), ("all",))
    refusal(
        klray.KlrayCallback(f"{store}-long", long, run=RUN), CheckpointError, "tokens and the model's context holds"
    )
    Store.create(store, TEXTS)
    refusal(klray.KlrayCallback(store, OTHER_TEXTS, run=RUN), StoreError, "text set")
    run = trainer(tmp_path / "run", klray.KlrayCallback(store, TEXTS, run=RUN))
    run.callback_handler.processing_class = None
    with pytest.raises(KlrayError, match=r"no tokenizer, .*Trainer\(processing_class="):
        run.train()
    with pytest.raises(KlrayError, match=r"every=0: .*1 or more"):
        klray.KlrayCallback(store, TEXTS, run=RUN, every=0)
    with pytest.raises(KlrayError, match="a run needs a name"):
        klray.KlrayCallback(store, TEXTS, run=" ")


def test_a_model_that_is_not_here_whole_is_refused(tmp_path: Path) -> None:
    model = tiny_models.tiny_model("gpt2").to("meta")
    store = str(tmp_path / "store")
    with pytest.raises(CheckpointError, match=r"not here whole: .*\(FSDP, DeepSpeed"):
        watch.record(model, tiny_models.tokenizer_for("gpt2"), store, TEXTS, run=RUN, step=0)


@pytest.mark.parametrize("step", ["8", 7.0, None, -1, 2**63, torch.ones(2)])
def test_a_step_that_a_snapshot_could_not_hold_is_refused(tmp_path: Path, step: Any) -> None:
    model, tokenizer = tiny_models.tiny_model("gpt2"), tiny_models.tokenizer_for("gpt2")
    with pytest.raises(KlrayError, match="step is a whole number of 0 or more"):
        klray.watch.record(model, tokenizer, str(tmp_path), TEXTS, run=RUN, step=step)
    assert not list(tmp_path.iterdir())


def test_a_list_of_strings_is_no_text_set(tmp_path: Path) -> None:
    model, tokenizer = tiny_models.tiny_model("gpt2"), tiny_models.tokenizer_for("gpt2")
    with pytest.raises(KlrayError, match=r"text_set is a list: .*klray\.texts\.TextSet"):
        klray.watch.record(model, tokenizer, str(tmp_path), ["a text"], run=RUN, step=1)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("facts", [{"seed": "x"}, {"seed": 1.5}, {"size": 70}, {"family": None}, {"name": None}])
def test_facts_of_a_run_that_a_snapshot_could_not_hold_are_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(KlrayError, match=f"^{'run' if 'name' in facts else next(iter(facts))}="):
        watch.Run(**{"name": RUN, **facts})


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path: Path) -> None:
    model, tokenizer = tiny_models.tiny_model("gpt2"), tiny_models.tokenizer_for("gpt2")
    for seed, step in enumerate((np.int64(5), torch.tensor(6))):
        run = watch.Run(f"{RUN}-{seed}", seed=np.int64(seed))  # type: ignore[arg-type]
        klray.watch.record(model, tokenizer, str(tmp_path / "store"), TEXTS, run=run, step=step)  # type: ignore[arg-type]
    manifest, _ = Store.open(str(tmp_path / "store")).publish()
    dataset = klray.open_dataset(str(tmp_path / "store"))
    assert manifest.n_models == 2
    assert sorted(zip(dataset["step"].values.tolist(), dataset["seed"].values.tolist(), strict=True)) == [
        (5, 0),
        (6, 1),
    ]
