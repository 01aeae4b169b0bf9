"""Sweeps on real Ray actors, over the real hub client, of trained checkpoints; processes killed midway."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from klray import texts
from klray.store import Store
from klray.tiny.family import train_family
from klray.tiny.family_recipe import SMALLEST
from klray.tiny.hub_server import HubServer
from tests.hub_faults import NotingHub, holding_back
from tests.sweep_command import FAMILY, N_CHECKPOINTS, columns, command, run
from tests.test_cli import klray as klray_says

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest family, three repositories that cannot be scored, and one that will kill whoever asks for it."""
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(train_family(SMALLEST), root, dirs_exist_ok=True)
    good = root / "klray" / "tiny-46k-seed1" / "step40"
    shutil.copytree(good.with_name("step8"), root / "broken" / "lethal" / "main")
    for name in ("nan", "unknown", "short"):
        shutil.copytree(good, root / "broken" / name / "main")
    weights = load_file(good / "model.safetensors")
    poisoned = {key: torch.full_like(value, float("nan")) for key, value in weights.items()}
    save_file(poisoned, root / "broken" / "nan" / "main" / "model.safetensors", metadata={"format": "pt"})
    for name, change in (("unknown", {"model_type": "no-such"}), ("short", {"max_position_embeddings": 32})):
        config = root / "broken" / name / "main" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    return root


@pytest.fixture(scope="module")
def hub(root: Path) -> Iterator[HubServer]:
    with HubServer(root) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(swept_store: Path) -> Path:
    """A store that one worker filled, with nothing going wrong; nobody may change it."""
    assert len(columns(swept_store)) == N_CHECKPOINTS
    return swept_store


def test_cache_is_empty_after_a_sweep(undisturbed: Path) -> None:
    left = [path for path in Path(f"{undisturbed}-cache").rglob("*") if path.suffix == ".safetensors"]
    assert left == []


def test_commits_name_host_and_job_and_the_job_has_said_how_it_ended(undisturbed: Path) -> None:
    store = Store.open(str(undisturbed))
    ((job, host),) = {(commit.facts["job"], commit.facts["host"]) for commit in store.commits()}
    heard = next(each.job for each in store.heard_jobs() if each.job.job == job)
    assert host == heard.host == socket.gethostname()
    assert (heard.state, heard.done, heard.scored, heard.asked) == ("done", *3 * (N_CHECKPOINTS,))
    assert heard.family == "tiny_smallest" and heard.tokens > 0 and 0 < heard.waiting < 1


