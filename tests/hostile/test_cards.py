"""Cards, configs and names in folders of strangers: each costs at most its own checkpoint, in bounded time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from klray.checkpoints import Hub, RepositorySpec, Selection, architecture, check_small_files, resolve
from klray.checkpoints.local_folder import CONFIG_BYTES, SMALL_JSON, folder_lineages
from klray.checkpoints.parents import Lineage
from klray.errors import CheckpointError
from klray.words.outside import fault
from tests.hostile.strings import each_hostile

MERGES = "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 10))
CARDS = {
    "deep": "base_model: " + "[" * 3000 + "]" * 3000,
    "unfinished": "[" * 60_000,
    "merged": "a0: &a0 {x: 1}\n" + MERGES,
    "aliases": "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 12)),
    "long": "base_model: org/a\ntext: " + "x" * 2**20,
    "python": "base_model: !!python/object/apply:os.system ['true']",
    "dates": "date: 2001-99-99\nbase_model: org/a",
    "index": "base_model: !!int ''",
    "number": "base_model: org/a\nn: " + "9" * 10_000,
}


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_card_that_cannot_be_read_says_why_in_seconds(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{card}\n---\n")
    begun = time.process_time()
    lineage = folder_lineages({"local": tmp_path}, tmp_path)["local"]
    assert time.process_time() - begun < 10
    assert lineage.parents == ()
    assert lineage.unread.startswith(f"{tmp_path}/README.md has metadata")
    assert fault(lineage.unread) == ""


@pytest.mark.parametrize(
    "card",
    [
        "---\nbase_model: org/a\n---\n",
        "\ufeff---\r\nbase_model: [org/a]\r\n---\r\n# Title",
        "\n\n---  \nbase_model: >-\n  org/a\nlicense: mit\n---" + "\ntext" * 10**6,
    ],
)
def test_card_that_is_sound_is_read_however_long_its_text(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(card)
    assert folder_lineages({"local": tmp_path}, tmp_path)["local"] == Lineage(("org/a",))


def test_card_that_is_no_file_of_the_folder_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.md").write_text("---\nbase_model: org/a\n---\n")
    models = {}
    for name, target in (("device", "/dev/zero"), ("outside", "../elsewhere.md"), ("circle", "README.md")):
        models[name] = tmp_path / name
        models[name].mkdir()
        (models[name] / "README.md").symlink_to(target)
    models["pipe"] = tmp_path / "pipe"
    models["pipe"].mkdir()
    os.mkfifo(models["pipe"] / "README.md")
    lineages = folder_lineages(models, tmp_path)
    assert {name: each.parents for name, each in lineages.items()} == dict.fromkeys(models, ())
    assert all(f"{name}/README.md" in each.unread for name, each in lineages.items())


def test_one_card_costs_one_lineage(tmp_path: Path) -> None:
    for name in ("sound", "odd"):
        (tmp_path / name).mkdir()
        for file in ("config.json", "model.safetensors"):
            (tmp_path / name / file).write_text(f'{{"name": "{name}"}}')
        body = "org/a" if name == "sound" else "[" * 3000
        (tmp_path / name / "README.md").write_text(f"---\nbase_model: {body}\n---\n")
    found, unavailable = resolve(Hub("http://127.0.0.1:9"), Selection("f", (RepositorySpec(str(tmp_path), "*"),)))
    facts = {each.revision: each.facts for each in found}
    assert not unavailable
    assert (facts["sound"].base_model, facts["sound"].card) == ("org/a", "")
    assert facts["odd"].base_model == ""
    assert "odd/README.md has metadata" in facts["odd"].card


@pytest.mark.parametrize("name", SMALL_JSON)
def test_small_files_of_a_model_are_small_and_flat(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    for body, words in (
        ("[" * 10**5, "levels deep"),
        (" " * (CONFIG_BYTES + 1), "more than 16,777,216"),
        ("{", "line 1"),
    ):
        (tmp_path / name).write_text(body)
        with pytest.raises(CheckpointError, match=rf"{name} cannot be read as JSON \(.*{words}"):
            check_small_files(tmp_path)
        assert architecture(tmp_path) == ("" if name == "config.json" else "{}")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        check_small_files(tmp_path)


@each_hostile
def test_names_of_revisions_are_shown_and_scored(tmp_path: Path, hostile: str) -> None:
    name = "step1" + hostile.replace("\x00", "").replace("\ud83d", "\udcff").replace("/", "")
    (tmp_path / name).mkdir()
    for file in ("config.json", "model.safetensors"):
        (tmp_path / name / file).write_text("{}")
    (found,), _ = resolve(Hub("http://127.0.0.1:9"), Selection("f", (RepositorySpec(str(tmp_path), "*"),)))
    assert fault(found.label) == ""
    assert found.revision.startswith("step1")
    assert Path(found.directory).is_dir()
