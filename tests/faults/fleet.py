"""Fleet: what befalls a sweep on a real Ray cluster in its middle, each time followed by the same command again.

Promised: after the second command every checkpoint has its column, equal to that of a sweep that nothing happened to,
and the log has the sentence by which an operator knows what was the matter.

A head without CPUs and two nodes of one worker each, with a token, on loopback; the second node has a disk of its own
for its checkpoints. The hub holds weights back until the fault is in. Not production: nothing.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from infra.access.bucket_policy import bucket_policy
from klray.store import Store
from klray.tiny.family import train_family
from klray.tiny.family_recipe import SMALLEST
from tests.faults.servers import new_bucket, server
from tests.hub_faults import NotingHub, holding_back
from tests.ray_cluster import RAY, Node, RayCluster, columns, commits, ray_cluster, score, wait_for, why_no_disks
from tests.s3_server import CephServer, S3Server, why_no_ceph

FAMILY = ["models=tiny_smallest", "models.source=hub"]
BEFORE = 6  # weights that the hub sends before anything happens
SECONDS = 480.0  # that one command may take
DISK = "32m"
GROWS = "a cluster grows from nothing"
NO_CARD = "a GPU is there in name alone"


@dataclass
class Stage:
    """The cluster between two disturbances, and what a disturbance may reach for."""

    cluster: RayCluster
    place: Path
    well: Node
    other: Node
    variables: dict[str, str]  # of every process, for the server
    bucket: str = ""
    server: S3Server | None = None
    sweep: subprocess.Popen[str] | None = None
    stopped: list[psutil.Process] = field(default_factory=list)

    def renew(self) -> None:
        """Another second node in place of one that is gone or sick."""
        for each in self.stopped:
            with contextlib.suppress(psutil.Error):
                each.kill()
        self.stopped.clear()
        self.other.kill()
        self.cluster.nodes.remove(self.other)
        self.other = second(self.cluster, self.place, self.variables)

    def allow(self, *, writer: bool) -> None:
        """Give the sweep's user the bucket, or take it away."""
        assert self.server is not None
        users = {"curator": ["owner"], **({"writer": ["sweeper"]} if writer else {})}  # objects are their writer's
        policy = json.dumps(bucket_policy(self.bucket, "store", users))
        self.server.client().put_bucket_policy(Bucket=self.bucket, Policy=policy)


@dataclass(frozen=True)
class Disturbance:
    """What is done in the middle of a sweep; ``says``: what the log then says, of the first or the second command."""

    do: Callable[[Stage], None]
    says: str
    code: int = 0  # of the command that it happens to
    bucket: bool = False


def _kill_node(stage: Stage) -> None:
    stage.other.kill()


def _stop_node(stage: Stage) -> None:
    stage.stopped = [stage.other.root, *stage.other.root.children(recursive=True)]
    for each in stage.stopped:
        each.suspend()


def _drain_node(stage: Stage) -> None:
    words = f"drain-node --address={stage.cluster.address} --node-id={stage.other.ray_id}"
    why = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=60"]
    subprocess.run([RAY, *words.split(), *why], env=stage.cluster.environment, check=True, capture_output=True)


def _kill_board(stage: Stage) -> None:
    (board,) = [each for each in stage.cluster.head.root.children(recursive=True) if _title(each) == "ray::Board"]
    board.kill()


def _fill_disk(stage: Stage) -> None:
    there = Path(f"/proc/{stage.other.root.pid}/root{stage.place / 'cache'}")
    with contextlib.suppress(OSError), (there / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(65536)):
            pass
    try:
        (there / "more").write_bytes(bytes(4096))
    except OSError as error:
        assert error.errno == errno.ENOSPC
    else:
        raise AssertionError(f"{there} is not full")


def _take_rights(stage: Stage) -> None:
    stage.allow(writer=False)


def _kill_driver(stage: Stage) -> None:
    assert stage.sweep is not None
    stage.sweep.kill()


DISTURBANCES = {
    "a node is killed": Disturbance(_kill_node, r"node \S+ was lost: others take what it worked on"),
    "a node stands still": Disturbance(_stop_node, r"node \S+ was lost: others take what it worked on"),
    "a node is drained": Disturbance(_drain_node, r"node \S+ is drained: it finishes what it has begun"),
    "the holder of the pauses is killed": Disturbance(_kill_board, r"the actor that holds the hub's pauses had ended"),
    # A worker that has checkpoints to remove goes on with their room.
    "a disk is full": Disturbance(_fill_disk, r"waits for room in|node \S+ put aside: disk full; make room there"),
    "rights are taken away": Disturbance(
        _take_rights, r"klray: error: .*store s3://\S+ \S+ was refused \(.*AccessDenied", 1, bucket=True
    ),
    "the driver is killed": Disturbance(_kill_driver, r"job \w+ on \S+ has died: what it had claimed is free", -9),
}


def run(schedules: int, seed: int, *only: str) -> collections.Counter[str]:
    """Every disturbance, or those whose names have one of these words in them; what happened, with its sentence.

    Raises
    ------
    AssertionError
        A promise was broken.
    """
    del schedules, seed
    tally: collections.Counter[str] = collections.Counter()
    if why := why_no_disks():
        raise AssertionError(f"no node can have a disk of its own here: {why}")
    root = train_family(SMALLEST)

    def told(name: str, what: str) -> None:
        tally[f"{name} ({what})"] += 1
        tally["schedules"] += 1
        print(f"{name}: {what}", file=sys.stderr, flush=True)

    chosen = {name for name in (*DISTURBANCES, NO_CARD, GROWS) if not only or any(each in name for each in only)}
    if chosen & {*DISTURBANCES}:
        with _stage() as stage:
            expected = _undisturbed(stage, root)
            for name, what in DISTURBANCES.items():
                if name in chosen and (stage.server is not None or not what.bucket):
                    told(name, _disturbed(stage, root, name, what, expected))
                    stage.renew()
    if NO_CARD in chosen:
        told(NO_CARD, _no_card(root))
    if GROWS in chosen:
        told(GROWS, _grown(root))
    return tally


