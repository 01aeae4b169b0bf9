"""Processes that klray starts: nobody's files run in them, nobody else talks to them, and they end when asked to."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import klray
from klray.analysis.cluster import dask_scheduler
from klray.checkpoints import Hub
from klray.errors import KlrayError
from klray.sweep import processes
from klray.sweep.cluster import connected
from klray.sweep.settings import RaySettings
from klray.words.secrets import without_secrets
from tests.hostile.working_directory import listening

ROOT = Path(str(klray.__file__)).parents[1]
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
EVIL = "import os\nos.close(os.open(os.environ['MARK'] + '/' + __name__, os.O_CREAT))\nraise ImportError('evil')\n"
NAMES = ["secrets", "regex", "jinja2", "yaml", "filelock", "torch", "hydra", "tokenizers", "numpy", "klray", "conf"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stranger's folder; a module that is imported from it leaves a file in ``marks`` beside it."""
    place = tmp_path_factory.mktemp("stranger")
    (place / "marks").mkdir()
    (place / "clone").mkdir()
    for name in NAMES:
        (place / "clone" / f"{name}.py").write_text(EVIL)
    return place / "clone"


def marks(folder: Path) -> list[str]:
    return sorted(each.name for each in (folder.parent / "marks").iterdir())


def environment(folder: Path, **more: str) -> dict[str, str]:
    without = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR", "TMPDIR")
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return {**kept, "MARK": str(folder.parent / "marks"), "PYTHONPATH": str(ROOT), **more}


