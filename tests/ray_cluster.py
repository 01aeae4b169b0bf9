"""A Ray cluster of several nodes on the loopback interface, with a token, each with a HOME and disks of its own."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from klray.store import Store
from klray.sweep.processes import private_folder, safe_environment
from klray.tiny.hub_server import HubServer
from tests.growing_provider import HEAD, config

SOCKET = "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
HOST = "127.0.0.2"  # on the loopback interface; of 127.0.0.1 Ray makes the machine's own address
RAYS_OWN = ("ray::IDLE", "ray::Dashboard", "ray::RuntimeEnv", "ray::shares", "ray::Board")
RAY = str(Path(sys.executable).with_name("ray"))


def why_no_disks() -> str:
    """Why a process cannot have disks of its own here; "" if it can."""
    if shutil.which("unshare") is None:
        return "there is no unshare"
    done = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True
    )
    return done.stderr.strip()


def wait_for(found: Callable[[], bool], what: str, seconds: float = 240.0) -> None:
    begun = time.monotonic()
    while not found():
        assert time.monotonic() < begun + seconds, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)


class Node:
    """What ``ray start --block`` runs."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path):
        self.process, self.log = process, log
        self.root = psutil.Process(process.pid)

    @property
    def ray_id(self) -> str:
        """As Ray calls the node."""
        for each in self.root.children(recursive=True):
            if found := re.search(r"--node_id=([0-9a-f]{56})", " ".join(each.cmdline())):
                return found[1]
        raise AssertionError(self.log.read_text())

    def scorers(self) -> list[psutil.Process]:
        """Processes of actors on this node, whatever they are called while they work."""
        found = []
        with contextlib.suppress(psutil.Error):
            for each in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    title = (each.cmdline() or [""])[0]
                    if title.startswith("ray::") and not title.startswith(RAYS_OWN):
                        found.append(each)
        return found

    def kill(self) -> None:
        """At once, and all that it runs."""
        family = []
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(self.process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)
        for each in family:
            with contextlib.suppress(psutil.Error):
                each.kill()


class RayCluster:
    """A head without CPUs, and the nodes that are added; it ``grows`` by itself by so many."""

    def __init__(self, place: Path, grows: int = 0):
        self.place = place
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "HF_"))},
            **safe_environment(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": str(place),
        }
        self.nodes: list[Node] = []
        with socket.socket() as free:
            free.bind((HOST, 0))
            port = free.getsockname()[1]
        self.address = f"{HOST}:{port}"
        words = ["--head", f"--port={port}", "--include-dashboard=false", "--num-cpus=0"]
        if grows:
            (place / "autoscaler.yaml").write_text(config(self.address, grows))
            words.append(f"--autoscaling-config={place / 'autoscaler.yaml'}")
        self.head = self._start("head", words, variables=HEAD if grows else {})

    def add(
        self,
        name: str,
        *,
        cpus: int = 1,
        disks: Sequence[tuple[Path, str]] = (),
        more: Sequence[str] = (),
        variables: dict[str, str] | None = None,
    ) -> Node:
        """A node; ``disks`` are folders that it has for itself, with their sizes, ``more`` options of ``ray start``."""
        return self._start(name, [f"--address={self.address}", f"--num-cpus={cpus}", *more], disks, variables)

    def close(self) -> None:
        """End all of it."""
        for node in reversed(self.nodes):
            node.kill()

    def _start(
        self,
        name: str,
        words: list[str],
        disks: Sequence[tuple[Path, str]] = (),
        variables: dict[str, str] | None = None,
    ) -> Node:
        environment = {**self.environment, "HOME": str(self.place / f"home-{name}"), **(variables or {})}
        home = self.place / f"home-{name}"
        home.mkdir()
        command = [RAY, "start", "--block", f"--node-ip-address={HOST}", "--disable-usage-stats", *words]
        if disks:
            mounts = " && ".join(f"mount -t tmpfs -o size={size} none '{folder}'" for folder, size in disks)
            command = ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *command]
        log = home / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, cwd=home, env=environment, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        node = Node(process, log)
        self.nodes.append(node)  # two that start together would take the same sockets
        wait_for(lambda: "Ray runtime started" in log.read_text() or process.poll() is not None, name)
        assert process.poll() is None, log.read_text()
        return node


@contextlib.contextmanager
def ray_cluster(grows: int = 0) -> Iterator[RayCluster]:
    """A head, ready for nodes; all of it ends with the context."""
    with private_folder(SOCKET) as place:
        cluster = RayCluster(place, grows)
        try:
            yield cluster
        finally:
            cluster.close()


def score(
    cluster: RayCluster, hub: HubServer, store: Path | str, *overrides: str, job: bool = False, **variables: str
) -> subprocess.Popen[str]:
    """``klray score`` on the cluster; its checkpoints lie beside a store in a folder."""
    words = [f"store.url={store}", "texts=python_stdlib", "texts.n=16", *overrides]
    if isinstance(store, Path):
        words.insert(1, f"scoring.cache_dir={store}-cache")
    environment = {**cluster.environment, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": str(hub.token), **variables}
    environment["RAY_ADDRESS"] = cluster.address
    if job:  # what Ray gives the command of a job that is submitted
        environment["RAY_JOB_CONFIG_JSON_ENV_VAR"] = "{}"
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.score", *words, *([] if job else ["ray=cluster"])],
        env=environment, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def commits(store: Path) -> int:
    return len(list((store / "commits").glob("*.json")))


def columns(store: Path) -> dict[str, str]:
    """SHA-256 of every committed column, each re-read and checked."""
    opened = Store.open(str(store))
    for commit in opened.commits():
        opened.read_column(commit)
    return {commit.key: commit.sha256 for commit in opened.commits()}
