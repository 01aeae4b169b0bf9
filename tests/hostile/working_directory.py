"""A job in a folder that somebody filled with modules; run by test_processes.py, which ends it with SIGTERM.

It says in a line of JSON what its processes have, and whom they listen to.
"""

from __future__ import annotations

import json
import os
import sys
import time
from multiprocessing import util
from pathlib import Path
from typing import Any

import ray

from klray.config.job import run
from klray.sweep.cluster import connected
from klray.sweep.model_process import ModelProcess
from klray.sweep.settings import RaySettings, ScoringSettings
from klray.tiny.hub_server import local_hub
from tests.stores import TEXTS


def listening(pids: set[int]) -> list[str]:
    """Addresses, as the kernel writes them, at which these processes take connections."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    of = {fields[9]: fields[1].split(":")[0] for fields in lines if fields[3] == "0A"}
    links = [str(link.readlink()) for pid in pids for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    return [of[link[8:-1]] for link in links if link[8:-1] in of]


def family(pid: int) -> set[int]:
    """A process and all that come from it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {pid}.union(*map(family, map(int, children)))


@ray.remote
def in_a_worker() -> dict[str, Any]:
    model = ModelProcess(ScoringSettings(), TEXTS)
    model.try_device()  # so that all is imported
    found = {
        "sockets": util.get_temp_dir(),
        "path": sys.path,
        "cwd": str(Path.cwd()),
        "token": os.environ["RAY_AUTH_TOKEN"],
        "alive": bool(model.pid),
    }
    model.close()
    return found


@ray.remote(num_cpus=0)
def forever() -> None:
    time.sleep(60)


def work(_: object) -> int:
    with local_hub(Path(os.environ["HUB_ROOT"])), connected(RaySettings(workers=1)):
        found = ray.get(in_a_worker.remote())
        pids = family(os.getpid())
        commands = " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in pids)
        found["temp"] = next(each for each in commands.split("\0") if each.startswith("--temp_dir=")).partition("=")[2]
        found["listening"] = listening(pids)
        found["shown"] = found.pop("token") in commands
        print(json.dumps(found), flush=True)
        ray.get(forever.remote())
    return 0


if __name__ == "__main__":
    sys.argv = ["klray status"]
    sys.exit(run("status", lambda: work))
