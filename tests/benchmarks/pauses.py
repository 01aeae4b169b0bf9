"""Pauses that a hub asks for: kept by each worker for itself, or by one actor for all of a sweep.

Workers fetch from a hub that answers so many requests in a window and refuses the others, with the seconds until the
next window. The hub is in this process; workers are actors on Ray.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import ray

from klray.checkpoints import Cache, Checkpoint, Hub, Patience
from klray.sweep.actor import SharedPatience
from klray.sweep.board import Board
from klray.sweep.cluster import connected
from klray.sweep.settings import RaySettings
from klray.tiny.hub_server import HubServer
from klray.tiny.routes import HubHandler
from tests.benchmarks.machine import table
from tests.hub_faults import checkpoints_of, hub_of, write_run

WORKERS, EACH = 8, 20  # checkpoints of three files, two requests each
WINDOW, ALLOWED = 3.0, 120  # seconds, requests


class LimitedHub(HubServer):
    """Counts requests that it ``refused``."""

    def __init__(self, root: Path):
        self.refused = 0
        self.limited = False
        self._until, self._left = 0.0, 0
        hub = self

        class Handler(HubHandler):
            def answer(self) -> None:
                if (seconds := hub.take()) == 0:
                    return super().answer()
                headers = {
                    "RateLimit": f'"resolvers";r=0;t={math.ceil(seconds)}',
                    "RateLimit-Policy": f'"fixed window";"resolvers";q={ALLOWED};w={WINDOW:.0f}',
                }
                return self.send_json({"error": "slow down"}, HTTPStatus.TOO_MANY_REQUESTS, headers)

        self.handler = Handler
        super().__init__(root)

    def take(self) -> float:
        """Seconds until there is an answer; 0 for now."""
        with self.lock:
            now = time.monotonic()
            if now >= self._until:
                self._until, self._left = now + WINDOW, ALLOWED
            self._left -= 1
            if not self.limited or self._left >= 0:
                return 0.0
            self.refused += 1
            return self._until - now


class Fetching:
    """A worker that fetches and does nothing else; with a ``board`` it keeps its pauses there."""

    def __init__(self, folder: Path, board: Any):
        self._cache = Cache(folder, 10**9, SharedPatience(board) if board is not None else Patience())

    def ready(self) -> None:
        pass

    def fetch(self, hub: Hub, checkpoints: Sequence[Checkpoint]) -> None:
        for each in checkpoints:
            self._cache.fetch(hub, each)


def main() -> str:
    """Measure and return the table."""
    rows = [("pauses are kept by", "workers", "requests refused", "seconds", "seconds without a limit")]
    with tempfile.TemporaryDirectory() as place:
        root = write_run(Path(place) / "hub", WORKERS * EACH)
        with connected(RaySettings(workers=WORKERS)), LimitedHub(root) as server:
            checkpoints = checkpoints_of(server)
            for name, shared in (("each worker", False), ("one actor", True)):
                free, _ = _fetched(server, checkpoints, Path(place) / f"free {name}", shared=shared, limited=False)
                took, refused = _fetched(server, checkpoints, Path(place) / name, shared=shared, limited=True)
                rows.append((name, str(WORKERS), str(refused), f"{took:.1f}", f"{free:.1f}"))
    return table(f"{WORKERS * EACH} checkpoints from a hub that answers {ALLOWED} requests in {WINDOW:g} s", rows)


def _fetched(
    server: LimitedHub, checkpoints: Sequence[Checkpoint], place: Path, *, shared: bool, limited: bool
) -> tuple[float, int]:
    """Seconds, and requests that were refused."""
    board: Any = ray.remote(Board).options(num_cpus=0).remote() if shared else None
    kind = ray.remote(Fetching)
    workers: list[Any] = [kind.remote(place / str(number), board) for number in range(WORKERS)]
    ray.get([each.ready.remote() for each in workers])
    server.limited, server.refused = limited, 0
    begun = time.monotonic()
    hub = hub_of(server)
    ray.get([each.fetch.remote(hub, checkpoints[number::WORKERS]) for number, each in enumerate(workers)])
    seconds = time.monotonic() - begun
    for each in [*workers, *([board] if shared else [])]:
        ray.kill(each)
    server.limited = False
    return seconds, server.refused