def test_second_sweep_scores_nothing(hub: HubServer, undisturbed: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(undisturbed, store)
    again = run(hub, store, *FAMILY, "ray.workers=1")
    assert "scored 0 checkpoints" in again.stdout and f"{N_CHECKPOINTS} were there" in again.stdout
    assert columns(store) == columns(undisturbed)


@pytest.fixture
def verb(
    hub: HubServer, undisturbed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """A verb in this process, on the store that is filled, which starts no worker."""

    def said(name: str, *overrides: str) -> tuple[int, str, str]:
        arguments, environment = command(hub, undisturbed, *overrides)
        for variable in ("HF_ENDPOINT", "HF_TOKEN"):
            monkeypatch.setenv(variable, environment[variable])
        return klray_says(capsys, monkeypatch, name, *arguments[3:])

    return said


def test_plan_says_what_is_there_and_what_cannot_be(verb: Callable[..., tuple[int, str, str]]) -> None:
    asked = (("seed1", "step*"), ("seed2", "nothing*"))
    each = [f"{{repository: klray/tiny-46k-{seed}, revisions: '{revisions}'}}" for seed, revisions in asked]
    code, out, _ = verb("plan", f"models.repositories=[{', '.join(each)}]")
    assert code == 1
    assert f"present     {N_CHECKPOINTS // 2}" in out and "to score    0" in out
    assert "cannot   klray/tiny-46k-seed2@nothing*  revision_not_found" in out


def actors_of(driver: int) -> list[psutil.Process]:
    """Processes that score; while they do, Ray calls them by the checkpoint."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            words = process.cmdline()  # none of one that is ending
        except psutil.Error:
            continue
        other = ("ray::IDLE", "ray::Board", "ray::Dashboard", "ray::RuntimeEnv")
        if words and words[0].startswith("ray::") and not words[0].startswith(other):
            found.append(process)
    return found


def wait_for_commits(store: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        if len(list((store / "commits").glob("*.json"))) >= count:
            return
        assert process.poll() is None, "the sweep ended before it could be disturbed"
        time.sleep(0.01)
    raise AssertionError(f"no {count} commits within 400 s")


def test_actors_that_are_killed_are_replaced_and_every_column_is_the_same(
    root: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """One while it starts, and the next one in the middle of the sweep."""
    store = tmp_path / "store"
    with holding_back(root, after=N_CHECKPOINTS // 2) as (hub, go_on):
        arguments, environment = command(hub, store, *FAMILY, "ray.workers=1")
        with subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            while not (found := actors_of(process.pid)):
                assert process.poll() is None, "the sweep ended before it could be disturbed"
                time.sleep(0.05)
            found[0].send_signal(signal.SIGKILL)
            wait_for_commits(store, 3, process)
            (actor,) = [each for each in actors_of(process.pid) if each.pid != found[0].pid]
            actor.send_signal(signal.SIGKILL)
            go_on.set()
            _, errors = process.communicate(timeout=480)
            assert process.returncode == 0, errors.decode()
    assert errors.decode().count("trying once more") >= 2
    assert "its worker died, trying once more" in errors.decode()
    assert columns(store) == columns(undisturbed)


def test_killed_driver_leaves_nothing_behind_but_columns_and_two_jobs_at_once_score_the_rest(
    root: Path, hub: HubServer, undisturbed: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    with holding_back(root) as (slow_hub, _):
        arguments, environment = command(slow_hub, store, *FAMILY, "ray.workers=1")
        with subprocess.Popen(
            arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            wait_for_commits(store, 3, process)
            actors = actors_of(process.pid)
            assert actors
            process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(actors, timeout=480)
        assert alive == []
    scored = len(columns(store))
    assert 3 <= scored < N_CHECKPOINTS
    jobs = []
    for workers in (1, 2):
        arguments, environment = command(hub, store, *FAMILY, f"ray.workers={workers}")
        jobs.append(subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    said = [[stream.decode() for stream in job.communicate(timeout=480)] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    assert columns(store) == columns(undisturbed)  # the same bits, of one worker or two
    shares = [int(re.search(r"scored (\d+) checkpoints?", out)[1]) for out, _ in said]  # type: ignore[index]
    assert sum(shares) == N_CHECKPOINTS - scored


def test_what_cannot_be_scored_is_recorded_with_its_reason_and_the_sweep_goes_on(root: Path, tmp_path: Path) -> None:
    """Whoever asks for the weights of one is killed, as often as is configured; the others are scored."""
    store, died = tmp_path / "store", list[int]()
    names = [*(f"broken/{each}" for each in ("lethal", "nan", "unknown", "short", "none")), "klray/tiny-46k-seed1"]
    with NotingHub(root) as hub:
        some = [f"models.names=[{','.join(names)}]", "ray.workers=1", "ray.max_attempts=3"]
        arguments, environment = command(hub, store, *some)
        with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:

            def kill(path: str) -> None:
                if path.startswith("broken/lethal/"):
                    for actor in actors_of(process.pid):
                        died.append(actor.pid)
                        actor.send_signal(signal.SIGKILL)

            hub.before_weights = kill
            said, errors = (stream.decode() for stream in process.communicate(timeout=480))
        assert process.returncode == 1, errors
        status = run(hub, store, verb="status")
    assert len(set(died)) >= 3  # each time another process
    assert "scored 1 checkpoint in" in said and "5 failed" in said
    assert re.search(r"^klray/tiny-46k-seed1 +1 +1 +0$", said, re.M)
    assert re.search(r"^broken/nan +1 +0 +1$", said, re.M)
    assert re.search(r"^broken/none +0 +0 +1$", said, re.M)
    assert re.search(r"^all +5 +1 +5$", said, re.M)
    assert re.search(r"^broken/short@main +text_too_long +text \d+ has", said, re.M)
    failures = {failure.repository: failure for failure in Store.open(str(store)).failures()}
    assert {name: failure.reason for name, failure in failures.items()} == {
        "broken/lethal": "worker_died",
        "broken/nan": "non_finite",
        "broken/unknown": "load_failed",
        "broken/short": "text_too_long",
        "broken/none": "repository_not_found",
    }
    assert "the process that scored it died 3 times" in failures["broken/lethal"].message
    assert "text 0 a log-likelihood of nan" in failures["broken/nan"].message
    assert "the model's context holds 32" in failures["broken/short"].message
    assert f"{store}-cache" not in "".join(failure.message for failure in failures.values())
    assert "failures   5" in status.stdout and re.search(r"broken/short@main +text_too_long", status.stdout)


def test_another_text_set_is_refused_before_anything_is_scored(hub: HubServer, undisturbed: Path) -> None:
    done = run(hub, undisturbed, *FAMILY, "texts.n=17", code=1)
    assert "holds 16 texts" in done.stderr and "is given 17 texts" in done.stderr
    assert "Traceback" not in done.stderr


def test_text_set_of_the_sweep_is_the_store_s(undisturbed: Path) -> None:
    assert Store.open(str(undisturbed)).texts.fingerprint == texts.python_stdlib(n=16).fingerprint


@pytest.fixture(scope="module")
def doubled_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same files under step4 and step5, under step8 in two repositories; step4's weights with another config."""
    root = tmp_path_factory.mktemp("doubled")
    run = train_family(SMALLEST) / "klray" / "tiny-46k-seed1"
    for name, step in (
        ("doubled/run/step4", 4),
        ("doubled/run/step5", 4),
        ("doubled/run/step6", 4),
        ("doubled/run/step8", 8),
        ("twin/run/step8", 8),
    ):
        shutil.copytree(run / f"step{step}", root / name)
    for name in ("doubled/run/step5", "twin/run/step8"):
        (root / name / "README.md").write_text("so that it is a commit of its own")
    config = root / "doubled/run/step6/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rope_theta": 500.0}))
    return root


