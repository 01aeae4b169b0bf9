"""What is made or run of the pages: the reference of keys, the store's specification, notebook, site; and packages."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from klray.config.__main__ import reference
from klray.store import Commit, Identity, Manifest
from klray.store.results import Marker
from klray.store.snapshots import Chunk
from tests.test_readme import stores as stores

HOUSE = Path(__file__).parent.parent
DOCS = HOUSE / "docs"


def test_the_reference_of_keys_is_what_the_classes_say() -> None:
    assert (DOCS / "configuration.md").read_text() == reference(), "run make reference"
    assert "| `scoring.threads` | whole number | `1` | CPU threads of one worker |" in reference()


def test_the_specification_of_the_store_names_every_field() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ((?:`\w+`(?:, )?)+) \|$", (DOCS / "store.md").read_text(), re.M)
    told = {name: re.findall(r"`(\w+)`", fields) for name, fields in rows}
    kinds = {
        **{"commit": Commit, "its `identity`": Identity, "manifest": Manifest, "one of its `chunks`": Chunk},
        "marker of a result": Marker,
    }
    for name, kind in kinds.items():
        assert told[name] == [field.name for field in dataclasses.fields(kind)], name
    reader = (HOUSE / "klray/report/live/reader.js").read_text().splitlines()
    assert len([line for line in reader if line.strip() and not line.strip().startswith("//")]) <= 65


@pytest.mark.slow
def test_the_notebook_runs(stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stores)
    cells = json.loads((DOCS / "analyst.ipynb").read_text())["cells"]
    programs = ["".join(each["source"]) for each in cells if each["cell_type"] == "code"]
    assert len(programs) >= 8 and not any(each.get("outputs") for each in cells)
    known: dict[str, object] = {}
    for program in programs:
        exec(compile(program, "analyst.ipynb", "exec"), known)


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.stem for path in DOCS.glob("*.md")}
    assert pages <= {path.stem for path in (tmp_path / "site").glob("*.html")}
    assert "fonts.googleapis" not in (tmp_path / "site" / "index.html").read_text()


@pytest.mark.slow
def test_packages_have_what_is_used_and_nothing_else(tmp_path: Path) -> None:
    """An sdist, and a wheel from it, which the sdist suffices for."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(HOUSE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (source,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    inside = set(zipfile.ZipFile(wheel).namelist())
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, check=True).stdout.split()
    packaged = {
        each
        for each in tracked
        if each.split("/")[0] in ("klray", "jobs", "conf") and not each.startswith("klray/report/live/build")
    }
    assert packaged <= inside
    assert {each.split("/")[0] for each in inside - packaged} == {wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    with tarfile.open(source) as archive:
        names = {each.partition("/")[2] for each in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "klray/report/live/zarrita.js", "docs/store.md"} <= names
    assert not [name for name in names if name.startswith((".venv", "store/", "site/"))]