@pytest.fixture(scope="module")
def job(folder: Path) -> Iterator[dict[str, Any]]:
    """What a job in the folder found, in an environment that is against it."""
    temporary = folder.parent / ("scratch_of_a_batch_job_on_a_shared_file_system" * 2)
    temporary.mkdir()
    home = folder.parent / "home"
    against = {
        "TMPDIR": str(temporary),
        "HOME": str(home),
        "HUB_ROOT": str(temporary),
        "RAY_ADDRESS": "127.0.0.1:9",
        "RAY_AUTH_MODE": "disabled",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    with subprocess.Popen(
        [sys.executable, "-P", str(ROOT / "tests" / "hostile" / "working_directory.py")],
        cwd=folder, env=environment(folder, **against), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            found: dict[str, Any] = json.loads(process.stdout.readline() or "{}")
            if found:
                found["modes"] = [stat.S_IMODE(Path(found["temp"]).parent.stat().st_mode)]
            process.send_signal(signal.SIGTERM)
            found["said"] = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    found["code"] = process.returncode
    found["kept"] = [str(each) for each in home.rglob("*") if ".ray" in each.parts]
    yield found


@pytest.mark.slow
def test_modules_of_the_working_directory_run_nowhere(job: dict[str, Any], folder: Path) -> None:
    assert marks(folder) == [] and job["alive"]
    assert str(folder) not in job["path"] and "" not in job["path"]
    assert job["cwd"] == "/"


@pytest.mark.slow
def test_a_cluster_of_this_machine_is_its_owners(job: dict[str, Any]) -> None:
    assert len(job["listening"]) > 3 and set(job["listening"]) <= LOOPBACK
    assert not job["shown"] and job["kept"] == []
    assert Path(job["sockets"]).parent == Path(job["temp"]).parent
    assert job["modes"] == [0o700] and not Path(job["temp"]).exists()


@pytest.mark.slow
def test_sigterm_ends_a_job_as_an_interrupt_does(job: dict[str, Any]) -> None:
    assert job["code"] == 128 + signal.SIGTERM
    assert job["said"].splitlines()[-1].startswith("klray: error: interrupted; what was committed is safe")
    assert "***" not in job["said"] and "Traceback" not in job["said"] and len(job["said"].splitlines()) < 4


@pytest.mark.slow
@pytest.mark.parametrize("command", [["jobs", "plan", "--cfg", "job"], ["jobs.status", "--cfg", "job"]])
def test_what_python_m_puts_on_the_path_is_taken_off(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment(folder), capture_output=True, text=True
    )
    assert done.returncode == 0 and "models:" in done.stdout and marks(folder) == []


@pytest.mark.slow
def test_settings_of_the_working_directory_are_not_followed(tmp_path: Path) -> None:
    """matplotlib evaluates the cycle of colours before 3.11, and lets a preamble for LaTeX read files."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 3\n")
    program = "import klray.report.figures, matplotlib as m; print(m.rcParams['text.usetex'], m.rcParams['font.size'])"
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    assert done.stdout == "False 10.0\n", done.stderr


def test_a_childs_path_is_without_relative_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty entry of PYTHONPATH, as `export PYTHONPATH=$PYTHONPATH:/opt/x` leaves it, is the working directory."""
    monkeypatch.setenv("PYTHONPATH", ":.:clone:/opt/x")
    given = {**environment(folder), **processes.safe_environment()}
    program = "import sys, klray, secrets; print(sys.path)"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=given, capture_output=True, text=True)
    assert done.returncode == 0 and marks(folder) == []
    assert str(folder) not in done.stdout and "/opt/x" in done.stdout and "''" not in done.stdout


def test_variables_last_as_long_as_their_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", "1")
    monkeypatch.delenv("TWO", raising=False)
    with pytest.raises(ZeroDivisionError), processes.with_environment({"ONE": None, "TWO": "2"}):
        assert "ONE" not in os.environ and os.environ["TWO"] == "2"
        raise ZeroDivisionError
    assert os.environ["ONE"] == "1" and "TWO" not in os.environ


SOCKET = "s" * 60


def test_sockets_go_where_their_names_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    long = tmp_path / ("l" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert processes.socket_folder(SOCKET) == "/tmp"
    monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
    assert processes.socket_folder(SOCKET) == "/dev/shm"
    with processes.private_folder(SOCKET) as private:
        assert stat.S_IMODE(private.stat().st_mode) == 0o700 and len(str(private / SOCKET)) < 104
    assert not private.exists()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert processes.socket_folder(SOCKET) == "/tmp"
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with pytest.raises(KlrayError, match=f"^RAY_TMPDIR={long}: .*set RAY_TMPDIR to a short one"):
        processes.socket_folder(SOCKET)
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(KlrayError, match=f"^TMPDIR={long}: .*set RAY_TMPDIR to a short one"):
        processes.socket_folder("s" * 110)


@pytest.mark.parametrize(
    ("lower", "upper", "found"),
    [
        (None, None, "127.0.0.1,localhost,::1"),
        ("", "a.b", "a.b,127.0.0.1,localhost,::1"),
        ("localhost,a.b", "", "localhost,a.b,127.0.0.1,::1"),
        ("*", None, "*"),
    ],
)
def test_loopback_is_asked_past_proxies(
    lower: str | None, upper: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("no_proxy", lower), ("NO_PROXY", upper)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    processes.spare_loopback()
    assert os.environ["no_proxy"] == found


@pytest.mark.slow
def test_a_dask_cluster_of_this_machine_shows_nobody_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it write where another user, who knows where it usually does, has put links."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "dask-scratch-space").mkdir(mode=0o777)
    for lock in ("global.lock", "purge.lock"):
        (tmp_path / "dask-scratch-space" / lock).symlink_to(tmp_path / "mine")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = len(listening({os.getpid()}))
    with dask_scheduler("distributed"):
        found = listening({os.getpid()})
    assert len(found) > before and set(found) <= LOOPBACK
    assert (tmp_path / "mine").read_text() == "mine" and not list(tmp_path.glob("klray-*"))


@pytest.mark.slow
def test_pytorch_compiles_nothing_in_a_process_of_klrays(folder: Path) -> None:
    """What it compiled before, it takes from a folder whose name is known to everybody."""
    program = "import torch; f = lambda x: x; print(torch.compile(f) is f)"
    given = {**environment(folder), **processes.safe_environment()}
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=given, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("kept", ["", "no token in it"])
def test_a_token_that_is_announced_and_not_there(kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself ends the process then."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    if kept:
        (tmp_path / "token").write_text(" \n")
    with (
        pytest.raises(KlrayError, match=r"there is no token in .*set RAY_AUTH_MODE=token, and the cluster's token"),
        connected(RaySettings(address="auto")),
    ):
        pass


JOIN = """
import sys
from klray.config.job import run
from klray.sweep.cluster import connected
from klray.sweep.settings import RaySettings
import ray
init = ray.init
ray.init = lambda *words, **more: (print("Ray is asked"), init(*words, **more))
def work(_):
    with connected(RaySettings(address=sys.argv.pop())):
        print(ray.get(ray.remote(lambda: sys.path).remote()))
address = sys.argv[1]
def load():
    sys.argv.append(address)
    return lambda config: work(config) or 0
sys.argv = ["klray status"]
sys.exit(run("status", load))
"""


@pytest.mark.slow
def test_a_cluster_that_wants_a_token(folder: Path, tmp_path: Path) -> None:
    token = "f00d" * 10
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "HOME": str(tmp_path)}
    mine = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    with processes.private_folder("ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store") as place:
        given = environment(folder, **loopback, **mine, RAY_TMPDIR=str(place))
        words = "start --head --block --node-ip-address=127.0.0.1 --port=0 --num-cpus=1 --include-dashboard=false"
        head = subprocess.Popen(
            [str(Path(sys.executable).with_name("ray")), *words.split(), "--disable-usage-stats"],
            cwd=tmp_path, env=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            file, begun = place / "ray" / "ray_current_cluster", time.monotonic()
            while not file.exists() and time.monotonic() - begun < 300:
                time.sleep(0.1)
            address = file.read_text().strip()

            def join(**more: str) -> tuple[str, str]:
                done = subprocess.run(
                    [sys.executable, "-P", "-c", JOIN, address],
                    cwd=folder, env=environment(folder, **loopback, **more), capture_output=True, text=True,
                )  # fmt: skip
                return done.stdout, done.stderr

            for refused in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another-" * 5}):
                out, said = join(**refused)
                assert out == "" and len(said.splitlines()) == 1  # Ray itself would wait for 30 s
                assert "the cluster refuses" in said and "RAY_AUTH_TOKEN" in said and "another-" not in said
            out, said = join(**mine)
            assert "Ray is asked" in out and "site-packages" in out and str(folder) not in out and token not in said
            assert marks(folder) == []
        finally:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait(30)


MALFORMED = [
    "https://me:hu/sh-word@hub.example",
    "https://me:hush#word@hub.example/a",
    "https://me:hush-word@hub.example:port",
    "me:hush-word@hub.example",
    "https:/me:hush-word@hub.example",
    "https://me:hush[word@hub.example",
    "https://me:hush-word",
    "https://me:hush-word@hub@hub.example",
    "ftp://me:hush-word@hub.example",
]


@pytest.mark.parametrize("endpoint", MALFORMED)
def test_no_password_of_a_malformed_address_is_said(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(KlrayError, match="HF_ENDPOINT holds no address") as refused:
        Hub.from_environment()
    password = endpoint.partition("me:")[2].rpartition("@hub.ex")[0] or "hush-word"
    for words in (str(refused.value), without_secrets(f"cannot ask {endpoint}: {password} is no port")):
        assert "hush" not in words and "sh-word" not in words and "word@" not in words


def test_a_password_with_a_slash_is_taken_out_of_any_url() -> None:
    assert without_secrets("503 for https://me:wo/rd@host:80/a, see http://host:8080/a@b") == (
        "503 for https://host:80/a, see http://host:8080/a@b"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_ENDPOINT", "https://me:hush[word@hub.example"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "hush"),
        ("HF_ENDPOINT", "http://["),
    ],
)
def test_a_variable_at_which_a_library_fails_is_named_and_not_said(name: str, value: str, tmp_path: Path) -> None:
    command = processes.module_command(
        "jobs", "plan", "models.repo=a/b", f"store.url={tmp_path / 'store'}", "texts.n=4"
    )
    done = subprocess.run(command, env={**os.environ, name: value}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        f"klray: error: {name}" in done.stderr
        and "Traceback" not in done.stderr
        and "hush" not in done.stderr + done.stdout
    )


@pytest.mark.slow
def test_a_verb_whose_output_goes_nowhere_ends_as_it_would(tmp_path: Path) -> None:
    command = processes.module_command("jobs", "status", f"store.url={tmp_path}")
    shell = ["sh", "-c", '"$@" >&-', "sh", *command]
    done = subprocess.run(shell, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there is no klray store" in done.stderr and "Traceback" not in done.stderr
