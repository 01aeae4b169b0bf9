"""Lineage: from a model's card over the hub's answer and the store's columns to a snapshot, and from old stores."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from klray.analysis.scale.compared_models import Models
from klray.analysis.scale.generations import lineages
from klray.checkpoints import Checkpoint, Hub, RepositorySpec, Selection, resolve
from klray.checkpoints.parents import Lineage, lineage_of, parsed_parents
from klray.store import Store, catalog, layout
from klray.store.columns import commit_column
from klray.tiny.hub_server import HubServer
from tests.hub_faults import write_model
from tests.stores import TEXTS, add, column, put_column

# Repository: its card. A chain of two generations, a merge of several parents and one that names a single parent.
CARDS: dict[str, dict[str, object]] = {
    "tiny/base": {"license": "mit"},
    "tiny/child": {"base_model": "tiny/base"},
    "tiny/grandchild": {"base_model": ["tiny/child"], "base_model_relation": "finetune"},
    "tiny/merged": {"base_model": ["tiny/child", "tiny/base"]},
    "tiny/souped": {"base_model": "tiny/base", "base_model_relation": "merge"},
    "tiny/packed": {"base_model": "tiny/base", "base_model_relation": "quantized"},
    "tiny/pinned": {"base_model": "tiny/base@step2"},
    "tiny/itself": {"base_model": ["tiny/itself", "tiny/base", "tiny/base"], "base_model_relation": "finetune"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    root = tmp_path_factory.mktemp("hub")
    for number, (repository, card) in enumerate(CARDS.items()):
        write_model(root / repository / "main", seed=number)
        (root / repository / "repo.json").write_text(json.dumps(card))
    adapted = write_model(root / "tiny/adapted" / "main", seed=99)
    (adapted / "adapter_config.json").write_text("{}")
    (root / "tiny/adapted" / "repo.json").write_text(json.dumps({"base_model": "tiny/base"}))
    with HubServer(root) as server:
        yield server


def resolved(server: HubServer, *specs: RepositorySpec) -> dict[str, Checkpoint]:
    checkpoints, unavailable = resolve(Hub(server.endpoint, server.token), Selection("tiny", specs))
    assert unavailable == []
    return {each.repository: each for each in checkpoints}


def test_parents_and_relations_come_from_the_hub(server: HubServer) -> None:
    found = resolved(server, *(RepositorySpec(repository) for repository in [*CARDS, "tiny/adapted"]))
    facts = {
        name: (each.facts.base_model, each.facts.base_revision, each.facts.parents, each.facts.relation)
        for name, each in found.items()
    }
    assert facts == {
        "tiny/base": ("", "", "", ""),
        "tiny/child": ("tiny/base", "", "tiny/base", "finetune"),
        "tiny/grandchild": ("tiny/child", "", "tiny/child", "finetune"),
        "tiny/merged": ("", "", "tiny/child, tiny/base", "merge"),
        "tiny/souped": ("tiny/base", "", "tiny/base", "merge"),
        "tiny/packed": ("tiny/base", "", "tiny/base", "quantized"),
        "tiny/pinned": ("tiny/base", "step2", "tiny/base", "finetune"),
        "tiny/itself": ("tiny/base", "", "tiny/base", "finetune"),
        "tiny/adapted": ("tiny/base", "", "tiny/base", "adapter"),
    }


def test_parents_of_a_folder_come_from_the_card_in_it_or_in_its_runs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (1, 2):
        write_model(run / f"step{step}", seed=step)
    (tmp_path / "README.md").write_text("---\nbase_model: org/unrelated\n---\n")
    spec = RepositorySpec(str(run), "step*")

    def parents() -> list[tuple[str, str]]:
        checkpoints, unavailable = resolve(Hub("http://127.0.0.1:9"), Selection("tiny", (spec,)))
        assert not unavailable
        return [(each.facts.parents, each.facts.relation) for each in checkpoints]

    assert parents() == [("", "")] * 2
    (run / "README.md").write_text("---\nbase_model: org/base\nlicense: mit\n---\n# A model\n")
    assert parents() == [("org/base", "")] * 2
    merge = "---\nbase_model:\n- org/a\n- org/b\n---\n"
    (run / "step2" / "README.md").write_text(merge)
    (run / "step1" / "adapter_config.json").write_text("{}")
    assert parents() == [("org/base", "adapter"), ("org/a, org/b", "merge")]
    for broken in ("---\nbase_model: [\n---\n", "---\n- a list\n---\n", "no card"):
        (run / "README.md").write_text(broken)
        assert parents() == [("", ""), ("org/a, org/b", "merge")]


def test_a_parent_that_the_selection_names_stands_before_the_hubs(server: HubServer) -> None:
    named = RepositorySpec("tiny/packed", base_model="tiny/child@step7")
    same = RepositorySpec("tiny/souped", base_model="tiny/base")
    found = resolved(server, named, same)
    facts = found["tiny/packed"].facts
    assert (facts.base_model, facts.base_revision, facts.parents, facts.relation) == (
        "tiny/child",
        "step7",
        "tiny/child",
        "",
    )
    assert found["tiny/souped"].facts.relation == "merge"


def test_the_hub_tags_the_parents_as_the_real_one_does(server: HubServer) -> None:
    api = HfApi(server.endpoint, token=server.token)
    merged = api.model_info("tiny/merged")
    assert merged.card_data is not None and merged.card_data.base_model == ["tiny/child", "tiny/base"]
    assert "base_model:merge:tiny/child" in (merged.tags or []) and "base_model:tiny/base" in (merged.tags or [])


@pytest.mark.parametrize(
    ("info", "lineage"),
    [
        ({}, Lineage()),
        ({"cardData": None}, Lineage()),
        ({"cardData": {"base_model": [None, {"name": "a/b"}, ""]}}, Lineage()),
        ({"cardData": {"base_model": 7}}, Lineage()),
        ({"cardData": {"base_model": "a/b", "base_model_relation": "cousin"}}, Lineage(("a/b",))),
        (
            {"cardData": {"base_model": "a/b"}, "tags": ["base_model:a/b", "base_model:quantized:a/b"]},
            Lineage(("a/b",), "quantized"),
        ),
        (
            {"cardData": {"base_model": "a/b"}, "siblings": [{"rfilename": "adapter_config.json"}]},
            Lineage(("a/b",), "adapter"),
        ),
        (
            {"cardData": {"base_model": ["a/b", "c/d"], "base_model_relation": "finetune"}},
            Lineage(("a/b", "c/d"), "merge"),
        ),
    ],
)
def test_cards_that_people_write(info: dict[str, object], lineage: Lineage) -> None:
    assert lineage_of("x/y", info) == lineage


def test_a_path_is_no_revision() -> None:
    assert parsed_parents(["/models/a@b", "org/name@step3"]) == {"/models/a@b": "", "org/name": "step3"}


def test_a_snapshot_shows_parents_and_relation(server: HubServer, tmp_path: Path) -> None:
    store = Store.create(str(tmp_path), TEXTS)
    found = resolved(server, *(RepositorySpec(name) for name in CARDS))
    for number, each in enumerate(found.values()):
        facts = {**dataclasses.asdict(each.facts), "revision": each.revision, "architecture": "LlamaForCausalLM"}
        made = column(str(number), **{name: value for name, value in facts.items() if name != "step"})
        identity = dataclasses.replace(made.identity, repository=each.repository, commit=each.commit)
        assert commit_column(
            store.objects, put_column(store, dataclasses.replace(made, identity=identity), f"{number:032x}")
        )
    store.publish()
    data = store.dataset()
    rows = {run: place for place, run in enumerate(data["run"].values.tolist())}
    assert data["base_model"].values[rows["tiny/child"]] == "tiny/base"
    assert data["relation"].values[rows["tiny/child"]] == "finetune"
    assert data["parents"].values[rows["tiny/merged"]] == "tiny/child, tiny/base"
    assert data["relation"].values[rows["tiny/base"]] == data["base_revision"].values[rows["tiny/base"]] == ""
    family = lineages(Models.of(data))
    names = data["repository"].values
    assert {tuple(names[pair].tolist()) for pair in family.pairs} == {
        ("tiny/child", "tiny/base"),
        ("tiny/grandchild", "tiny/child"),
        ("tiny/itself", "tiny/base"),
    }
    assert family.generation["tiny/grandchild"] == 2 and family.generation["tiny/merged"] == 0
    assert family.apart == {"merge": 2, "adapter": 0, "quantized": 1}
    assert family.absent == ("tiny/pinned",)  # its parent is there, but not at step2


def test_a_snapshot_of_before_the_new_facts_goes_on_growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its catalog lacks them; they are empty for its rows, and no commit is read again."""
    new = ("base_revision", "parents", "relation")
    with monkeypatch.context() as before:
        for table in (catalog.COORDINATES, catalog._ALL):
            for name in new:
                before.delitem(table, name)
        store = Store.create(str(tmp_path), TEXTS)
        add(store, column("a", 1), column("a", 2))
        manifest, _ = store.publish()
    kept = store.objects.get(f"{layout.snapshot_path(manifest.id)}/{layout.CATALOG}")
    assert kept is not None and not set(new) & set(json.loads(gzip.decompress(kept)))
    add(store, column("b", 1, parents="org/a, org/c", relation="merge"))
    store.publish()
    data = store.dataset()
    assert data["relation"].values.tolist() == ["", "", "merge"]
    assert data["parents"].values.tolist() == ["", "", "org/a, org/c"]


def test_a_parent_that_is_named_later_than_its_column_is_said(server: HubServer, folder_store: Store) -> None:
    from jobs.score import kept_parents
    from klray.sweep.settings import ScoringSettings

    settings, specs = ScoringSettings(), (RepositorySpec("tiny/base", base_model="org/a"), RepositorySpec("tiny/child"))
    found = resolved(server, *specs)
    for each in found.values():
        identity = settings.identity(each, folder_store.texts.fingerprint)
        folder_store.add_column(dataclasses.replace(column("x", 1), identity=identity))
    said = kept_parents(folder_store, Selection("tiny", specs), list(found.values()), settings)
    key = settings.identity(found["tiny/base"], folder_store.texts.fingerprint).key
    assert "in 1 column: tiny/base@main has none, and asked for is org/a" in said and layout.commit_path(key) in said
    assert kept_parents(folder_store, Selection("tiny", specs[1:]), list(found.values()), settings) == ""
    folder_store.objects.delete_tree(layout.commit_path(key))
    assert kept_parents(folder_store, Selection("tiny", specs), list(found.values()), settings) == ""
