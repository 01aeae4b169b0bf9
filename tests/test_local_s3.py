"""infra/local_s3/ceph.sh as a user runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3_server import CEPH, S3Server, read_variables, why_no_ceph


def ceph(*arguments: str | Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"PATH": path} if path else {})}
    command = [str(CEPH), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def processes_of(folder: Path) -> list[str]:
    """Programs whose command line names the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # ended since
            continue
        if str(folder) in command:
            found.append(command.split("\0")[0])
    return sorted(found)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    if why := why_no_ceph():
        pytest.skip(f"no Ceph: {why}")
    yield tmp_path / "a server"
    ceph("stop", tmp_path / "a server")


@pytest.mark.slow
def test_objects_outlive_a_stop_and_a_stop_leaves_no_process(folder: Path) -> None:
    started = ceph("start", folder)
    assert started.stdout.startswith("ready: http://127.0.0.1:"), started.stderr
    assert processes_of(folder) == ["ceph-mon", "ceph-osd", "radosgw"]
    first = S3Server(read_variables(folder / "credentials.env"))
    assert ceph("start", folder).stdout.startswith(f"runs already: {first.endpoint}")
    first.make_bucket("kept")
    first.client().put_object(Bucket="kept", Key="one", Body=b"kept")
    assert ceph("user", folder, "ann").stdout.strip() == str(folder / "ann.env")
    assert "there is a user ann already" in ceph("user", folder, "ann").stderr
    assert {path.stat().st_mode & 0o777 for path in folder.glob("*.env")} == {0o600}
    assert ceph("stop", folder).returncode == 0
    assert processes_of(folder) == []
    assert "start it without --memory" in ceph("start", "--memory", folder).stderr
    assert ceph("start", folder).returncode == 0
    again = S3Server(read_variables(folder / "credentials.env"))
    assert again.client().get_object(Bucket="kept", Key="one")["Body"].read() == b"kept"
    assert read_variables(folder / "ann.env")["AWS_ENDPOINT_URL"] == again.endpoint


def test_folder_of_something_else_is_refused(folder: Path) -> None:
    folder.mkdir()
    (folder / "mine.env").write_text("mine")
    assert "a server's folder; name a new one" in ceph("start", folder).stderr
    assert "no server was started in" in ceph("stop", folder).stderr
    assert [path.name for path in folder.iterdir()] == ["mine.env"]


def test_missing_program_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    for program in ("bash", "env", "realpath"):
        (tmp_path / program).symlink_to(str(shutil.which(program)))
    found = ceph("start", tmp_path / "server", path=str(tmp_path))
    if why_no_ceph() is None and Path(str(shutil.which("radosgw"))).parent.name == "sbin":
        pytest.skip("radosgw is in a folder that ceph.sh looks in by itself")
    assert found.returncode == 1
    assert "no radosgw on the PATH; sudo apt-get" in found.stderr
    assert not (tmp_path / "server").exists()