def _undisturbed(stage: Stage, root: Path) -> dict[str, str]:
    """SHA-256 of the columns of a sweep that nothing happens to."""
    with NotingHub(root) as hub, _swept(stage, hub, stage.place / "undisturbed", "undisturbed") as process:
        _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    return columns(stage.place / "undisturbed")


def _no_card(root: Path) -> str:
    """What is said where Ray counts a large GPU and PyTorch finds none: four small models would share it."""
    card = ["--num-gpus=1", '--resources={"accelerator_type:H200": 1}', f"--memory={40 * 10**9}"]
    with tempfile.TemporaryDirectory(prefix="klray-faults-") as place, ray_cluster() as cluster:
        cluster.add("card", cpus=4, more=card)
        with NotingHub(root) as hub, score(cluster, hub, Path(place) / "store", *FAMILY) as process:
            _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 1 and hub.weights == [], said
        assert "on 4 cuda workers, 4 of which share a GPU" in said, said
        assert Store.open(str(Path(place) / "store")).failures() == [], said
    found = re.search(r"no scoring worker is left: .*finds no CUDA device.*", said)
    assert found, said
    return found[0]


def _grown(root: Path) -> str:
    """How long a cluster that begins with a head without CPUs takes from a node to work on it."""

    def raylets(cluster: RayCluster) -> int:
        return sum("/raylet/raylet" in _title(each) for each in cluster.head.root.children(recursive=True))

    some = ["models.source=hub", "models.repo=klray/tiny-46k-seed1", "models.revisions=[step4,step8]"]
    with tempfile.TemporaryDirectory(prefix="klray-faults-") as place, ray_cluster(grows=1) as cluster:
        with NotingHub(root) as hub, score(cluster, hub, Path(place) / "grown", *some) as process:
            wait_for(lambda: raylets(cluster) > 1 or process.poll() is not None, "a node", SECONDS)
            begun = time.monotonic()
            _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 0 and len(columns(Path(place) / "grown")) == 2, said
        return f"{hub.weights[0][0] - begun:.1f} s from the start of its node to the first weights that are asked for"


def _disturbed(stage: Stage, root: Path, name: str, what: Disturbance, expected: dict[str, str]) -> str:
    """The seconds from the fault to the end of the second command, and the sentence."""
    short = name.replace(" ", "-")
    store: Path | str = stage.place / short
    if what.bucket:
        store = f"s3://{stage.bucket}/store"
        stage.allow(writer=True)
    with holding_back(root, after=BEFORE) as (hub, go_on), _swept(stage, hub, store, short) as process:
        stage.sweep = process
        wait_for(lambda: len(hub.weights) > BEFORE or process.poll() is not None, "weights that are asked for")
        if not isinstance(store, str):
            wait_for(lambda: commits(Path(store)) >= 2 or process.poll() is not None, "two commits")
        assert process.poll() is None, process.communicate()
        begun = time.monotonic()
        what.do(stage)
        hub.refusals, hub.pause = 2, 1
        go_on.set()
        _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == what.code, f"{name}: {said}"
    if what.bucket:
        stage.allow(writer=True)
    with NotingHub(root) as hub, _swept(stage, hub, store, short) as again:
        _, more = again.communicate(timeout=SECONDS)
    seconds = time.monotonic() - begun
    assert again.returncode == 0, f"{name}: {more}"
    assert columns(store) == expected, f"{name}: {said}{more}"
    opened = Store.open(str(store))
    # A claim whose right to go was taken away in the moment of its commit is a leftover, which verify lists.
    claims = opened.standing_claims().keys() - (opened.committed_keys() if what.bucket else set())
    assert opened.failures() == [] and not claims, f"{name}: {said}{more}"
    found = re.search(rf"^.*(?:{what.says}).*$", said + more, re.M)
    assert found, f"{name}: {said}{more}"
    words = re.sub(r"^\d\d:\d\d:\d\d |^klray: error: ", "", found[0])
    return f"{seconds:.0f} s; {words}"


def _swept(stage: Stage, hub: NotingHub, store: Path | str, name: str) -> subprocess.Popen[str]:
    cache = f"scoring.cache_dir={stage.place / 'cache' / name}"
    return score(stage.cluster, hub, store, *FAMILY, cache, **stage.variables)


@contextlib.contextmanager
def _stage() -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="klray-faults-")))
        (place / "cache").mkdir()
        found, variables, bucket = None, dict[str, str](), ""
        if not why_no_ceph():
            found = stack.enter_context(server("ceph"))
            assert isinstance(found, CephServer)
            bucket, variables = new_bucket(found), found.user("sweeper").environment
        cluster = stack.enter_context(ray_cluster())
        well = cluster.add("well", variables=variables)
        yield Stage(cluster, place, well, second(cluster, place, variables), variables, bucket, found)


def second(cluster: RayCluster, place: Path, variables: dict[str, str]) -> Node:
    """A node with a disk of its own for checkpoints."""
    name = f"other{time.monotonic_ns()}"
    return cluster.add(name, disks=[(place / "cache", DISK)], variables=variables)


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return (process.cmdline() or [""])[0]
    return ""


if __name__ == "__main__":
    print(dict(run(1, 0, *sys.argv[1:])))
