"""Selections resolved against a real hub server: expansion, identity, choice of files, and what is not available."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from klray.checkpoints import Cache, Facts, Hub, RepositorySpec, resolve
from klray.checkpoints.delivery import MARKER
from klray.errors import KlrayError
from klray.tiny.hub_server import HubServer
from tests.hub_faults import hub_of, only_error, select, write_model, write_run

RUN = "tiny/run"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    for step in (0, 2, 10, 100, 1000):
        write_model(root / RUN / f"step{step}", seed=step, weight_bytes=1000)
    (root / RUN / "repo.json").write_text(json.dumps({"base_model": "tiny/parent"}))
    write_model(root / "tiny/merged" / "main")
    (root / "tiny/merged" / "repo.json").write_text(json.dumps({"base_model": ["tiny/a", "tiny/b"]}))
    write_model(root / "tiny/gated" / "main")
    (root / "tiny/gated" / ".gated").touch()
    return root


@pytest.fixture
def server(root: Path) -> Iterator[HubServer]:
    with HubServer(root) as server:
        yield server


def test_glob_expands_in_the_order_of_steps_with_two_requests_and_one_per_further_commit(server: HubServer) -> None:
    checkpoints, unavailable = resolve(hub_of(server), select(RepositorySpec(RUN, "step*", size="1k", seed=3)))
    assert not unavailable
    assert [checkpoint.revision for checkpoint in checkpoints] == ["step0", "step2", "step10", "step100", "step1000"]
    assert checkpoints[1].facts == Facts("tiny", RUN, 2, "1k", 3, "tiny/parent", "", "tiny/parent", "finetune")
    assert len({checkpoint.commit for checkpoint in checkpoints}) == 5
    assert server.requests == {"info": 5, "refs": 1, "resolve HEAD": 1}  # main is step1000; HEAD: of the parent


def test_glob_narrows(server: HubServer) -> None:
    checkpoints, _ = resolve(hub_of(server), select(RepositorySpec(RUN, ["step1*", "step[0-9]"])))
    assert [checkpoint.facts.step for checkpoint in checkpoints] == [0, 2, 10, 100, 1000]
    checkpoints, _ = resolve(hub_of(server), select(RepositorySpec(RUN, "step[0-9]*00")))
    assert [checkpoint.facts.step for checkpoint in checkpoints] == [100, 1000]


@pytest.mark.parametrize(("stride", "steps"), [(1, [0, 2, 10, 100, 1000]), (2, [0, 10, 1000]), (3, [0, 100, 1000])])
def test_stride_keeps_every_kth_and_the_last(server: HubServer, stride: int, steps: list[int]) -> None:
    checkpoints, _ = resolve(hub_of(server), select(RepositorySpec(RUN, "step*"), stride=stride))
    assert [checkpoint.facts.step for checkpoint in checkpoints] == steps


def test_limit_bounds_requests_too(server: HubServer) -> None:
    checkpoints, _ = resolve(hub_of(server), select(RepositorySpec(RUN, "step*"), limit=2))
    assert [checkpoint.facts.step for checkpoint in checkpoints] == [0, 2]
    assert server.requests == {"info": 3, "refs": 1, "resolve HEAD": 1}


@pytest.mark.parametrize(("wrong", "right"), [("stride", "limit"), ("limit", "stride")])
def test_stride_and_limit_are_at_least_one_and_the_wrong_one_is_named(wrong: str, right: str) -> None:
    words = rf"models\.{wrong}=0 was asked for: set models\.{wrong} \(in Python: {wrong}=\) to 1 or more"
    with pytest.raises(KlrayError, match=words) as raised:
        select(RepositorySpec(RUN), **{wrong: 0, right: 2})
    assert right not in str(raised.value)


def test_main_costs_one_request(server: HubServer) -> None:
    (checkpoint,), _ = resolve(hub_of(server), select(RepositorySpec("tiny/merged")))
    assert checkpoint.facts.base_model == ""  # two parents are none
    assert server.requests == {"info": 1}


def test_same_commit_is_one_checkpoint_named_by_its_step(server: HubServer) -> None:
    main, both = RepositorySpec(RUN), RepositorySpec(RUN, ["main", "step1000"])
    for selection in (select(both), select(main, both), select(both, main)):
        checkpoints, _ = resolve(hub_of(server), selection)
        assert [checkpoint.revision for checkpoint in checkpoints] == ["step1000"]


def test_two_steps_that_are_one_commit_are_the_higher_one_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = write_run(tmp_path, 3) / "tiny/run"
    shutil.rmtree(run / "step0")
    shutil.copytree(run / "step2", run / "step0")
    with HubServer(tmp_path) as server:
        checkpoints, _ = resolve(hub_of(server), select(RepositorySpec("tiny/run", "step*")))
    assert {checkpoint.revision for checkpoint in checkpoints} == {"step1", "step2"}
    assert "step0 and step2 are one commit, which counts as step2 alone" in caplog.text


def test_commit_sha_is_a_revision(server: HubServer) -> None:
    (named,), _ = resolve(hub_of(server), select(RepositorySpec(RUN, "step10")))
    (by_commit,), _ = resolve(hub_of(server), select(RepositorySpec(RUN, named.commit)))
    assert (by_commit.commit, by_commit.files) == (named.commit, named.files)
    assert by_commit.facts.step is None


def test_checkpoint_describes_its_files(server: HubServer, root: Path) -> None:
    (checkpoint,), _ = resolve(hub_of(server), select(RepositorySpec(RUN, "step10")))
    assert [file.path for file in checkpoint.files] == ["config.json", "model.safetensors", "tokenizer.json"]
    folder = root / RUN / "step10"
    assert checkpoint.bytes == sum((folder / file.path).stat().st_size for file in checkpoint.files)
    assert [bool(file.sha256) for file in checkpoint.files] == [False, True, False]
    assert [bool(file.git_sha1) for file in checkpoint.files] == [True, False, True]
    assert pickle.loads(pickle.dumps(checkpoint)) == checkpoint


def test_missing_repository(server: HubServer) -> None:
    error = only_error(hub_of(server), RepositorySpec("tiny/nothing", "step*"))
    assert error.reason == "repository_not_found"
    assert error.revision == "step*"
    for words in ("tiny/nothing", server.endpoint, "check the spelling", "HF_TOKEN"):
        assert words in error.message


@pytest.mark.parametrize(
    ("asked", "near"), [("tiny/mergd", "tiny/merged"), ("tiny/x", "tiny/gated, tiny/merged, tiny/run")]
)
def test_missing_repository_names_near_ones_of_its_organisation(server: HubServer, asked: str, near: str) -> None:
    message = only_error(hub_of(server), RepositorySpec(asked)).message
    assert message.endswith(f"; tiny has 3 models there, such as {near}")
    assert server.requests["list"] == 1


def test_missing_organisation_has_no_near_ones(server: HubServer) -> None:
    message = only_error(hub_of(server), RepositorySpec("huge/run")).message
    assert message.endswith("that may read it")


def test_name_that_no_hub_could_have() -> None:
    error = only_error(Hub("http://127.0.0.1:9"), RepositorySpec("a/b/c"))
    assert error.reason == "repository_not_found"
    assert "organisation/name" in error.message


def test_gated_repository_is_found_out_before_any_download(server: HubServer) -> None:
    error = only_error(hub_of(server), RepositorySpec("tiny/gated"))
    assert error.reason == "gated"
    assert "accept its terms" in error.message
    assert server.requests == {"info": 1, "auth-check": 1}


def test_missing_revision_names_near_ones(server: HubServer) -> None:
    error = only_error(hub_of(server), RepositorySpec(RUN, "step99"))
    assert (error.reason, error.revision) == ("revision_not_found", "step99")
    for words in ("'step99'", "6 branches and tags", "step0"):
        assert words in error.message


def test_missing_commit(server: HubServer) -> None:
    error = only_error(hub_of(server), RepositorySpec(RUN, "0" * 40))
    assert error.reason == "revision_not_found"
    assert "no such revision" in error.message


def test_glob_without_a_match(server: HubServer) -> None:
    checkpoints, unavailable = resolve(hub_of(server), select(RepositorySpec(RUN, ["stage2-*", "step0"])))
    assert [checkpoint.revision for checkpoint in checkpoints] == ["step0"]
    (error,) = unavailable
    assert (error.reason, error.revision) == ("revision_not_found", "stage2-*")
    for words in (
        "models.revisions='stage2-*' matches none of the 6 branches and tags of tiny/run",
        "step",
        "set models.revisions",
    ):
        assert words in error.message


SHARDS = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
BINS = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
INDEX = "model.safetensors.index.json"
ODD = ["parts/consolidated.00.safetensors", "model.safetensors-00002-of-00002.safetensors"]


def write_files(folder: Path, *names: str, shards: Sequence[str] = ()) -> None:
    """Files with their names for content; an index names ``shards``, or else those that are usual."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        usual = SHARDS if "safetensors" in name else BINS
        named = {"weight_map": {f"w{n}": shard for n, shard in enumerate(shards or usual)}}
        (folder / name).write_text(json.dumps(named) if name.endswith("index.json") else name)


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        (["model.safetensors", "pytorch_model.bin", "flax_model.msgpack"], ["model.safetensors"]),
        ([*SHARDS, INDEX, *BINS], [INDEX, *SHARDS]),
        (["model.safetensors", *SHARDS, INDEX], ["model.safetensors"]),
        (["pytorch_model.bin", "training_args.bin"], ["pytorch_model.bin"]),
        ([*SHARDS[:2], *BINS, "pytorch_model.bin.index.json"], ["pytorch_model.bin.index.json", *BINS]),
        ([*SHARDS, *BINS, "pytorch_model.bin.index.json"], ["pytorch_model.bin.index.json", *BINS]),
        (
            ["model.safetensors", "vocab.json", "merges.txt", "modeling_x.py"],
            ["merges.txt", "model.safetensors", "vocab.json"],
        ),
        (["model.safetensors", "onnx/model.onnx", "original/tokenizer.model"], ["model.safetensors"]),
        # so that the adapter is refused once it is fetched, as in a folder
        (
            ["model.safetensors", "adapter_config.json", "adapter_model.safetensors"],
            ["adapter_config.json", "model.safetensors"],
        ),
        (
            [*SHARDS, "model-00001-of-00009.safetensors", INDEX, "extra/x.safetensors"],
            [INDEX, *SHARDS],
        ),
    ],
)
def test_one_format_of_weights_is_taken(tmp_path: Path, offered: list[str], taken: list[str]) -> None:
    folder = tmp_path / "tiny/one/main"
    write_files(folder, "config.json", *offered)
    with HubServer(tmp_path) as server:
        (checkpoint,), _ = resolve(hub_of(server), select(RepositorySpec("tiny/one")))
    assert [file.path for file in checkpoint.files] == sorted(["config.json", *taken])