@pytest.fixture
def noting(doubled_root: Path) -> Iterator[NotingHub]:
    with NotingHub(doubled_root) as server:
        yield server


def test_checkpoints_with_the_same_files_are_fetched_and_scored_once_and_recorded_each(
    noting: NotingHub, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    some = ["models.revisions=step*", "ray.workers=1"]
    done = run(noting, store, "models.names=[doubled/run]", *some)
    assert "scored 4 checkpoints" in done.stdout and "1 of these hold the same files as another" in done.stdout
    opened = Store.open(str(store))
    commits = {str(commit.facts["revision"]): commit for commit in opened.commits()}
    values = {revision: opened.read_column(commit).tobytes() for revision, commit in commits.items()}
    assert values["step4"] == values["step5"]
    assert values["step4"] != values["step8"]
    scored, taken = sorted((commits["step4"], commits["step5"]), key=lambda commit: "taken_from" in commit.facts)
    assert taken.facts["taken_from"] == f"doubled/run@{scored.identity.commit}" and "taken_from" not in scored.facts
    assert (commits["step4"].facts["step"], commits["step5"].facts["step"]) == (4, 5)
    assert commits["step4"].path != commits["step5"].path
    assert "taken_from" not in commits["step6"].facts  # the same weights with another config are another checkpoint
    fetched = [path for _, path in noting.weights]
    assert len(fetched) <= 3  # 2, where step6 finds those of step4 on the disk, or the other way round
    assert len({f"doubled/run/{commits[name].identity.commit}" for name in ("step4", "step5")} & set(fetched)) <= 1
    # What is asked for later takes over what is there, in another repository, too; none takes a column that is damaged.
    (store / "commits" / f"{commits['step5'].key}.json").unlink()
    (chunk,) = (path for path in (store / commits["step4"].path / "log_likelihood/c").rglob("0") if path.is_file())
    sound = chunk.read_bytes()
    chunk.write_bytes(bytes(len(sound)))
    more = run(noting, store, "models.names=[doubled/run,twin/run]", *some)
    assert "scored 2 checkpoints in" in more.stdout and "1 of these hold the same files as another" in more.stdout
    assert len(noting.weights) == len(fetched) + 1
    chunk.write_bytes(sound)
    assert opened.audit().damages == () and opened.audit().sound == 5
    later = {f"{each.identity.repository}@{each.facts['revision']}": each.facts for each in opened.commits()}
    assert later["twin/run@step8"]["taken_from"] == f"doubled/run@{commits['step8'].identity.commit}"
    assert "taken_from" not in later["doubled/run@step5"]


def test_all_actors_pause_when_the_hub_tells_one_of_them(tmp_path: Path) -> None:
    """Two workers; the first request for weights is told to come back in 8 s, and then no worker asks for any.

    The other worker's request may be on its way already: it is answered once the word has come to the driver.
    """
    told, heard, errors = re.compile(r"\S+ \S+.*: the hub wants to be left alone for \d s more"), threading.Event(), ""
    with NotingHub(train_family(SMALLEST)) as server:
        server.refusals, server.pause = 1, 8
        server.before_weights = lambda path: len(server.weights) != 2 or heard.wait(server.pause)
        some = ["models.names=[klray/tiny-46k-seed1]", "models.revisions=step*", "ray.workers=2"]
        arguments, environment = command(server, tmp_path / "store", *some)
        with subprocess.Popen(
            arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            for line in process.stderr:
                errors += line
                if told.match(line):
                    heard.set()
            out = process.stdout.read()
    n_checkpoints = len(SMALLEST.saved_steps)
    assert f"scored {n_checkpoints} checkpoints" in out, errors
    assert heard.is_set(), errors
    after = [when - server.weights[0][0] for when, _ in server.weights[1:]]
    assert len(after) >= n_checkpoints
    assert len([seconds for seconds in after if seconds < server.pause]) <= 1
