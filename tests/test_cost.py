"""What a plan costs: parameters as the hub knows them, equal files once, arithmetic and hours checked by hand."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from jobs.plan import plan
from klray import config as configs
from klray.checkpoints import Checkpoint, RepositorySpec, Selection, resolve
from klray.config import Config, ModelsConfig, PlanConfig, RaySettings, RepositoryConfig, StoreConfig, TextsConfig
from klray.config import measure as measure_configs
from klray.config.models import ModelSource
from klray.errors import KlrayError
from klray.sweep.cost import START_SECONDS, Rates, cost, lens_weights, parameters
from klray.tiny.family import train_family
from klray.tiny.family_recipe import SMALLEST
from klray.tiny.hub_server import HubServer
from tests.hub_faults import hub_of

RUN = "klray/tiny-46k-seed1"
PARAMETERS = 45_536
STEPS = len(SMALLEST.saved_steps)
RATES = Rates(device_tflops=2.0, gigabits=0.5, workers=3, bytes_per_token=4.0, stated="a rate")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """The smallest family; a repository with the files of one of its checkpoints; one whose weights are no tensors."""
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(train_family(SMALLEST), root, dirs_exist_ok=True)
    shutil.copytree(root / RUN / "step40", root / "other/copy/main")
    shutil.copytree(root / RUN / "step40", root / "other/strange/main")
    (root / "other/strange/main/model.safetensors").write_bytes(b"\xff" * 10_000)
    with HubServer(root) as server:
        yield server


def checkpoints(server: HubServer, *specs: RepositorySpec) -> list[Checkpoint]:
    return resolve(hub_of(server), Selection("family", specs))[0]


def test_the_hub_says_how_many_parameters_there_are(server: HubServer) -> None:
    found = checkpoints(server, RepositorySpec(RUN, "step*"))
    assert {each.parameters for each in found} == {PARAMETERS}


def test_parameters_that_nobody_tells_are_guessed_from_16_bit_weights(server: HubServer) -> None:
    (found,) = checkpoints(server, RepositorySpec("other/strange"))
    assert found.parameters is None
    assert parameters(found) == 10_000 // 2
    lines = "\n".join(cost([found], [], 4000, RATES).lines())
    assert "2 x 5,000 parameters, of 1 checkpoint from" in lines


def test_cost_is_the_formula(server: HubServer) -> None:
    found = checkpoints(server, RepositorySpec(RUN, "step*"))
    planned = cost(found, [], text_bytes=8_000_000, rates=RATES)
    flop = 2 * PARAMETERS * STEPS * 2_000_000
    assert planned.flop == flop
    assert planned.device_seconds == pytest.approx(flop / 2e12)
    assert planned.compute_seconds == pytest.approx(flop / 2e12 / 3)
    assert planned.fetch_seconds == pytest.approx(sum(each.bytes for each in found) * 8 / 0.5e9)
    assert planned.wall_seconds == START_SECONDS + planned.compute_seconds > START_SECONDS + planned.fetch_seconds
    assert "starting them 15 s, fetching" in planned.lines()[-1]
    assert cost([], found, text_bytes=8_000_000, rates=RATES).wall_seconds == 0
    assert "the limit is the GPU" in planned.lines()[-1]
    slow = cost(found, [], 8_000_000, dataclasses.replace(RATES, gigabits=0.001))
    assert slow.wall_seconds == START_SECONDS + slow.fetch_seconds
    assert "the limit is the link" in slow.lines()[-1]


def test_workers_beyond_the_checkpoints_do_not_help(server: HubServer) -> None:
    found = checkpoints(server, RepositorySpec(RUN))
    planned = cost(found, [], 8_000_000, dataclasses.replace(RATES, workers=100))
    assert planned.compute_seconds == planned.device_seconds


def test_equal_files_cost_once_and_nothing_if_they_are_there(server: HubServer) -> None:
    run = checkpoints(server, RepositorySpec(RUN, "step*"))
    copy = checkpoints(server, RepositorySpec("other/copy"))
    both = cost([*run, *copy], [], 4000, RATES)
    alone = cost(run, [], 4000, RATES)
    assert (both.checkpoints, both.distinct) == (STEPS + 1, STEPS)
    assert (both.fetch_bytes, both.flop) == (alone.fetch_bytes, alone.flop)
    assert f"of {STEPS} checkpoints; 1 more has" in both.lines()[0]
    there = cost(copy, run, 4000, RATES)
    assert (there.distinct, there.fetch_bytes, there.flop, there.wall_seconds) == (0, 0, 0, 0)


@pytest.mark.parametrize("tuned", [False, True])
def test_a_lens_costs_the_head_for_every_layer_but_the_last(server: HubServer, tuned: bool) -> None:
    run = checkpoints(server, RepositorySpec(RUN, "step*"))
    model = AutoModelForCausalLM.from_pretrained(train_family(SMALLEST) / RUN / "step40")
    n_head = model.lm_head.weight.numel()
    n_translator = model.lm_head.weight.shape[1] ** 2 if tuned else 0
    expected = len(model.base_model.layers) * (n_head + n_translator)
    server.requests.clear()
    lens = lens_weights(hub_of(server), run, tuned=tuned)
    assert lens == {RUN: expected}
    assert server.requests.total() == 1  # config.json, once for the repository
    planned = cost(run, [], 8_000_000, RATES, lens)
    assert planned.flop == 2 * (PARAMETERS + expected) * STEPS * 2_000_000
    assert f"{expected * STEPS:,} weights of the lens) x" in planned.lines()[1]


def test_what_a_lens_costs_is_not_known_of_an_architecture_that_is_not(
    server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "strange"
    shutil.copytree(train_family(SMALLEST) / RUN / "step40", folder)
    (folder / "config.json").write_text('{"model_type": "nobody_knows_it"}')
    found = checkpoints(server, RepositorySpec(RUN), RepositorySpec(str(folder)))
    lens = lens_weights(hub_of(server), found, tuned=False)
    assert lens[str(folder)] is None and lens[RUN]
    assert "what a lens costs is not known" in caplog.text and "nobody_knows_it" in caplog.text
    planned = cost(found, [], 8_000_000, RATES, lens)
    assert planned.lens_weights == lens[RUN]
    assert "lens, none known for 1 checkpoint) x" in planned.lines()[1]


def test_a_checkpoint_that_the_cache_cannot_hold_is_said_before_anything_is_fetched(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_TOKEN", server.token)
    models = [RepositoryConfig(RUN), RepositoryConfig("other/strange")]
    config = Config(models=ModelsConfig(repositories=models), store=StoreConfig(url=str(tmp_path / "store")))
    sizes = {
        each.repository: each.bytes
        for each in checkpoints(server, RepositorySpec(RUN), RepositorySpec("other/strange"))
    }
    config.scoring.cache_gigabytes = (sizes["other/strange"] + 20_000) / 1e9
    assert sizes[RUN] > config.scoring.cache_gigabytes * 1e9
    planned = plan(config)
    out = capsys.readouterr().out
    assert [(each.repository, each.reason) for each in planned.unavailable] == [(RUN, "disk_full")]
    assert "to score    1 checkpoint\n" in out and f"cannot   {RUN}@main  disk_full: it takes" in out
    assert "raise scoring.cache_gigabytes to 0.00" in out


def test_plan_prints_the_cost(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_TOKEN", server.token)
    config = Config(
        models=ModelsConfig(repositories=[RepositoryConfig(RUN, "step*"), RepositoryConfig("other/copy")]),
        texts=TextsConfig(n=8),
        store=StoreConfig(url=str(tmp_path / "store")),
        ray=RaySettings(address="auto", workers=2),
    )
    planned = plan(config)
    out = capsys.readouterr().out
    assert f"to score    {STEPS + 1} checkpoints" in out
    assert f"fetch       {planned.cost.fetch_bytes / 1e9:,.3f} GB of {STEPS} checkpoints; 1 more" in out
    assert "at 26.8 TFLOP/s (40% of an H100's 67" in out
    assert "with 2 workers: starting them 15 s, fetching" in out
    assert not (tmp_path / "store").exists()
    assert "of 49.5% to 123.7% of it (what is usual;" in out and "takes" not in out
    config.plan = PlanConfig(kl=0.05)
    with pytest.raises(KlrayError, match=r"plan\.standard_error=None: set both"):
        plan(config)
    config.plan = PlanConfig(device_tflops=1.5, gigabits=2, bytes_per_token=3, kl=0.05, standard_error=0.005)
    plan(config)
    assert "at 1.5 TFLOP/s (plan.device_tflops)" in (out := capsys.readouterr().out)
    assert "at 2 Gbit/s" in out and "tokens at 3 bytes" in out
    assert "0.05 ± 0.005 takes 196 to 1,225 texts" in out


def test_a_machine_without_gpu_is_planned_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = Config(ray=RaySettings())
    rates = measure_configs.plan_rates(config.plan, config.models, config.scoring, config.ray)
    assert (rates.device, rates.device_tflops) == ("CPU", 0.04)
    assert "of this machine" in rates.stated and "ray=cluster" in rates.stated
    assert "plan.device_tflops=26.8" in rates.stated
    config.plan.device_tflops = 26.8
    rates = measure_configs.plan_rates(config.plan, config.models, config.scoring, config.ray)
    assert (rates.device, rates.device_tflops) == ("GPU", 26.8)


def test_the_embedded_family_is_scored_by_cpu_cores_and_16_bit_by_tensor_cores() -> None:
    config = Config()
    config.scoring.dtype = configs.Dtype.bfloat16
    config.ray.address = "auto"
    rates = measure_configs.plan_rates(config.plan, config.models, config.scoring, config.ray)
    assert (rates.device, rates.device_tflops) == ("GPU", pytest.approx(989 * 0.4))
    config.models.source = configs.ModelSource.embedded
    rates = measure_configs.plan_rates(config.plan, config.models, config.scoring, config.ray)
    assert (rates.device, rates.device_tflops) == ("CPU", 0.04)
    config.plan.gigabits = 0
    with pytest.raises(KlrayError, match=r"plan\.gigabits=0: must be above 0"):
        measure_configs.plan_rates(config.plan, config.models, config.scoring, config.ray)


def test_a_plan_states_its_cores_and_refuses_less_than_one_worker() -> None:
    config = Config(models=ModelsConfig(source=ModelSource.embedded))
    stated = measure_configs.plan_rates(config.plan, config.models, config.scoring, config.ray).stated
    assert stated == "1 CPU core, as measured in float32"
    config.scoring.threads = 2
    stated = measure_configs.plan_rates(config.plan, config.models, config.scoring, config.ray).stated
    assert stated == "2 CPU cores, as measured in float32"
    with pytest.raises(KlrayError, match=r"ray\.workers=0: must be 1 or more"):
        RaySettings(workers=0)
