"""Damage to the files of a store, and where to look for it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def chunks(group: Path) -> list[Path]:
    """Files that hold log-likelihoods."""
    return sorted(path for path in (group / "log_likelihood" / "c").rglob("*") if path.is_file())


def damage(paths: list[Path], how: str) -> None:
    path = paths[0]
    if how == "lose all":
        shutil.rmtree(path)
    elif how == "lose":
        path.unlink()
    else:
        body = bytearray(path.read_bytes())
        body[len(body) // 2] ^= 1
        path.write_bytes(body if how == "flip" else body[: len(body) // 2])


def folders(root: Path, prefix: str, depth: int) -> set[str]:
    """Folders of ``depth`` parts below ``prefix`` that hold files."""
    found = set()
    for folder, _, names in os.walk(root / prefix):
        parts = Path(folder).relative_to(root).parts
        if names and len(parts) >= depth:
            found.add("/".join(parts[:depth]))
    return found
