"""What all processes of a test run share: made by the first that needs it, found there by the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import filelock
import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name`` of this run, filled by ``make``: by one process, for which the others wait.

    A process that fails leaves what it made as it is, and the next one makes it in another folder.
    """
    base = factory.getbasetemp()  # of all processes: tests.processes
    with filelock.FileLock(base / f"{name}.lock"):
        done = base / f"{name}.done"
        if not done.exists():
            folder = factory.mktemp(name)
            make(folder)
            done.write_text(str(folder))
        return Path(done.read_text())
