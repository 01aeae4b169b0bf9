"""GGUF files of a hub's repositories and of folders: each a checkpoint, fetched and kept by itself."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from klray.analysis.scale.choosing_pairs import setting_pairs
from klray.analysis.scale.compared_models import Models
from klray.checkpoints import Cache, Checkpoint, Hub, RepositorySpec, architecture, resolve
from klray.checkpoints.gguf import read_gguf
from klray.checkpoints.gguf_choice import said_lineage
from klray.checkpoints.parents import Lineage
from klray.likelihood.loading import load
from klray.sweep.cost import parameters
from klray.sweep.limits import limits_of
from klray.sweep.model import Compute
from klray.sweep.settings import ScoringSettings
from klray.texts import TextSet
from klray.tiny.hub_server import HubServer
from tests.gguf_files import F16, Q8_0, model_of, write
from tests.hub_faults import hub_of, only_error, select
from tests.scale_data import scale_snapshot
from tests.stores import TEXTS
from tests.tiny_models import byte_level_tokenizer, save_checkpoint

NOWHERE = Hub("http://127.0.0.1:9")
BOTH = ["tiny-F16.gguf", "tiny-Q8_0.gguf"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub's folder: org/gguf with two files, org/both with safetensors, too."""
    root = tmp_path_factory.mktemp("hub")
    folder = root / "org" / "gguf" / "main"
    folder.mkdir(parents=True)
    model, tokenizer = model_of("llama"), byte_level_tokenizer(bos=True)
    for kind in (F16, Q8_0):
        write(
            folder / f"tiny-{kind.name}.gguf",
            model,
            tokenizer,
            "llama",
            kind,
            **{"general.file_type": {F16: 1, Q8_0: 7}[kind]},
        )
    shutil.copytree(folder, root / "org" / "both" / "main")
    save_checkpoint(root / "org" / "both" / "main", "llama")
    return root


@pytest.fixture
def hub(root: Path) -> Iterator[Hub]:
    with HubServer(root) as server:
        yield hub_of(server)


def names(checkpoints: list[Checkpoint]) -> list[str]:
    return [checkpoint.label for checkpoint in checkpoints]


def test_each_file_of_a_repository_is_a_checkpoint(hub: Hub) -> None:
    checkpoints, unavailable = resolve(hub, select(RepositorySpec("org/gguf")))
    assert not unavailable and names(checkpoints) == [f"org/gguf/{name}@main" for name in BOTH]
    assert [[file.path for file in each.files] for each in checkpoints] == [[name] for name in BOTH]
    assert len({each.commit for each in checkpoints}) == 2 and {len(each.commit) for each in checkpoints} == {64}
    assert {each.source[0] for each in checkpoints} == {"org/gguf"} and len(checkpoints[0].source[1]) == 40
    assert checkpoints[0].facts.run == f"org/gguf/{BOTH[0]}"


def test_other_weights_stand_above_files_unless_these_are_named(hub: Hub) -> None:
    (plain,), _ = resolve(hub, select(RepositorySpec("org/both")))
    assert plain.label == "org/both@main" and not plain.gguf
    (chosen,), _ = resolve(hub, select(RepositorySpec("org/both", files="*Q8_0*")))
    assert chosen.label == f"org/both/{BOTH[1]}@main"
    assert (chosen.facts.base_model, chosen.facts.relation) == ("org/both", "quantized")
    assert {"tokenizer.json", BOTH[1]} <= {file.path for file in chosen.files}
    error = only_error(hub, RepositorySpec("org/both", files="*Q4_K_M*"))
    assert error.reason == "revision_not_found" and "matches none of the 2 GGUF files" in error.message
    assert len(resolve(hub, select(RepositorySpec("org/both", files=["*F16*", "*Q8*"]), limit=1))[0]) == 1


def test_files_are_fetched_one_by_one_and_evicted(hub: Hub, tmp_path: Path) -> None:
    first, second = resolve(hub, select(RepositorySpec("org/gguf")))[0]
    with Cache(tmp_path, first.bytes + second.bytes + 10_000) as cache:
        places = [cache.fetch(hub, each) for each in (first, second)]
        assert [place.name for place in places] == BOTH and places[0].parent != places[1].parent
        assert [list(place.parent.glob("*.gguf")) for place in places] == [[place] for place in places]
        assert load(places[1]).stored_quantization == "Q8_0"
        cache.evict(first)
        assert not places[0].exists() and places[1].exists()
        assert cache.fetch(hub, second) == places[1]


def test_identity_follows_the_file_and_its_tokenizer_not_the_commit(root: Path, tmp_path: Path) -> None:
    def commit(folder: Path) -> str:
        (checkpoint,), unavailable = resolve(NOWHERE, select(RepositorySpec(str(folder), files=BOTH[0])))
        assert not unavailable and checkpoint.place(folder) == folder / BOTH[0] and checkpoint.parameters
        return checkpoint.commit

    folder = Path(shutil.copytree(root / "org" / "gguf" / "main", tmp_path / "copy"))
    first = commit(folder)
    (folder / "README.md").write_text("changed")
    (folder / BOTH[1]).unlink()
    assert commit(folder) == first
    byte_level_tokenizer(bos=True).save_pretrained(folder)
    second = commit(folder)
    model, tokenizer = model_of("llama", seed=1), byte_level_tokenizer(bos=True)
    write(folder / BOTH[0], model, tokenizer, "llama")
    assert len({first, second, commit(folder)}) == 3


