"""Stages and branches of a run are runs of their own, and a step of a run is never two checkpoints."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from klray.analysis.analyze import analyze
from klray.analysis.kl.all_pairs import kl_divergence
from klray.analysis.recipe import Exclusion, Recipe, suspicions
from klray.analysis.relatives import finals
from klray.analysis.runs import contested, run_names, runs, single_models, trajectories
from klray.analysis.scale.choosing_pairs import Choice, setting_pairs
from klray.analysis.scale.compared_models import Models
from klray.checkpoints import Checkpoint, Facts, RepositorySpec, resolve, step_of
from klray.measure.weight_distances import standing_checkpoints
from klray.report.sections.section_runs import set_apart_section
from klray.store import Store
from klray.texts import TextSet
from klray.tiny.hub_server import HubServer
from klray.words.revisions import Place, place_of, run_of
from tests.hub_faults import hub_of, select, write_model
from tests.scale_data import DEFAULTS, fill_store

B, N_TEXTS, REPOSITORY = 10**9, 40, "lab/run"
TEXTS = TextSet("test", tuple("a text of some length " * 20 for _ in range(N_TEXTS)), ("prose",) * N_TEXTS)


@pytest.mark.parametrize(
    ("revision", "place"),
    [
        ("step1000", Place("", 1000)),
        ("step0", Place("", 0)),
        ("global_step64", Place("", 64)),
        ("step-125000", Place("", 125_000)),
        ("checkpoint-500", Place("", 500)),
        ("checkpoint-3000step", Place("", 3000)),
        ("ckpt_100", Place("", 100)),
        ("iter_0001000", Place("", 1000)),
        ("Step1000", Place("", 1000)),
        ("step1000-tokens4B", Place("", 1000, 4 * B)),
        ("step1000-tokens2.5T", Place("", 1000, 2500 * B)),
        ("step-001000-2BT", Place("", 1000, 2 * B)),
        ("step1000-300M-tokens", Place("", 1000, 300_000_000)),
        ("stage1-step1000-tokens3B", Place("stage1", 1000, 3 * B)),
        ("stage2-ingredient3-step1000-tokens5B", Place("stage2-ingredient3", 1000, 5 * B)),
        ("stage1-step66000", Place("stage1", 66_000)),
        ("stage1-step-40000", Place("stage1", 40_000)),
        ("lc-4k-to-32k-step-20000", Place("lc-4k-to-32k", 20_000)),
        ("it-step-1000", Place("it", 1000)),
        ("CrystalCoder_phase1_checkpoint_055500", Place("CrystalCoder_phase1", 55_500)),
        ("anneal_iter_0001000", Place("anneal", 1000)),
        ("step1250-seed-large-aux-2", Place("seed-large-aux-2", 1250)),
        ("step1000-tokens4B-cooldown", Place("cooldown", 1000, 4 * B)),
        ("step1000_restart2", Place("restart2", 1000)),
        ("step1000-4B", Place("", 1000, 4 * B)),
        ("stage1-step-1000_2.5t", Place("stage1", 1000, 2500 * B)),
        ("step1000-4k", Place("4k", 1000)),
        ("step1000-160M", Place("160M", 1000)),
        ("7B-step1000", Place("7B", 1000)),
        ("step1000-4B-cooldown", Place("4B-cooldown", 1000)),
        ("step1000-tokens4B-7B", Place("7B", 1000, 4 * B)),
        ("restart/step100", Place("restart", 100)),
        *((name, Place()) for name in ("main", "it-SFT", "deeper-starling", "step10k", "ckpt_1.5T", "v1.0", "")),
        *((name, Place()) for name in (f"step{10**20}", "step" + "9" * 5000, "stage1-stepx")),
        ("step5-tokens" + "9" * 400 + "T", Place("", 5)),
    ],
)
def test_a_name_says_branch_step_and_tokens(revision: str, place: Place) -> None:
    assert place_of(revision) == place
    assert step_of(revision) == place.step
    assert run_of("lab/a", revision) == f"lab/a@{place.branch}".removesuffix("@")


def test_checkpoints_know_their_stage_and_each_stage_is_strided(tmp_path: Path) -> None:
    names = [f"stage1-step{step}-tokens{step}B" for step in (1, 2, 3, 4)]
    names += [f"stage2-ingredient{number}-step{step}-tokens{step}B" for number in (1, 2) for step in (1, 2, 3)]
    for seed, name in enumerate([*names, "main"]):
        write_model(tmp_path / REPOSITORY / name, seed=seed, weight_bytes=1000)
    with HubServer(tmp_path) as server:
        every, _ = resolve(hub_of(server), select(RepositorySpec(REPOSITORY, ["main", "stage*"])))
        few, _ = resolve(hub_of(server), select(RepositorySpec(REPOSITORY, "stage*"), stride=2))
    assert [each.revision for each in every] == [*names, "main"]
    assert [(each.facts.run, each.facts.step, each.facts.trained_tokens) for each in every[3:6]] == [
        (f"{REPOSITORY}@stage1", 4, 4 * B),
        *((f"{REPOSITORY}@stage2-ingredient1", step, step * B) for step in (1, 2)),
    ]
    assert [(each.facts.run, each.facts.step) for each in every[-1:]] == [(REPOSITORY, None)]
    kept = ["stage1-step1", "stage1-step3", "stage1-step4"]
    kept += [f"stage2-ingredient{number}-step{step}" for number in (1, 2) for step in (1, 3)]
    assert [each.revision.rpartition("-tokens")[0] for each in few] == kept


def snapshot(place: Path, revisions: Sequence[tuple[str, str]], **more: Sequence[object]) -> xr.Dataset:
    """Columns of (run, revision) of one repository as a store has them, each some way from all others."""
    rng = np.random.default_rng(0)
    rows = -rng.gamma(4.0, 250.0, N_TEXTS) + rng.normal(size=(len(revisions), N_TEXTS)) * 5
    facts = {**DEFAULTS, "repository": REPOSITORY, "size": "1b", "family": "lab"}
    coords = {name: ("model", [value] * len(revisions)) for name, value in facts.items()}
    coords |= {
        "run": ("model", [run for run, _ in revisions]),
        "revision": ("model", [revision for _, revision in revisions]),
        "step": ("model", [-1 if (step := step_of(each)) is None else step for _, each in revisions]),
        "commit": ("model", [f"{number:040x}" for number in range(len(revisions))]),
        **{name: ("model", list(values)) for name, values in more.items()},
    }
    data = xr.Dataset({"log_likelihood": (("model", "text"), rows.astype(np.float32))}, coords=coords)
    store = Store.create(str(place / "store"), TEXTS)
    fill_store(store, data)
    return store.dataset().load()


STAGES = [
    *(("stage1", step) for step in (100, 200, 300, 400)),
    *(("stage2-ingredient1", step) for step in (100, 300)),
    *(("stage2-ingredient2", step) for step in (150, 300)),
]


@pytest.mark.parametrize("run", ["its own", "as columns had it before branches were runs"])
def test_every_part_of_an_analysis_keeps_stages_apart(tmp_path: Path, run: str) -> None:
    names = [f"{branch}-step{step}-tokens1B" for branch, step in STAGES]
    dataset = snapshot(
        tmp_path, [(run_of(REPOSITORY, each) if run == "its own" else REPOSITORY, each) for each in names]
    )
    result = analyze(dataset, window=3, min_step=100, tsne=False, outlier_fraction=0, exclude=()).load()
    found = trajectories(result)
    own = {each.name: dataset.revision.values[each.models].tolist() for each in found}
    assert own == {
        f"{REPOSITORY}@{branch}": [each for each in names if each.startswith(branch)]
        for branch in ("stage1", "stage2-ingredient1", "stage2-ingredient2")
    }
    assert not any(len(each.superseded) for each in found)
    where = {str(each): number for number, each in enumerate(dataset.revision.values)}
    one, other = (where[f"stage1-step{step}-tokens1B"] for step in (300, 400))
    values = Recipe.from_json(result.attrs["recipe"]).apply(dataset)
    kl = kl_divergence(values.values, values["text_bytes"].values)
    assert result["consecutive_kl"].values[other] == pytest.approx(kl[one, other])
    first = where["stage2-ingredient2-step150-tokens1B"]
    assert (result["previous_step"].values[first], np.isnan(result["consecutive_kl"].values[first])) == (-1, True)
    models = Models.of(dataset)
    early, later = (setting_pairs(models, Choice(min_step=0, spacing=100))[name] for name in ("early", "later"))
    paired = [[names.index(f"stage1-step{step}-tokens1B") for step in steps] for steps in ((100, 200), (300, 400))]
    assert [[names.index(str(dataset.revision.values[at])) for at in pair] for pair in (*early, *later)] == paired
    assert finals(dataset, models.plain) == {}  # which of its branches ends it, nobody knows
    stepped = [Checkpoint(REPOSITORY, each, f"{n:040x}", (), Facts(run=run_of(REPOSITORY, each), step=step_of(each)))
               for n, each in enumerate(names)]  # fmt: skip
    weighed = standing_checkpoints(stepped, dataset, np.zeros(len(names), bool))
    assert [[each.revision for each in checkpoints] for checkpoints in weighed] == list(own.values())


def test_sizes_are_compared_at_the_last_step_of_the_same_stage(tmp_path: Path) -> None:
    names = ["stage1-step100", "stage1-step200", "stage2-step50", "stage2-step100"] * 2
    repositories = ["lab/small"] * 4 + ["lab/large"] * 4
    dataset = snapshot(
        tmp_path,
        [(run_of(of, each), each) for of, each in zip(repositories, names, strict=True)],
        repository=repositories,
        size=["1b"] * 4 + ["7b"] * 4,
    )
    pairs = setting_pairs(Models.of(dataset))["size"]
    revisions = dataset.revision.values
    assert sorted((revisions[one], revisions[other]) for one, other in pairs) == [
        ("stage1-step200", "stage1-step200"),
        ("stage2-step100", "stage2-step100"),
    ]


TWICE = ["step100", "step200-tokens2B", "step200-tokens4B", "step300", "global_step300", "step400", "step500"]
TWICE += ["step600-1B", "step600-7B"]  # sizes of models, and no tokens


def test_two_checkpoints_at_one_step_are_no_step_of_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = snapshot(tmp_path, [(REPOSITORY, each) for each in TWICE])
    with caplog.at_level(logging.WARNING, "klray"):
        result = analyze(dataset, window=3, min_step=100, tsne=False, outlier_fraction=0, exclude=()).load()
    (run,) = trajectories(result)
    assert run.steps.tolist() == [100, 400, 500]
    assert len(run.superseded) == 0
    assert single_models(result, [run]).size == 6
    claims = json.loads(result.attrs["contested"])
    assert claims == contested(dataset)
    assert {name.partition("@")[2] for name in claims} == {*TWICE[1:5], *TWICE[7:]}
    assert "step 300 of lab/run is global_step300, too" in claims[f"{REPOSITORY}@step300"]
    assert "in no run: 6 models" in caplog.text
    section = set_apart_section(result)
    assert section is not None and len(section.tables[0].rows) == 6
    stepped = [Checkpoint(REPOSITORY, each, f"{n:040x}", (), Facts(run=REPOSITORY, step=step_of(each)))
               for n, each in enumerate(TWICE)]  # fmt: skip
    (weighed,) = standing_checkpoints(stepped, dataset, np.zeros(len(TWICE), bool))
    assert [each.facts.step for each in weighed] == [100, 400, 500]
    assert suspicions(stepped) == claims  # before anything is scored
    # Whoever knows which one belongs to the run says so.
    out = [Exclusion("*@global_step300"), Exclusion("*-tokens4B"), Exclusion("*-7B")]
    told = analyze(dataset, window=3, min_step=100, tsne=False, outlier_fraction=0, exclude=out).load()
    assert [each.steps.tolist() for each in trajectories(told)] == [[100, 200, 300, 400, 500, 600]]
    assert told.attrs["contested"] == "{}"


def test_a_revision_that_moved_is_still_one_checkpoint_the_last(tmp_path: Path) -> None:
    dataset = snapshot(tmp_path, [(REPOSITORY, each) for each in ("step1", "step2", "step2")])
    (run,) = runs(dataset)
    assert run.steps.tolist() == [1, 2]
    assert (len(run.superseded), contested(dataset)) == (1, {})


def test_a_run_that_was_named_by_its_trainer_keeps_its_name(tmp_path: Path) -> None:
    dataset = snapshot(tmp_path, [("mine", "stage1-step1"), ("mine", "stage1-step2")])
    assert run_names(dataset).tolist() == ["mine", "mine"]
    (run,) = runs(dataset)
    assert (run.name, run.branch, run.steps.tolist()) == ("mine", "", [1, 2])
