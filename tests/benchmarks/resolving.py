"""Resolving 10,000 checkpoints of 65 repositories: without what an earlier run kept, and with it.

The hub runs in a process of its own, and counts what it is asked for. On a real hub each request of the first kind
counts towards its limit of 1,000 in five minutes.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import tempfile
import time
from pathlib import Path

from klray.checkpoints import Hub, RepositorySpec, Selection, resolve
from klray.tiny.hub_server import HubServer
from tests.benchmarks.machine import table

REPOSITORIES, REVISIONS = 65, 154


def write_hub(root: Path) -> Path:
    """Repositories of which each revision has a file of weights of its own, a few bytes, and the same small files."""
    shared = root / ".shared"
    shared.mkdir(parents=True)
    (shared / "config.json").write_text(json.dumps({"model_type": "gpt_neox"}))
    (shared / "tokenizer.json").write_text("{}")
    for number in range(REPOSITORIES):
        for step in range(REVISIONS):
            folder = root / "bench" / f"model{number}" / f"step{step}"
            folder.mkdir(parents=True)
            for file in ("config.json", "tokenizer.json"):
                os.link(shared / file, folder / file)
            (folder / "model.safetensors").write_bytes(f"{number} {step}".encode())
    return root


def _serve(root: Path, pipe: multiprocessing.connection.Connection) -> None:
    with HubServer(root) as server:
        pipe.send((server.endpoint, server.token))
        while pipe.recv():
            pipe.send(dict(server.requests))
            server.requests.clear()


def main() -> str:
    """Measure and return the table."""
    names = (f"bench/model{number}" for number in range(REPOSITORIES))
    selection = Selection("bench", tuple(RepositorySpec(name, "step*") for name in names))
    rows = [("what", "checkpoints", "API requests", "other requests", "seconds")]
    with tempfile.TemporaryDirectory() as place:
        root = write_hub(Path(place) / "hub")
        pipe, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_serve, args=(root, theirs), daemon=True)
        process.start()
        hub = Hub(*pipe.recv())
        resolve(hub, selection)  # the server hashes its files once
        for what, kept in (
            ("nothing is kept", None),
            ("to be kept", Path(place) / "kept"),
            ("kept", Path(place) / "kept"),
        ):
            pipe.send(True)
            pipe.recv()
            start = time.monotonic()
            checkpoints, unavailable = resolve(hub, selection, kept)
            took = time.monotonic() - start
            assert not unavailable
            pipe.send(True)
            asked = pipe.recv()
            files = sum(count for route, count in asked.items() if route.startswith("resolve"))
            counts = (len(checkpoints), sum(asked.values()) - files, files)
            rows.append((what, *(f"{count:,}" for count in counts), f"{took:.1f}"))
        pipe.send(False)
        process.join()
    return table(f"Resolving {REPOSITORIES} repositories of {REVISIONS} revisions each", rows)
