"""Tiny repositories in a hub's folder, and a hub that misbehaves a given number of times."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from klray.checkpoints import Checkpoint, Hub, RepositorySpec, Selection, Unavailable, resolve
from klray.tiny.hub_server import HubServer
from klray.tiny.routes import HubHandler

RUN = "tiny/run"
WEIGHT_BYTES = 300_000  # several blocks of the server


def write_model(folder: Path, seed: int = 0, weight_bytes: int = WEIGHT_BYTES, tokenizer: str = "{}") -> Path:
    """A model as transformers saves it: config, tokenizer, and one safetensors file of ``weight_bytes`` of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}))
    (folder / "tokenizer.json").write_text(tokenizer)
    (folder / "README.md").write_text("not needed to load the model")
    weights = np.random.default_rng(seed).integers(0, 256, weight_bytes, dtype=np.uint8)
    save_file({"weight": weights}, folder / "model.safetensors")
    return folder


def write_run(root: Path, steps: int) -> Path:
    """A hub's folder with ``steps`` checkpoints of one run, each of other weights."""
    for step in range(steps):
        write_model(root / RUN / f"step{step}", seed=step)
    return root


def hub_of(server: HubServer) -> Hub:
    """A hub server as its user sees it."""
    return Hub(server.endpoint, server.token)


def select(*specs: RepositorySpec, **options: int) -> Selection:
    """What is asked of a family."""
    return Selection("tiny", specs, **options)


def only_error(hub: Hub, spec: RepositorySpec) -> Unavailable:
    """Why nothing that ``spec`` asks for is available."""
    checkpoints, unavailable = resolve(hub, select(spec))
    assert not checkpoints
    assert len(unavailable) == 1
    return unavailable[0]


def checkpoints_of(server: HubServer) -> list[Checkpoint]:
    """The checkpoints of the run, in order of their steps."""
    return resolve(hub_of(server), select(RepositorySpec(RUN, "step*")))[0]


class FaultyHub(HubServer):
    """A hub that misbehaves while a count in ``faults`` lasts.

    busy: 429 with RateLimit headers; later: 503 with Retry-After; broken: 500; cut: closes in the middle of a block of
    a weight file; reset: the same with a TCP reset; deaf: sends a weight file from its start, whatever the range;
    corrupt: sends other bytes of a weight file than it announced. ``pause`` is the time that busy and later ask for, in
    seconds or, for later, in words. ``before_weights`` runs before each block of a weight file. ``seen`` are when
    (monotonic) each weight file was asked for, and the Range.
    """

    def __init__(
        self, root: Path, before_weights: Callable[[], None] = lambda: None, pause: int | str = 0, **faults: int
    ):
        self.faults = faults = Counter(faults)
        self.seen = seen = list[tuple[float, str]]()

        self.before_weights = before_weights
        hub = self

        class Handler(HubHandler):
            def take(self, fault: str) -> bool:
                with self.server.lock:
                    faults[fault] -= 1
                    return faults[fault] >= 0

            def answer(self) -> None:
                if self.path.endswith(".safetensors"):
                    seen.append((time.monotonic(), self.headers.get("Range", "")))
                    if seen[-1][1] and self.take("deaf"):
                        del self.headers["Range"]
                if self.take("busy"):
                    headers = {
                        "RateLimit": f'"resolvers";r=0;t={pause}',
                        "RateLimit-Policy": '"fixed window";"api";q=500;w=300',
                    }
                    self.send_json({"error": "slow down"}, HTTPStatus.TOO_MANY_REQUESTS, headers)
                elif self.take("later"):
                    status = HTTPStatus.SERVICE_UNAVAILABLE
                    self.send_json({"error": "later"}, status, {"Retry-After": str(pause)})
                elif self.take("broken"):
                    self.send_json({"error": "sorry"}, HTTPStatus.INTERNAL_SERVER_ERROR)
                else:
                    super().answer()

            def send_block(self, block: bytes) -> None:
                if not self.path.endswith(".safetensors"):
                    return super().send_block(block)
                hub.before_weights()
                if self.take("corrupt"):
                    return super().send_block(bytes(len(block)))
                if self.take("cut"):
                    super().send_block(block[: len(block) // 2])
                    raise ConnectionAbortedError
                if self.take("reset"):
                    super().send_block(block[: len(block) // 2])
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    raise ConnectionResetError
                return super().send_block(block)

        self.handler = Handler
        super().__init__(root)


class NotingHub(HubServer):
    """Notes when which weights are asked for, calls ``before_weights`` with that, and asks for ``pause`` seconds of
    silence while ``refusals`` last.
    """

    def __init__(self, root: Path):
        self.weights = weights = list[tuple[float, str]]()
        self.refusals, self.pause = 0, 0
        self.before_weights: Callable[[str], object] = lambda path: None
        hub = self

        class Handler(HubHandler):
            def send_resolved(self, repository: str, revision: str, path: str) -> None:
                if path.endswith(".safetensors"):
                    weights.append((time.monotonic(), f"{repository}/{revision}"))
                    hub.before_weights(f"{repository}/{revision}")
                    with self.server.lock:
                        refused, hub.refusals = hub.refusals > 0, hub.refusals - 1
                    if refused:
                        headers = {"Retry-After": str(hub.pause)}
                        return self.send_json({"error": "slow down"}, HTTPStatus.TOO_MANY_REQUESTS, headers)
                return super().send_resolved(repository, revision, path)

        self.handler = Handler
        super().__init__(root)


@contextlib.contextmanager
def holding_back(root: Path, after: int = 5) -> Iterator[tuple[NotingHub, threading.Event]]:
    """A hub that sends so many weights, and more once the event is set: a sweep cannot end before."""
    go_on = threading.Event()
    with NotingHub(root) as server:

        def hold(path: str) -> None:
            if len(server.weights) > after:
                go_on.wait()

        server.before_weights = hold
        try:
            yield server, go_on
        finally:
            go_on.set()
