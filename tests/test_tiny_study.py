"""The study's family on a small scale: children of their parents' weights, means, dense steps, equal bytes again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

import conf
from klray.checkpoints import RepositorySpec, Selection, resolve
from klray.errors import KlrayError
from klray.texts import TextSet
from klray.tiny.family import family_root, train_family
from klray.tiny.family_recipe import (
    DEFAULT,
    RECIPE_VERSION,
    Child,
    Dense,
    FamilyRecipe,
    FamilyRun,
    Merge,
    training_documents,
)
from klray.tiny.hub_server import HubServer
from klray.tiny.serving import RECIPES
from klray.tiny.study_recipe import STUDY
from klray.tiny.training import draw_blocks, learning_rates
from tests.hub_faults import hub_of
from tests.study_data import CODE, GRANDCHILD, LAYERED, MERGED, PARENT, PROSE, SCALED, SEED2, STILL

DENSE = [0, 1, 2, 3, 4, 5, *range(6, 25, 2)]
CHILDREN = {child.repository: child for child in SCALED.children}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def root(study_family: Path) -> Path:
    return family_root(SCALED, study_family)


def weights_of(root: Path, repository: str) -> Path:
    return root / repository / SCALED.last_revision(repository) / "model.safetensors"


def first_loss(root: Path, repository: str) -> float:
    complete = json.loads((root / repository / "complete.json").read_text())
    return float(complete["losses_nats_per_token"][0])


def test_revisions_and_cards_are_those_of_a_hub(root: Path) -> None:
    revisions = {
        made.repository: {path.name for path in (root / made.repository).iterdir() if path.is_dir()}
        for made in SCALED.all
    }
    assert revisions == {
        PARENT: {f"step{step}" for step in DENSE},
        **{name: {f"step{step}" for step in (0, 1, 2, 4, 8, 12, 16, 20, 24)} for name in (SEED2, LAYERED)},
        **{name: {"main"} for name in (PROSE, CODE, STILL, GRANDCHILD, MERGED)},
    }
    cards = {made.repository: json.loads((root / made.repository / "repo.json").read_text()) for made in SCALED.all}
    assert cards[PARENT] == cards[SEED2] == cards[LAYERED] == {}
    assert cards[PROSE] == cards[CODE] == {"base_model": PARENT}
    assert cards[GRANDCHILD] == {"base_model": PROSE}
    assert cards[MERGED] == {"base_model": [PROSE, CODE]}


@pytest.mark.parametrize("repository", [PROSE, CODE, GRANDCHILD])
def test_first_loss_of_a_child_is_its_parents_on_the_childs_domain(root: Path, repository: str) -> None:
    child = CHILDREN[repository]
    stream = np.load(root.parent / "texts" / f"{child.domains[0]}.npy")
    tokens = draw_blocks([stream], SCALED.batch_blocks, SCALED.block_tokens, np.random.default_rng(child.seed))
    model = AutoModelForCausalLM.from_pretrained(weights_of(root, child.parent).parent)
    with torch.no_grad():
        log_probabilities = model(tokens[:, :-1]).logits.double().log_softmax(-1)
    loss = -log_probabilities.gather(-1, tokens[:, 1:, None]).mean()
    assert first_loss(root, repository) == pytest.approx(float(loss), rel=1e-5)


def test_a_child_that_learns_nothing_is_its_parent_and_the_others_are_not(root: Path) -> None:
    parent = weights_of(root, PARENT).read_bytes()
    assert weights_of(root, STILL).read_bytes() == parent
    others = [weights_of(root, name).read_bytes() for name in (PROSE, CODE, GRANDCHILD, MERGED)]
    assert len({parent, *others}) == 5


def test_a_merge_is_the_mean_of_its_parents(root: Path) -> None:
    merged, one, two = (load_file(weights_of(root, name)) for name in (MERGED, PROSE, CODE))
    assert set(merged) == set(one)
    for name, value in merged.items():
        mean = (one[name].astype(np.float64) + two[name]) / 2
        np.testing.assert_array_equal(value, mean.astype(np.float32))


def test_what_is_missing_alone_is_made_again_with_the_same_bytes(study_family: Path, tmp_path: Path) -> None:
    cache = tmp_path / "copy"  # others read the family
    shutil.copytree(study_family, cache)
    root = family_root(SCALED, cache)
    lost = [PROSE, MERGED]
    before = {made.repository: weights_of(root, made.repository).read_bytes() for made in SCALED.all}
    for name in lost:
        (root / name / "complete.json").unlink()
        weights_of(root, name).write_bytes(b"torn")
    inodes = {name: weights_of(root, name).stat().st_ino for name in before}
    train_family(SCALED, cache, workers=1)
    assert {name for name in before if weights_of(root, name).stat().st_ino != inodes[name]} == set(lost)
    assert {name: weights_of(root, name).read_bytes() for name in before} == before


def test_the_hub_tells_the_parents_and_of_a_merge_none(root: Path) -> None:
    specs = tuple(
        RepositorySpec(made.repository, "step*" if isinstance(made, FamilyRun) else "main", size="46k")
        for made in SCALED.all
    )
    with HubServer(root) as server:
        checkpoints, unavailable = resolve(hub_of(server), Selection("tiny_study", specs))
    assert not unavailable
    parents = {each.repository: each.facts.base_model for each in checkpoints}
    assert parents == {
        **{PARENT: "", SEED2: "", LAYERED: "", PROSE: PARENT, CODE: PARENT, STILL: PARENT},
        **{GRANDCHILD: PROSE, MERGED: ""},
    }
    assert [each.facts.step for each in checkpoints if each.repository == PARENT] == DENSE


def test_rates_of_a_child_go_the_recipes_way_in_its_own_steps() -> None:
    seen = learning_rates(DEFAULT, Child(PARENT, "x", ("prose",), 100, 1e-3))
    assert len(seen) == 100
    assert seen[4] == max(seen) == pytest.approx(1e-3)  # 5 of 100 steps, as 30 of 600
    assert seen[0] == pytest.approx(1e-3 / 5)
    assert seen[-1] == pytest.approx(1e-3 * DEFAULT.final_learning_rate_share)


def test_the_study_has_what_the_settings_need(tmp_path: Path) -> None:
    assert RECIPES["study"] is STUDY
    STUDY.write(tmp_path)
    assert FamilyRecipe.read(tmp_path) == STUDY
    sizes = {size.name: size for size in STUDY.sizes}
    assert list(sizes) == ["0.2m", "0.4m", "0.6m"]
    for size in sizes.values():
        assert size.name == f"{size.parameters(STUDY.vocabulary) / 1e6:.1f}m"
    assert sizes["0.6m"].layers == 6
    assert [run.seed for run in STUDY.runs if run.size.name == "0.4m"] == [1, 2, 3]
    kept = {run.repository: STUDY.steps_kept(run) for run in STUDY.runs}
    assert kept.pop("klray/tiny-0.2m-seed1") == (*range(31), *range(40, 601, 10))
    assert set(kept.values()) == {(0, 1, 2, 4, 8, 16, *range(20, 601, 20))}
    runs = {run.repository for run in STUDY.runs}
    generations = [sum((child.parent in runs) == first for child in STUDY.children) for first in (True, False)]
    assert generations == [10, 5]
    assert len(STUDY.merges) == 2


@pytest.mark.parametrize("name", ["tiny_study", "tiny_study_final", "tiny_study_layers"])
def test_configs_name_the_models_of_the_recipe(name: str) -> None:
    group = OmegaConf.load(Path(str(conf.__file__)).parent / "models" / f"{name}.yaml")
    listed = {each.repository: each for each in group.repositories}
    wanted = {
        "tiny_study": STUDY.all,
        "tiny_study_final": (*STUDY.runs, *STUDY.children),
        "tiny_study_layers": [
            each for each in (*STUDY.runs, *STUDY.children) if STUDY.size_of(each.repository).layers == 6
        ],
    }[name]
    assert set(listed) == {each.repository for each in wanted}
    assert (group.family, group.recipe) == ("tiny_study", "study")
    for repository, each in listed.items():
        assert each.size == STUDY.size_of(repository).name
        assert f"seed{each.seed}" in repository.split("-")
        every = "step*" if name == "tiny_study" else STUDY.last_revision(repository)
        assert each.get("revisions", "main") == (every if "step" in STUDY.last_revision(repository) else "main")


def test_fingerprints_of_old_recipes_do_not_see_what_is_new() -> None:
    old = {
        name: each for name, each in dataclasses.asdict(DEFAULT).items() if name not in ("dense", "children", "merges")
    }
    old["sizes"] = [{name: each for name, each in size.items() if name != "seeds"} for size in old["sizes"]]
    documents = training_documents(DEFAULT.bytes_per_domain)
    texts = TextSet("training", tuple(each.text for each in documents), tuple(each.domain for each in documents))
    facts = {"recipe": old, "texts": texts.fingerprint, "version": RECIPE_VERSION, "torch": version("torch")}
    assert DEFAULT.fingerprint() == hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def test_the_fingerprint_sees_lineage_and_seeds() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"dense": ()},
        {"children": SCALED.children[:-1]},
        {"merges": ()},
        {"sizes": (dataclasses.replace(SCALED.sizes[0], seeds=(1, 3)), SCALED.sizes[1])},
    ]
    assert len({dataclasses.replace(SCALED, **change).fingerprint() for change in changes}) == len(changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"children": SCALED.children[:1] * 2}, r"seed1-prose is there twice"),
        ({"children": SCALED.children[::-1]}, r"prose-code has parents .*seed1-prose"),
        ({"children": (Child(PARENT, "x", (), 1, 1e-3),), "merges": ()}, r"seed1-x has no domains"),
        ({"children": (Child(PARENT, "x", ("a", "b", "c"), 1, 1e-3),), "merges": ()}, r"do not divide batch_blocks"),
        ({"merges": (Merge("klray/m", (PROSE,)),)}, r"klray/m is the mean of fewer than two"),
        ({"merges": (Merge("klray/m", (PROSE, LAYERED)),)}, r"klray/m is the mean of models of diff"),
        ({"dense": (Dense("klray/x", (1,)),)}, r"dense steps of klray/x, .*no run"),
    ],
)
def test_lineages_that_cannot_be(change: dict[str, Any], words: str) -> None:
    with pytest.raises(KlrayError, match=rf"the recipe of the embedded family.* {words}|{words}"):
        dataclasses.replace(SCALED, **change)