@pytest.mark.parametrize(
    ("offered", "words"),
    [
        (["tf_model.h5", "flax_model.msgpack", "model.onnx"], "found: flax_model.msgpack, model.onnx, tf_model.h5"),
        (["adapter_model.safetensors"], "found: adapter_model.safetensors"),
        (["consolidated.00.pth", "weights.ckpt"], "consolidated.00.pth, weights.ckpt"),
        ([*SHARDS[:2], INDEX], f"2 of 3 shards that {INDEX} names, without {SHARDS[2]}"),
        (SHARDS, "3 shards, but no model.safetensors.index.json"),
        (BINS, "2 shards, but no pytorch_model.bin.index.json"),
        ([], "no weights at all"),
    ],
)
def test_no_safe_weights(tmp_path: Path, offered: list[str], words: str) -> None:
    write_files(tmp_path / "tiny/one/main", "config.json", *offered)
    with HubServer(tmp_path) as server:
        error = only_error(hub_of(server), RepositorySpec("tiny/one"))
    assert error.reason == "no_safe_weights"
    assert words in error.message
    assert "convert" in error.message


def test_shards_are_what_the_index_names_wherever_they_lie(tmp_path: Path) -> None:
    folder = tmp_path / "hub/tiny/one/main"
    write_files(folder, "config.json", *ODD, *SHARDS, INDEX, shards=ODD)
    with HubServer(tmp_path / "hub") as server, Cache(tmp_path / "cache", 10**6) as cache:
        (checkpoint,), _ = resolve(hub_of(server), select(RepositorySpec("tiny/one")))
        fetched = cache.fetch(hub_of(server), checkpoint)
        assert server.requests["resolve GET"] == 1 + len(checkpoint.files)
        assert {str(path.relative_to(fetched)) for path in fetched.rglob("*") if path.is_file()} == {
            *(file.path for file in checkpoint.files),
            MARKER,
        }
    expected = sorted(["config.json", INDEX, *ODD])
    (local,), _ = resolve(Hub("http://127.0.0.1:9"), select(RepositorySpec(str(folder))))
    assert [file.path for file in checkpoint.files] == [file.path for file in local.files] == expected
    assert all(file.sha256 for file in local.files)


