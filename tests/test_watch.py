"""A model scored while it is trained: the run is not disturbed, every step is there once, whatever happens."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import klray
from klray import watch
from klray.likelihood import loading as models
from klray.likelihood.tokenizer import load_tokenizer
from klray.store import Store
from klray.watch.fingerprint import weights_sha256
from tests import tiny_models
from tests.training_run import RUN, STEPS, TEXTS, columns, draw, trainer, weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def test_a_run_is_the_same_with_and_without_the_callback(tmp_path: Path) -> None:
    alone = trainer(tmp_path / "alone")
    alone.train()
    callback = klray.KlrayCallback(str(tmp_path / "store"), TEXTS, run=RUN)
    watched = trainer(tmp_path / "watched", callback)
    watched.train()
    assert weights(alone.model) == weights(watched.model)
    assert alone.state.log_history[0]["loss"] == next(e["loss"] for e in watched.state.log_history if "loss" in e)
    moments = [each.optimizer.state_dict()["state"] for each in (alone, watched)]
    assert all(torch.equal(moments[0][place]["exp_avg"], moments[1][place]["exp_avg"]) for place in moments[0])
    assert len(columns(Store.open(str(tmp_path / "store")))) == STEPS + 1


def test_columns_are_those_of_the_saved_checkpoints(tmp_path: Path) -> None:
    callback = klray.KlrayCallback(str(tmp_path / "store"), TEXTS, run=RUN, family="fam", size="tiny")
    trainer(tmp_path / "run", callback, save_strategy="steps", save_steps=1, seed=5).train()
    store = Store.open(str(tmp_path / "store"))
    found = columns(store)
    assert list(found) == list(range(STEPS + 1))
    for step, commit in list(found.items())[1:]:
        folder = tmp_path / "run" / f"checkpoint-{step}"
        loaded = models.load(folder)
        expected = klray.log_likelihood(loaded.model, load_tokenizer(folder), TEXTS.texts)
        assert store.read_column(commit)[0].tobytes() == expected.astype(np.float32).tobytes()
        assert commit.identity.commit == weights_sha256(loaded.model)
        assert (commit.identity.repository, commit.identity.dtype) == (RUN, "float32")
        facts = {"revision": f"step{step}", "run": RUN, "step": step, "family": "fam", "size": "tiny", "seed": 5}
        assert facts.items() <= commit.facts.items()
        assert (commit.facts["architecture"], commit.facts["parameters"]) == (loaded.architecture, loaded.parameters)
    store.publish()
    snapshot = klray.open_dataset(store.url)
    assert snapshot["step"].values.tolist() == list(range(STEPS + 1))
    assert set(snapshot["run"].values) == {RUN}
    first, last = (models.load(tmp_path / "run" / f"checkpoint-{step}").model.state_dict() for step in (1, STEPS))
    names = dict(models.load(folder).model.named_parameters())  # tied ones once
    exact = sum(float((first[name] - last[name]).double().square().sum()) for name in names)
    (label,) = set(snapshot["sketch"].values)
    sketches = store.read_sketches(keys := snapshot["key"].values.tolist())
    one, other = sketches[keys[1]], sketches[keys[-1]]
    assert label.startswith("65536-v1-")
    assert float(np.square(one - other, dtype=np.float64).sum()) == pytest.approx(exact, rel=0.02)


def test_a_run_in_mixed_precision_is_scored_in_the_precision_of_its_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = trainer(tmp_path / "alone", bf16=True)
    alone.train()
    callback = klray.KlrayCallback(str(tmp_path / "store"), TEXTS, run=RUN, every=3)
    run = trainer(tmp_path / "run", callback, bf16=True, save_strategy="steps", save_steps=3)
    with caplog.at_level(logging.WARNING, "klray"):
        run.train()
    assert weights(alone.model) == weights(run.model)
    assert caplog.text == ""
    store = Store.open(str(tmp_path / "store"))
    for step, commit in list(columns(store).items())[1:]:
        folder = tmp_path / "run" / f"checkpoint-{step}"
        expected = klray.log_likelihood(models.load(folder).model, load_tokenizer(folder), TEXTS.texts)
        assert store.read_column(commit)[0].tobytes() == expected.astype(np.float32).tobytes()
        assert (commit.identity.dtype, commit.facts["head"]) == ("float32", "tiled")


def test_the_trainer_s_log_says_how_far_the_run_moved(tmp_path: Path) -> None:
    class Reader(transformers.TrainerCallback):
        told: list[float] = []  # noqa: RUF012

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            self.told += [logs["klray/kl"]] if "klray/kl" in logs else []

    callback = klray.KlrayCallback(str(tmp_path / "store"), TEXTS, run=RUN, every=4)
    run = trainer(tmp_path / "run", callback, Reader())
    run.train()
    store = Store.open(str(tmp_path / "store"))
    found = columns(store)
    assert list(found) == [0, 4, STEPS]  # the last step is recorded, too
    rows = np.stack([store.read_column(commit)[0] for commit in found.values()]).astype(float)
    kl = klray.kl_divergence(rows, TEXTS.n_bytes)
    said = {entry["step"]: entry["klray/kl"] for entry in run.state.log_history if "klray/kl" in entry}
    np.testing.assert_allclose([said[4], said[STEPS]], [kl[0, 1], kl[1, 2]], rtol=1e-3)
    assert Reader.told == [said[4], said[STEPS]]
    assert [e["klray/since"] for e in run.state.log_history if "klray/kl" in e] == [0, 4]


class Away(transformers.TrainerCallback):
    """The store's place is taken by something else after one step, and there again after another."""

    def __init__(self, store: Path, gone: int, back: int):
        self.store, self.gone, self.back = store, gone, back

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step == self.gone:
            self.store.rename(self.store.with_suffix(".away"))
            self.store.write_text("no store")
        if state.global_step == self.back:
            self.store.unlink()
            self.store.with_suffix(".away").rename(self.store)


