"""Repositories that were renamed: one model under the name that the hub answers with, whatever name it is asked by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from klray.checkpoints import Hub, RepositorySpec, Selection, resolve
from klray.checkpoints.hub import current_name
from klray.tiny.hub_server import HubServer
from klray.tiny.routes import HubHandler
from tests.hub_faults import write_model

PARENTS = {
    "new/base": "",
    "new/child": "old/base",
    "new/twin": "new/base",
    "new/orphan": "gone/base",
    "new/itself": "old/itself",
    "new/merged": ["old/base", "new/child"],
}


class Moved(HubHandler):
    """Leads on from the old organisation, as the hub does from a name that was given up."""

    elsewhere = ""

    def answer(self) -> None:
        if "/old/" not in self.path:
            return super().answer()
        return self.lead(self.elsewhere + self.path.replace("/old/", "/new/", 1))

    def lead(self, place: str) -> None:
        self.send_head(HTTPStatus.TEMPORARY_REDIRECT, "text/plain", 0, {"Location": place})


class MovedServer(HubServer):
    handler = Moved


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    for number, (repository, parent) in enumerate(PARENTS.items()):
        write_model(root / repository / "main", seed=number)
        card = {"base_model": parent, "base_model_relation": "finetune"} if parent else {}
        (root / repository / "repo.json").write_text(json.dumps(card))
    return root


@pytest.fixture(scope="module")
def hub(root: Path) -> Iterator[Hub]:
    with MovedServer(root) as server:
        yield Hub(server.endpoint, server.token)


def facts(hub: Hub, *names: str) -> dict[str, tuple[str, str, str]]:
    found, unavailable = resolve(hub, Selection("f", tuple(map(RepositorySpec, names))))
    assert not unavailable
    return {each.repository: (each.facts.run, each.facts.base_model, each.facts.relation) for each in found}


def test_a_model_has_one_name_and_children_find_it_by_either(hub: Hub) -> None:
    expected = {
        "new/base": ("new/base", "", ""),
        "new/child": ("new/child", "new/base", "finetune"),
        "new/twin": ("new/twin", "new/base", "finetune"),
    }
    assert facts(hub, "new/base", "old/base", "old/child", "new/twin") == expected
    assert facts(hub, "new/child") == {"new/child": expected["new/child"]}


def test_names_that_lead_nowhere_stay_and_nobody_is_its_own_parent(hub: Hub) -> None:
    assert facts(hub, "new/orphan", "new/itself") == {
        "new/orphan": ("new/orphan", "gone/base", "finetune"),
        "new/itself": ("new/itself", "", ""),
    }


def test_revisions_are_those_of_the_new_name(hub: Hub) -> None:
    spec = RepositorySpec("old/base", ["ma*", "none"])
    (found,), (missing,) = resolve(hub, Selection("f", (spec,)))
    assert found.label == "new/base@main"
    assert (missing.repository, missing.revision) == ("new/base", "none")


@pytest.mark.parametrize("place", ["http://127.0.0.1:9", "//127.0.0.1:9", "/api/resolve-cache/models", "file://"])
def test_only_the_hub_itself_tells_names(root: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Moved, "elsewhere", place)
    with MovedServer(root) as server:
        hub = Hub(server.endpoint, server.token)
        assert current_name(hub, "old/base") == "old/base"
        assert current_name(hub, "no name\x1b") == "no name\x1b"


@pytest.mark.parametrize("name", ["../x", "a/b/c", "\x1b[2J", "x" * 300, 7, None, ["a"], ""])
def test_a_name_that_is_none_is_not_taken(root: Path, name: Any) -> None:
    class Odd(HubHandler):
        def send_json(self, value: Any, *args: Any, **more: Any) -> None:
            super().send_json({**value, "id": name} if "siblings" in value else value, *args, **more)

    class OddServer(HubServer):
        handler = Odd

    with OddServer(root) as server:
        assert list(facts(Hub(server.endpoint, server.token), "new/base")) == ["new/base"]


def test_nobody_is_asked_for_the_name_of_a_folders_parent(tmp_path: Path) -> None:
    write_model(tmp_path / "model", seed=1)
    (tmp_path / "model" / "README.md").write_text("---\nbase_model: old/base\n---\n")
    assert facts(Hub("http://127.0.0.1:9"), str(tmp_path / "model")) == {
        str(tmp_path / "model"): (str(tmp_path / "model"), "old/base", "")
    }
