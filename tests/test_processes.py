"""Tests run in several processes, as ``make test`` does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import os

def test_passes(capfd):
    os.system("echo of this process alone")
    assert capfd.readouterr().out == "of this process alone\\n"

def test_fails():
    print("said before")
    assert 1 == 2

def test_ends_the_process():
    os._exit(3)

def test_after_it():
    pass
"""


@pytest.mark.slow
def test_what_fails_what_dies_and_what_does_not_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(TESTS)
    (tmp_path / "test_two.py").write_text(TESTS.replace("os._exit(3)", "pass"))
    command = [sys.executable, "-m", "pytest", "-p", "tests.processes", "--processes", "2", "-c", "/dev/null"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=Path(__file__).parents[1], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.count("\nsaid before\n") == 2
    assert "the process of this test ended: 3" in done.stdout
    assert "2 tests did not run" in done.stdout
    assert "3 failed, 4 passed" in done.stdout
