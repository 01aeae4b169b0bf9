"""Sweeps on real Ray actors, over the real hub client, of trained checkpoints; processes killed midway."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from klray import texts
from klray.embedded.family import train_family
from klray.embedded.hub import HubServer
from klray.embedded.recipe import SMALLEST
from klray.store import Store

TEXTS = ["texts=python_stdlib", "texts.n=16"]
N_CHECKPOINTS = 2 * len(SMALLEST.saved_steps)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """The smallest family, and three repositories that cannot be scored."""
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(train_family(SMALLEST), root, dirs_exist_ok=True)
    good = root / "klray" / "tiny-46k-seed1" / "step40"
    for name in ("nan", "unknown", "short"):
        shutil.copytree(good, root / "broken" / name / "main")
    weights = load_file(good / "model.safetensors")
    poisoned = {key: torch.full_like(value, float("nan")) for key, value in weights.items()}
    save_file(poisoned, root / "broken" / "nan" / "main" / "model.safetensors", metadata={"format": "pt"})
    for name, change in (("unknown", {"model_type": "no-such"}), ("short", {"max_position_embeddings": 32})):
        config = root / "broken" / name / "main" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with HubServer(root) as server:
        yield server


def command(hub: HubServer, store: Path, *overrides: str, verb: str = "score") -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": str(hub.token)}
    arguments = [f"store.url={store}", f"scoring.cache_dir={store}-cache", *TEXTS, *overrides]
    return [sys.executable, "-m", f"jobs.{verb}", *arguments], environment


def run(
    hub: HubServer, store: Path, *overrides: str, verb: str = "score", code: int = 0
) -> subprocess.CompletedProcess[str]:
    arguments, environment = command(hub, store, *overrides, verb=verb)
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stdout + done.stderr
    return done


# The family through HF_ENDPOINT, as any other: only the endpoint is local.
FAMILY = ["models=tiny_smallest", "models.source=hub"]


def columns(store: Path) -> dict[str, str]:
    """SHA-256 of every committed column, each re-read and checked."""
    opened = Store.open(str(store))
    for commit in opened.commits():
        opened.read_column(commit)
    return {commit.key: commit.sha256 for commit in opened.commits()}


@pytest.fixture(scope="module")
def undisturbed(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that one worker filled, with nothing going wrong."""
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    done = run(hub, store, *FAMILY, "ray.workers=1")
    assert f"scored {N_CHECKPOINTS} checkpoints" in done.stdout
    assert len(columns(store)) == N_CHECKPOINTS
    return store


def test_cache_is_empty_after_a_sweep(undisturbed: Path) -> None:
    left = [path for path in Path(f"{undisturbed}-cache").rglob("*") if path.suffix == ".safetensors"]
    assert left == []


