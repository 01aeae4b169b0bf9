"""Files of weights of another step: found by their hashes, said before a download, left out and reported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.analyze import analyze
from jobs.plan import plan
from jobs.report import report
from klray.analysis.recipe import MISPLACED, Recipe, misplaced, suspicions
from klray.checkpoints import RepositorySpec, resolve, step_of
from klray.config import Config, ModelsConfig, RepositoryConfig, StoreConfig, TextsConfig
from klray.tiny.family import train_family
from klray.tiny.family_recipe import SMALLEST
from klray.tiny.hub_server import HubServer
from tests.hub_faults import hub_of, select, write_run
from tests.snapshot_data import snapshot
from tests.test_anomalies import REPOSITORIES, changed, scored

RUN = "tiny/run"


def hashes(*files: Sequence[str]) -> list[tuple[str, int | None, Sequence[str]]]:
    return [(RUN, step, each) for step, each in enumerate(files)]


SOUND = [(f"a{step}", f"b{step}", f"c{step}") for step in range(10)]


def test_a_sound_run_and_files_that_never_change_say_nothing() -> None:
    assert misplaced(hashes(*SOUND)) == {}
    assert misplaced(hashes(*((first, "frozen") for first, *_ in SOUND))) == {}
    assert misplaced(hashes(("a", "b"), ("a", "b"), ("c", "d"))) == {}  # two of three: nothing tells
    assert misplaced([(RUN, None, ("a",)), *hashes(*SOUND), (RUN, None, SOUND[9])]) == {}  # main is the last step
    assert misplaced([*hashes(*SOUND), *(("other/run", step, each) for _, step, each in hashes(*SOUND))]) == {}


def test_a_file_of_a_later_step_is_found_in_the_earlier_ones() -> None:
    swapped = list(SOUND)
    swapped[4] = ("a9", "b4", "c4")
    swapped[6] = ("a9", "b6", "c6")
    found = misplaced(hashes(*swapped))
    assert found == {
        (RUN, 4): f"{MISPLACED}1 of 3 files are byte for byte those of step 9, 6",
        (RUN, 6): f"{MISPLACED}1 of 3 files are byte for byte those of step 9",
    }


def test_a_checkpoint_that_was_uploaded_under_several_steps_counts_once() -> None:
    swapped = [*SOUND[:2], SOUND[8], *SOUND[3:5], SOUND[8], *SOUND[6:]]
    assert misplaced(hashes(*swapped)).keys() == {(RUN, 2), (RUN, 5)}


def test_of_steps_that_are_equal_the_first_of_a_run_stands_and_no_number_of_them_is_frozen() -> None:
    """An update of rate 0 changes nothing; a branch that nobody filled has the files of another."""
    whole = f"{MISPLACED}3 of 3 files are byte for byte those of"
    began = [SOUND[0], SOUND[0], SOUND[0], *SOUND[3:]]
    assert misplaced(hashes(*began)) == {(RUN, 1): f"{whole} step 2, 0", (RUN, 2): f"{whole} step 1, 0"}
    unfilled = [SOUND[0], SOUND[4], SOUND[4], SOUND[4], SOUND[4]]
    assert misplaced(hashes(*unfilled)).keys() == {(RUN, 1), (RUN, 2), (RUN, 3)}
    assert misplaced(hashes(*[SOUND[0]] * 5)).keys() == {(RUN, step) for step in range(1, 5)}


def test_a_file_of_main_or_of_a_step_that_is_not_here_is_found_too() -> None:
    swapped = [*SOUND[:2], ("a", "b2", "c2"), *SOUND[3:]]
    main = (RUN, "main a b c")
    assert misplaced(hashes(*swapped), [main]) == {
        (RUN, 2): f"{MISPLACED}1 of 3 files are byte for byte those of main",
    }
    (why,) = misplaced(hashes(*swapped), [main, main, (RUN, "step20 a b20 c20"), (RUN, "step1 a b1 c1")]).values()
    assert why.endswith("those of main and step 20")
    for told in ("main a b2 c2", "main a9 b2 c9", "main", ""):
        assert misplaced(hashes(*swapped), [(RUN, told)]) == {}, "it is a step, or mixed itself"
    assert misplaced(hashes(*swapped), [("other/run", "main a b c")]) == {}
    assert misplaced(hashes(*((first, "frozen") for first, *_ in SOUND)), [(RUN, "main a frozen")]) == {}
    assert misplaced(hashes(*swapped[1:3]), [main]) == {}, "two steps and main: nothing tells"


def test_a_hub_is_asked_no_more_for_what_main_and_steps_known_before_share(tmp_path: Path) -> None:
    root, first = write_run(tmp_path / "hub", 6), "model-00001-of-00002.safetensors"
    steps = [root / RUN / f"step{step}" for step in range(6)]
    for number, folder in enumerate(steps):
        save_file({name: torch.full((4,), number) for name in ("embed_in", "head")}, folder / "model.safetensors")
        in_shards(folder)
    main = shutil.copytree(steps[5], root / RUN / "main")  # made of the last step
    save_file({"embed_in": torch.zeros(8)}, main / first)
    shutil.copyfile(main / first, steps[1] / first)
    shutil.copyfile(steps[4] / first, steps[2] / first)
    asked = select(RepositorySpec(RUN, ["step0", "step1", "step2", "step3"]))
    with HubServer(root) as server:
        hub, kept = hub_of(server), tmp_path / "kept"
        checkpoints, _ = resolve(hub, asked, kept)
        assert server.requests["refs"] == 1 and server.requests["info"] == 1 + 4
        of_main = f"{MISPLACED}1 of 2 files are byte for byte those of main"
        assert suspicions(checkpoints) == {f"{RUN}@step1": of_main}
        resolve(hub, select(RepositorySpec(RUN, ["step4"])), kept)
        before = server.requests["info"]
        checkpoints, _ = resolve(hub, asked, kept)
        assert server.requests["info"] == before
        found = suspicions(checkpoints)
        assert found == {f"{RUN}@step1": of_main, f"{RUN}@step2": of_main.replace("main", "step 4")}
        every, _ = resolve(hub, select(RepositorySpec(RUN, "step*")), kept)
        del found[f"{RUN}@step1"]  # main has the files of step 1 and of step 5: which of the two is mixed?
        assert suspicions(every) == found


def test_a_plan_tells_it_from_what_a_hub_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_run(tmp_path, 5)
    weights = "model.safetensors"
    (root / RUN / "step1/README.md").write_text("another commit")
    (root / RUN / "step1" / weights).write_bytes((root / RUN / "step3" / weights).read_bytes())
    with HubServer(root) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", server.token)
        models = ModelsConfig(repositories=[RepositoryConfig(RUN, "step*")])
        plan(Config(models=models, texts=TextsConfig(n=8), store=StoreConfig(url=str(tmp_path / "store"))))
        assert server.requests["resolve GET"] == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  suspect")]
    assert f"{RUN}@step1  {MISPLACED}1 of 1 files" in line and line.endswith("analyses leave it out")


def test_a_recipe_leaves_out_what_is_misplaced_unless_told_otherwise() -> None:
    data = snapshot(runs=("org/a",), singles=2)
    files = np.array([f"a{n} b{n}" for n in range(data.sizes["model"])], dtype=np.dtypes.StringDType())
    by_step = [int(place) for place in np.argsort(data["step"].values) if data["step"].values[place] >= 0]
    files[by_step[7]] = f"a{by_step[12]} b"
    told = np.full(len(files), "", dtype=np.dtypes.StringDType())
    told[by_step[4]] = f"main {files[by_step[4]].split()[0]} c"
    data = data.assign_coords(weight_files=("model", files), files_elsewhere=("model", told))
    recipe = Recipe.fit(data)
    left_out = [str(label) for label, why in zip(data["model"].values, recipe.reasons(data), strict=True) if why]
    assert sorted(left_out) == sorted(str(data["model"].values[by_step[n]]) for n in (4, 7))
    assert recipe.excluded[-1].reason.startswith(MISPLACED)
    assert not any(Recipe.fit(data, exclude_misplaced=False).reasons(data))


def in_shards(folder: Path) -> None:
    """The weights of a checkpoint in two files, as Pythia's: what comes first, and the rest."""
    tensors = load_file(folder / "model.safetensors")
    first = {name for name in tensors if "embed_in" in name or "layers.0." in name}
    places = {name: f"model-0000{1 if name in first else 2}-of-00002.safetensors" for name in tensors}
    for file in set(places.values()):
        part = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.slow