def test_a_store_that_goes_away_and_comes_back_has_every_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = tmp_path / "store"
    run = trainer(tmp_path / "run", klray.KlrayCallback(str(store), TEXTS, run=RUN), Away(store, gone=2, back=4))
    with caplog.at_level(logging.ERROR, "klray"):
        run.train()
    assert run.state.global_step == STEPS
    assert list(columns(Store.open(str(store)))) == list(range(STEPS + 1))
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert errors and all(f"store {store} cannot be written: " in message for message in errors)
    assert f"1 column of {RUN}: kept in memory" in errors[0]


def test_a_store_that_stays_away_costs_columns_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    run = trainer(tmp_path / "run", klray.KlrayCallback(str(store), TEXTS, run=RUN), Away(store, gone=4, back=-1))
    with caplog.at_level(logging.ERROR, "klray"):
        run.train()
    assert run.state.global_step == STEPS
    assert caplog.records[-1].message.endswith(
        f"2 columns of {RUN} are lost: score the run's saved checkpoints (steps 5, 6)"
    )
    store.unlink()
    assert list(columns(Store.open(str(store.with_suffix(".away")).replace("store", "store")))) == [0, 1, 2, 3, 4]


def test_a_step_that_overflows_is_recorded_as_a_failure_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Overflow(transformers.TrainerCallback):
        def on_step_begin(self, _: Any, state: Any, *__: Any, model: Any, **___: Any) -> None:
            if state.global_step == 3:
                with torch.no_grad():
                    model.transformer.ln_f.weight.fill_(float("inf"))

    run = trainer(tmp_path / "run", klray.KlrayCallback(str(tmp_path / "store"), TEXTS, run=RUN), Overflow())
    with caplog.at_level(logging.ERROR, "klray"):
        run.train()
    store = Store.open(str(tmp_path / "store"))
    assert list(columns(store)) == [0, 1, 2, 3]
    assert f"step 4 of {RUN} is not recorded" in caplog.text
    failures = store.failures()
    assert {failure.reason for failure in failures} == {"non_finite"}
    assert {failure.revision for failure in failures} <= {f"step{step}" for step in range(4, STEPS + 1)}


def test_a_run_that_took_another_way_keeps_its_first_columns_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in (1, 2):
        callback = klray.KlrayCallback(str(tmp_path / "store"), TEXTS, run=RUN)
        with caplog.at_level(logging.WARNING, "klray"):
            trainer(tmp_path / str(seed), callback, seed=seed).train()
        if seed == 1:
            first = columns(Store.open(str(tmp_path / "store")))
            assert "took another way" not in caplog.text
    assert caplog.text.count(f"of {RUN} is in the store with other parameters") == 1
    assert columns(Store.open(str(tmp_path / "store"))) == first


def test_any_loop_can_record_and_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    store = Store.create(str(tmp_path / "store"), TEXTS)
    tokenizer = tiny_models.tokenizer_for("gpt2")

    def loop(recording: bool) -> dict[str, bytes]:
        model = tiny_models.tiny_model("gpt2").train()
        model.transformer.h[0].eval()  # a frozen block stays as it is
        model.base_model.register_forward_pre_hook(draw)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        for step in range(4):
            ids = torch.randint(2, 300, (4, 16)) + random.randrange(2) + int(np.random.randint(2))
            model(input_ids=ids, labels=ids).loss.backward()
            if recording:
                gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
                recorded = watch.record(model, tokenizer, store, TEXTS, run=RUN, step=step)
                again = watch.record(model, tokenizer, store.url, TEXTS, run=watch.Run(RUN), step=step)
                assert (recorded.new, again.new, again.log_likelihood) == (True, False, None)
                assert recorded.key == again.key
                left = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
                assert all(map(torch.equal, gradients, left))
                assert model.training and not model.transformer.h[0].training and model.transformer.h[1].training
            optimizer.step()
            optimizer.zero_grad()
        return weights(model)

    assert loop(recording=False) == loop(recording=True)
    assert list(columns(store)) == [0, 1, 2, 3]


def test_the_commit_of_a_model_follows_from_its_numbers_alone() -> None:
    model = tiny_models.tiny_model("gpt2")
    name = weights_sha256(model)
    assert len(name) == 64 and name == weights_sha256(tiny_models.tiny_model("gpt2").train())
    assert name != weights_sha256(tiny_models.tiny_model("gpt2", dtype=torch.bfloat16))
    with torch.no_grad():
        weight = model.transformer.h[1].mlp.c_fc.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))  # its last bit
    assert name != weights_sha256(model)
