"""``klray score`` as a command, of checkpoints on a hub's server into a store in a folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from klray.store import Store
from klray.tiny.family_recipe import SMALLEST
from klray.tiny.hub_server import HubServer

TEXTS = ["texts=python_stdlib", "texts.n=16"]
N_CHECKPOINTS = 2 * len(SMALLEST.saved_steps)


def command(hub: HubServer, store: Path, *overrides: str, verb: str = "score") -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": str(hub.token)}
    arguments = [f"store.url={store}", f"scoring.cache_dir={store}-cache", *TEXTS, *overrides]
    return [sys.executable, "-m", f"jobs.{verb}", *arguments], environment


def run(
    hub: HubServer, store: Path, *overrides: str, verb: str = "score", code: int = 0
) -> subprocess.CompletedProcess[str]:
    arguments, environment = command(hub, store, *overrides, verb=verb)
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=480)
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


def fill(hub: HubServer, store: Path) -> None:
    """Have one worker score the whole family."""
    done = run(hub, store, *FAMILY, "ray.workers=1")
    rate = r"[1-9][\d,]* tokens/s after \d+ s to start workers"
    assert re.search(rf"scored {N_CHECKPOINTS} checkpoints in \d+ s, {rate}; 0 were there", done.stdout)