def test_one_swapped_file_is_planned_scored_excluded_reported_and_found_by_its_spike(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(train_family(SMALLEST), tmp_path / "hub")
    run = tmp_path / "hub" / REPOSITORIES[0]
    steps = sorted((each for each in run.iterdir() if each.is_dir()), key=lambda each: step_of(each.name) or 0)
    for each in steps:
        in_shards(each)
    shutil.copyfile(steps[-1] / "model-00001-of-00002.safetensors", run / "step2/model-00001-of-00002.safetensors")
    main = shutil.copytree(steps[-3], run / "main")  # which is not asked for, and no step but for its second file
    save_file({"other": torch.zeros(1)}, main / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    labels = [f"{REPOSITORIES[0]}@{name}" for name in ("step2", steps[-3].name)]
    label = labels[0]

    with HubServer(tmp_path / "hub") as server:
        checkpoints, _ = resolve(hub_of(server), select(RepositorySpec(REPOSITORIES[0], "step*")))
        assert list(suspicions(checkpoints)) == labels

    config = scored(tmp_path / "hub", tmp_path, *(RepositorySpec(name, ["step*"]) for name in REPOSITORIES))
    result = analyze(config)
    reasons = json.loads(result.attrs["excluded_reasons"])
    assert list(reasons) == labels
    for name, where in zip(labels, ("step", "main"), strict=True):
        assert reasons[name].startswith(f"{MISPLACED}1 of 2 files are byte for byte those of {where}")
    page = report(config).read_text("utf-8")
    assert MISPLACED in page

    kept = analyze(changed(config, exclude_misplaced=False, name="kept"))
    assert [each["model"] for each in json.loads(kept.attrs["anomalies"])] == [label]
    assert list(json.loads(kept.attrs["misplaced"])) == labels
    assert f"{label} is kept, with {MISPLACED}" in caplog.text
