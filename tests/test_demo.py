"""The whole way as an operator goes it, its store in a folder and on S3: the same snapshot, and no secret anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import s3fs
import xarray as xr

from jobs.analyze import analyze
from jobs.publish import publish
from klray.config import AnalysisConfig, Config, StoreConfig
from klray.store import Store

pytestmark = pytest.mark.slow

ANALYSIS = {"min_step": 8, "outlier_min_step": 8}
ASKED = ["models=tiny_smallest", "texts.n=16", *(f"analysis.{name}={value}" for name, value in ANALYSIS.items())]


def demo(url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """``klray demo`` in ``folder``, which is left with everything that a job writes outside the store."""
    ray_logs = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the names of Ray's sockets must be short
    try:
        done = subprocess.run(
            [sys.executable, "-m", "jobs.demo", *ASKED, f"store.url={url}", "report.dir=report", "ray.workers=1"],
            cwd=folder,
            env={**os.environ, "RAY_TMPDIR": ray_logs, "PYTHONPATH": str(Path(__file__).parent.parent)},
            capture_output=True,
            text=True,
            timeout=480,
        )
        shutil.copytree(ray_logs, folder / "ray", ignore=shutil.ignore_patterns("sockets", "session_latest"))
    finally:
        shutil.rmtree(ray_logs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def local(swept_store: Path, tmp_path: Path) -> Store:
    """A store in a folder with the same columns, published and analysed by the verbs one by one."""
    shutil.copytree(swept_store, tmp_path / "local")
    config = Config(store=StoreConfig(url=str(tmp_path / "local")), analysis=AnalysisConfig(**ANALYSIS))
    publish(config)
    analyze(config)
    return Store.open(str(tmp_path / "local"))


def published(store: Store) -> tuple[xr.Dataset, xr.Dataset]:
    return store.dataset().load(), store.result(store.manifest().id, "trajectory").load()


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_snapshot_and_result_on_s3_are_those_of_a_folder_and_no_secret_is_kept(
    local: Store, place: str, tmp_path: Path
) -> None:
    folder = tmp_path / "remote"
    folder.mkdir()
    done = demo(place, folder)
    remote = Store.open(place)
    pairs = [published(store) for store in (local, remote)]
    for here, there in zip(*pairs, strict=True):
        xr.testing.assert_equal(here, there)
        assert set(here.variables) == set(there.variables)
    assert pairs[0][0].sizes["model"] == 26
    assert local.manifest().content == remote.manifest().content
    secrets = [os.environ[name].encode() for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    bucket = place.removeprefix("s3://").split("/")[0]
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    written = files.cat(files.find(bucket))
    logs = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert any(name.endswith("report.html") for name in logs)
    assert [name for name in logs if "/ray/" in name] == []  # Ray's logs and sockets go with the run
    assert len(written) > 26 * 6
    said = {"output": (done.stdout + done.stderr).encode()}
    kept = [name for name, body in {**written, **logs, **said}.items() for secret in secrets if secret in body]
    assert kept == []


def test_credentials_in_the_config_are_refused_and_not_repeated() -> None:
    options = ["+store.storage_options.key=AKIAEXAMPLE", "+store.storage_options.secret=wordword"]
    command = [sys.executable, "-m", "jobs.score", *ASKED[:2], "store.url=s3://bucket/store", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "credentials do not belong in a config" in done.stderr
    assert "AKIAEXAMPLE" not in done.stdout + done.stderr and "wordword" not in done.stdout + done.stderr
