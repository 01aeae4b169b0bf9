"""What workers and models warn of is kept with the column, and told by score, status and report, once for each kind."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

from klray.analysis.analyze import analyze
from klray.checkpoints import Checkpoint, Hub, RepositorySpec, Selection, resolve
from klray.report.sections.section_warnings import warnings_section
from klray.store import Store
from klray.sweep.settings import ScoringSettings
from klray.texts import TextSet
from klray.words.heard import LONGEST_WARNING, MOST, Heard, heard, joined, kinds, parted
from tests.scorers import scorer_here
from tests.stores import TEXTS, add, column
from tests.test_jobs import JOB
from tests.tiny_models import byte_level_tokenizer, texts, tiny_config

log = logging.getLogger("klray")
NO_HEAD = "scoring one text per forward pass"


def test_what_is_heard_is_told_once_for_each_kind_and_fit_to_be_kept() -> None:
    with heard() as warned:
        for slots in (8192, 4096):
            log.warning("out of memory with %d tokens", slots)
        log.warning("two\nlines \x1b[2J https://me:word@host/a | %s", "x" * 5000)
        log.info("no warning")
        log.error("raised, too")
        logging.getLogger("other").warning("of another library")
    log.warning("too late")
    first, odd = warned.take()
    assert first == "out of memory with 8192 tokens"
    assert odd.startswith("two lines �[2J https://host/a") and len(odd) <= LONGEST_WARNING
    assert parted(joined([first, odd])) == [first, odd]
    assert warned.take() == []
    assert joined("of a stranger") == joined(None) == joined([7]) == "" and parted("") == []


def test_kinds_are_bounded() -> None:
    with heard() as warned:
        for letter in "abcdefghijklmnop":
            log.warning("of kind %s", letter)
    assert len(warned.take()) == MOST


@pytest.mark.filterwarnings("error")
def test_a_warning_that_cannot_be_worded_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    warned = Heard()
    warned.emit(logging.LogRecord("klray", logging.WARNING, __file__, 1, "%d", ("no number",), None))
    assert warned.take() == []


def test_kinds_are_counted_over_checkpoints() -> None:
    found = kinds(
        [("a", ["no sketch", "out of memory at 8e+01"]), ("b", ["out of memory at 4", "out of memory at 2e-05"])]
    )
    assert [tuple(each) for each in found] == [("out of memory at 8e+01", 2, "a"), ("no sketch", 1, "a")]


def test_status_and_report_tell_of_columns_with_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.status import status
    from klray.config import Config, LogConfig, StoreConfig

    store = Store.create(str(tmp_path / "store"), TEXTS)
    add(store, column("a", 1, warnings=["no sketch: why"]), column("a", 2, warnings=["no sketch: why"]), column("a", 3))
    status(Config(store=StoreConfig(url=store.url)))
    said = capsys.readouterr().out
    assert "warnings   2 columns" in said
    assert re.search(r"\n2 +org/a@step1 +no sketch: why\n", said)
    store.beat(JOB)
    status(Config(store=StoreConfig(url=store.url), log=LogConfig(json=True)))
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert (found["store"], found["columns"], found["warned_columns"], found["published_columns"]) == (
        store.url,
        3,
        2,
        0,
    )
    assert [(each["family"], each["columns"]) for each in found["families"]] == [("fam", 3)]
    assert [(each["host"], each["done"]) for each in found["jobs"]] == [(JOB.host, JOB.done)]
    store.publish()
    result = analyze(store.dataset(), tsne=False, exclude=(), outlier_fraction=0).load()
    assert result["warnings"].values.tolist() == ["no sketch: why"] * 2 + [""]
    section = warnings_section(result)
    assert section is not None
    assert section.tables[0].rows == [("2", "org/a@step1", "no sketch: why")]
    assert warnings_section(result.isel(model=[2])) is None


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints of a model whose head klray cannot use: it has a transform of its own in front."""
    config = tiny_config("bert")
    config.is_decoder = True
    folders = [tmp_path_factory.mktemp("models") / name for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            transformers.BertLMHeadModel(config).save_pretrained(folder)
        byte_level_tokenizer().save_pretrained(folder)
    return folders


def found_in(folders: list[Path]) -> list[Checkpoint]:
    specs = tuple(RepositorySpec(str(folder)) for folder in folders)
    checkpoints, _ = resolve(Hub("http://127.0.0.1:9"), Selection("f", specs))
    return checkpoints


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_column_keeps_what_was_warned_of(models: list[Path], tmp_path: Path, threads: None) -> None:
    short = TextSet("short", tuple(texts()), ("prose",) * len(texts()))
    store, settings = Store.create(str(tmp_path / "store"), short), ScoringSettings(cache_dir=str(tmp_path / "cache"))
    scorer = scorer_here(Hub("http://127.0.0.1:9"), store.url, short, settings)
    for each in found_in(models):
        scorer.score(each)
    for commit in store.commits():
        (text,) = commit.facts["warnings"]
        assert text.startswith("BertLMHeadModel: ") and NO_HEAD in text
        assert not any(str(folder) in text for folder in models)


@pytest.mark.slow
def test_score_tells_of_warnings_when_they_happen_and_at_the_end(models: list[Path], tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "text {i} of some length"}}\n' for i in range(6)))
    repositories = ", ".join(f"{{repository: {folder}}}" for folder in models)
    common = [f"store.url={tmp_path / 'store'}", "texts=jsonl", f"texts.path={tmp_path / 'texts.jsonl'}"]
    command = ["-m", "jobs.score", f"models.repositories=[{repositories}]", "models.family=f", *common, "ray.workers=1"]
    done = subprocess.run([sys.executable, *command], env=dict(os.environ), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(NO_HEAD) == done.stderr.count(NO_HEAD) == 1
    (logged,) = [line for line in done.stderr.splitlines() if NO_HEAD in line]  # of the first, when it happened
    assert any(f" {socket.gethostname()} {folder}@local: " in logged for folder in models)
    (line,) = [line for line in done.stdout.splitlines() if NO_HEAD in line]
    number, first, *_ = line.split()
    assert number == "2" and first in [f"{folder}@local" for folder in models]