def test_a_file_is_named_by_its_path_and_parents_by_the_card(root: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(root / "org" / "gguf" / "main", tmp_path / "copy"))
    (folder / "README.md").write_text("---\nbase_model: org/parent\n---\n")
    checkpoints, _ = resolve(NOWHERE, select(RepositorySpec(str(folder))))
    assert {(each.facts.base_model, each.facts.relation) for each in checkpoints} == {("org/parent", "quantized")}
    (alone,), _ = resolve(NOWHERE, select(RepositorySpec(str(folder / BOTH[1]))))
    assert alone == checkpoints[1]
    assert architecture(alone.place(folder)) != architecture(checkpoints[0].place(folder)) != ""


def test_a_model_in_parts_is_refused_once(root: Path, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        shutil.copy(root / "org" / "gguf" / "main" / BOTH[0], tmp_path / f"big-0000{number}-of-00003.gguf")
    error = only_error(NOWHERE, RepositorySpec(str(tmp_path)))
    assert error.reason == "load_failed" and "one of several files" in error.message


def test_what_metadata_say_of_a_source_and_of_its_parents(tmp_path: Path) -> None:
    def said(**more: object) -> Lineage:
        tokenizer = byte_level_tokenizer(bos=True)
        return said_lineage(read_gguf(write(tmp_path / "a.gguf", model_of("llama"), tokenizer, "llama", **more)))

    base = {"general.base_model.count": 1, "general.base_model.0.repo_url": "https://huggingface.co/org/base"}
    assert said() == Lineage()
    assert said(**base) == Lineage(("org/base",))  # the parent of what was quantised
    source = {"general.source.repo_url": "https://huggingface.co/org/tuned"}
    assert said(**base, **source) == Lineage(("org/tuned",), "quantized")
    two = {**base, "general.base_model.count": 2, "general.base_model.1.repo_url": "org/other"}
    assert said(**two) == Lineage(("org/base", "org/other"), "merge")
    odd = {"general.base_model.count": 1 << 31, "general.base_model.0.repo_url": "javascript:alert(1)"}
    assert said(**odd) == Lineage()


def test_each_stored_quantisation_is_a_setting_of_its_own_against_the_parent() -> None:
    dataset = scale_snapshot(n_texts=8, last_step=3000)
    names = dataset["repository"].values.tolist()
    stored = [{"some/packed": "Q4_K_M", "some/child-b": "Q8_0"}.get(name, "") for name in names]
    before = setting_pairs(Models.of(dataset))
    dataset = dataset.assign_coords(stored_quantization=("model", np.array(stored, np.dtypes.StringDType())))
    models = Models.of(dataset)
    found = setting_pairs(models)
    ((parent, copy),) = found["quantization Q4_K_M"].tolist()
    assert (names[parent], names[copy]) == ("llama/base-0", "some/packed")
    assert "quantization Q8_0" not in found  # a fine-tuned child that was quantised, too
    assert len(found["fine-tuning"]) == len(before["fine-tuning"]) - 1
    assert copy not in found["random"] and copy not in found["intra-type"]


def test_a_plan_counts_the_bits_that_a_name_says_where_the_hub_counts_nothing(hub: Hub) -> None:
    floats, coded = resolve(hub, select(RepositorySpec("org/gguf")))[0]
    exact = model_of("llama").num_parameters()
    header = 12_000  # bytes, of a tiny model's vocabulary
    for each in (floats, coded):
        assert exact <= parameters(each) <= exact + header
    limits = [limits_of(each, TEXTS, ScoringSettings()) for each in (floats, coded)]
    assert limits[1].memory > 12 * coded.bytes


def test_a_file_is_scored_with_its_facts_and_without_a_sketch(tmp_path: Path) -> None:
    source = {"general.source.repo_url": "https://huggingface.co/org/tuned", "general.file_type": 7}
    write(tmp_path / "a.gguf", model_of("llama"), byte_level_tokenizer(bos=True), "llama", Q8_0, **source)
    (checkpoint,), _ = resolve(NOWHERE, select(RepositorySpec(str(tmp_path / "a.gguf"))))
    compute = Compute(ScoringSettings(sketch=64), TextSet("words", ("a b c " * 20, "d e f " * 30), ("a", "a")))
    computed = compute.score(checkpoint, tmp_path / "a.gguf", lambda: None)
    facts = computed.facts
    assert (facts["stored_quantization"], facts["base_model"], facts["relation"]) == ("Q8_0", "org/tuned", "quantized")
    assert facts["tokenizer_class"] == "GGUF gpt2 gpt-2" and facts["tokens_before"] == ["<s>"]
    (warning,) = facts["warnings"]
    assert warning.startswith("has no weight sketch") and computed.weight_sketch is None