def test_an_index_that_all_steps_share_is_read_once(tmp_path: Path) -> None:
    for step in range(12):
        write_files(tmp_path / f"tiny/one/step{step}", "config.json", *SHARDS, INDEX)
        (tmp_path / f"tiny/one/step{step}" / SHARDS[0]).write_text(str(step))
    with HubServer(tmp_path) as server:
        checkpoints, _ = resolve(hub_of(server), select(RepositorySpec("tiny/one", "step*")))
        assert len(checkpoints) == 12
        assert server.requests["resolve GET"] <= 8  # those that are asked at once


def test_no_config(tmp_path: Path) -> None:
    write_files(tmp_path / "tiny/one/main", "model.safetensors")
    with HubServer(tmp_path) as server:
        error = only_error(hub_of(server), RepositorySpec("tiny/one"))
    assert error.reason == "load_failed"
    assert "no config.json" in error.message


def test_one_bad_revision_does_not_hide_the_others(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny/one/step1", seed=1)
    write_files(tmp_path / "tiny/one/step2", "config.json")
    with HubServer(tmp_path) as server:
        checkpoints, unavailable = resolve(hub_of(server), select(RepositorySpec("tiny/one", "step*")))
    assert [checkpoint.revision for checkpoint in checkpoints] == ["step1"]
    assert [(error.revision, error.reason) for error in unavailable] == [("step2", "no_safe_weights")]