def test_second_sweep_scores_nothing_and_one_more_revision_scores_one(
    hub: HubServer, undisturbed: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    some = ["models.repo=klray/tiny-46k-seed1", "models.family=tiny_smallest"]
    first = run(hub, store, *some, "models.revisions=[step4,step8]")
    assert "scored 2 checkpoints" in first.stdout and "0 were there" in first.stdout
    before = columns(store)
    again = run(hub, store, *some, "models.revisions=[step4,step8]")
    assert "scored 0 checkpoints" in again.stdout and "2 were there" in again.stdout
    more = run(hub, store, *some, "models.revisions=[step4,step8,step12]")
    assert "scored 1 checkpoints" in more.stdout and "2 were there" in more.stdout
    after = columns(store)
    assert len(after) == 3 and before.items() <= after.items()
    whole = columns(undisturbed)
    assert after.items() <= whole.items()


def test_two_workers_give_the_same_bits_as_one(hub: HubServer, undisturbed: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run(hub, store, *FAMILY, "ray.workers=2")
    assert columns(store) == columns(undisturbed)


def test_what_cannot_be_scored_is_recorded_with_its_reason_and_the_sweep_goes_on(
    hub: HubServer, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    names = "broken/nan,broken/unknown,broken/short,broken/none,klray/tiny-46k-seed1"
    done = run(hub, store, f"models.names=[{names}]", "ray.workers=1", code=1)
    assert "scored 1 checkpoints" in done.stdout and "4 failed" in done.stdout
    assert re.search(r"^klray/tiny-46k-seed1 +1 +1 +0$", done.stdout, re.M)
    assert re.search(r"^broken/nan +1 +0 +1$", done.stdout, re.M)
    assert re.search(r"^broken/none +0 +0 +1$", done.stdout, re.M)
    assert re.search(r"^all +4 +1 +4$", done.stdout, re.M)
    assert re.search(r"^broken/short@main +text_too_long +text \d+ has", done.stdout, re.M)
    failures = {failure.repository: failure for failure in Store.open(str(store)).failures()}
    assert {name: failure.reason for name, failure in failures.items()} == {
        "broken/nan": "non_finite",
        "broken/unknown": "load_failed",
        "broken/short": "text_too_long",
        "broken/none": "repository_not_found",
    }
    assert "text 0 a log-likelihood of nan" in failures["broken/nan"].message
    assert "the model's context holds 32" in failures["broken/short"].message
    assert f"{store}-cache" not in "".join(failure.message for failure in failures.values())
    status = run(hub, store, verb="status")
    assert "failures   4" in status.stdout and re.search(r"broken/short@main +text_too_long", status.stdout)


def test_two_jobs_at_once_share_the_work(hub: HubServer, undisturbed: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    arguments, environment = command(hub, store, *FAMILY, "ray.workers=1")
    jobs = [
        subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)
    ]
    assert [job.wait(timeout=240) for job in jobs] == [0, 0], [job.communicate()[1].decode() for job in jobs]
    said = [job.communicate()[0].decode() for job in jobs]
    assert columns(store) == columns(undisturbed)
    scored = [int(re.search(r"scored (\d+) checkpoints", text)[1]) for text in said]  # type: ignore[index]
    assert sum(scored) == N_CHECKPOINTS


def test_actor_killed_while_it_starts_is_tried_again(hub: HubServer, undisturbed: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    some = ["models.repo=klray/tiny-46k-seed1", "models.revisions=[step4]", "models.family=tiny_smallest"]
    arguments, environment = command(hub, store, *some, "ray.workers=1")
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not (found := actors_of(process.pid)):
            assert process.poll() is None, "the sweep ended before it could be disturbed"
            time.sleep(0.005)
        found[0].send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors.decode()
    assert "trying once more" in errors.decode()
    assert columns(store).items() <= columns(undisturbed).items()


def test_plan_says_what_is_there_and_what_cannot_be(hub: HubServer, undisturbed: Path) -> None:
    done = run(hub, undisturbed, *FAMILY, verb="plan")
    assert f"present     {N_CHECKPOINTS}" in done.stdout and "to score    0" in done.stdout
    other = run(hub, undisturbed, "models.repo=klray/tiny-46k-seed1", "models.revisions=nothing*", verb="plan", code=1)
    assert "cannot   klray/tiny-46k-seed1@nothing*  revision_not_found" in other.stdout


def actors_of(driver: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if process.cmdline() and process.cmdline()[0].startswith("ray::ScorerActor"):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def wait_for_commits(store: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if len(list((store / "commits").glob("*.json"))) >= count:
            return
        assert process.poll() is None, "the sweep ended before it could be disturbed"
        time.sleep(0.01)
    raise AssertionError(f"no {count} commits within 200 s")


def test_killed_actor_is_replaced_and_every_column_is_the_same(
    hub: HubServer, undisturbed: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    arguments, environment = command(hub, store, *FAMILY, "ray.workers=1")
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        wait_for_commits(store, 3, process)
        (actor,) = actors_of(process.pid)
        actor.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors.decode()
    assert "its worker died, trying once more" in errors.decode()
    assert columns(store) == columns(undisturbed)


def test_killed_driver_leaves_nothing_behind_but_columns_and_the_rest_follows(
    hub: HubServer, undisturbed: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    arguments, environment = command(hub, store, *FAMILY, "ray.workers=1")
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for_commits(store, 3, process)
        actors = actors_of(process.pid)
        assert actors
        process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(actors, timeout=60)
    assert alive == []
    scored = len(columns(store))
    assert 3 <= scored < N_CHECKPOINTS
    done = run(hub, store, *FAMILY, "ray.workers=1")
    assert f"scored {N_CHECKPOINTS - scored} checkpoints" in done.stdout
    assert columns(store) == columns(undisturbed)


def test_another_text_set_is_refused_before_anything_is_scored(hub: HubServer, undisturbed: Path) -> None:
    done = run(hub, undisturbed, *FAMILY, "texts.n=17", code=1)
    assert "holds 16 texts" in done.stderr and "17 texts were given" in done.stderr
    assert "Traceback" not in done.stderr


def test_text_set_of_the_sweep_is_the_store_s(undisturbed: Path) -> None:
    assert Store.open(str(undisturbed)).texts.fingerprint == texts.python_stdlib(n=16).fingerprint
