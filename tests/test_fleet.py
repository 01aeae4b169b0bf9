"""Sweeps on a real cluster: a node that is sick, one that joins, one that is killed, a store that is not shared."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from klray.tiny.family import train_family
from klray.tiny.family_recipe import SMALLEST
from klray.tiny.hub_server import HubServer
from tests.hub_faults import NotingHub, holding_back
from tests.ray_cluster import RayCluster, columns, commits, ray_cluster, score, wait_for, why_no_disks
from tests.s3_server import S3Server

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_no_disks()), reason=f"no disks: {why_no_disks()}")]

COUNT = 2 * len(SMALLEST.saved_steps)
FAMILY = ["models=tiny_smallest", "models.source=hub"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``own`` and ``cache`` are folders that some nodes have for themselves."""
    place = tmp_path_factory.mktemp("fleet")
    for name in ("own", "cache"):
        (place / name).mkdir()
    return place


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[RayCluster]:
    """A head, a node that does not share the folder ``own``, and one whose cache has no room."""
    with ray_cluster() as cluster:
        cluster.add("well", disks=[(place / "own", "1m")])
        cluster.add("sick", disks=[(place / "own", "1m"), (place / "cache", "64k")])
        yield cluster


def test_a_store_that_no_other_node_shares_is_refused_by_name_before_any_score(
    cluster: RayCluster, place: Path
) -> None:
    store = place / "own" / "store"
    with NotingHub(train_family(SMALLEST)) as hub, score(cluster, hub, store, *FAMILY) as process:
        out, said = process.communicate(timeout=480)
    assert process.returncode == 1, out + said
    assert re.search(rf"store {store} is a folder that node \S+ .*does not share with this one; .*s3://", said), said
    assert hub.weights == [] and commits(store) == 0


def test_a_sick_node_a_new_one_and_a_lost_one_cost_no_checkpoint(cluster: RayCluster, place: Path) -> None:
    """Beside a full disk nothing fails; a node that joins is used by the sweep; one that is killed takes none along."""
    store, count = place / "store", 40
    well = cluster.nodes[1]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fleet_sweep", str(store), str(place / "cache"), str(count)],
        env={**cluster.environment, "RAY_ADDRESS": cluster.address}, cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        wait_for(lambda: commits(store) >= 4 or process.poll() is not None, "four commits")
        new = cluster.add("new")
        wait_for(lambda: bool(new.scorers()) or process.poll() is not None, "a worker on the new node")
        assert process.poll() is None, process.communicate()
        well.kill()
        Path(f"{store}-go").touch()
        out, said = process.communicate(timeout=480)
    assert process.returncode == 0, out + said
    found = json.loads(out.splitlines()[-1])
    assert (found["scored"], found["failed"], commits(store)) == (count, 0, count)
    assert re.fullmatch(r"2 of 3 workers; node \S+ put aside: disk full", found["closing"])
    assert len(re.findall("put aside: disk full", said)) == 1 and "was lost: others take what it worked on" in said


def test_credentials_that_no_node_has_end_a_sweep_with_their_names(
    cluster: RayCluster, place: Path, moto: S3Server
) -> None:
    moto.make_bucket("fleet-without-keys")
    with (
        NotingHub(train_family(SMALLEST)) as hub,
        score(
            cluster,
            hub,
            "s3://fleet-without-keys/store",
            *FAMILY,
            f"scoring.cache_dir={place / 'keys'}",
            **moto.environment,
        ) as process,
    ):
        out, said = process.communicate(timeout=480)
    assert process.returncode == 1, out + said
    assert hub.weights == []
    assert re.search(r"no scoring worker is left: .*the driver has AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY", said), (
        said
    )
    assert moto.environment["AWS_SECRET_ACCESS_KEY"] not in said


def test_sigterm_in_a_job_ends_it_with_one_sentence(cluster: RayCluster, place: Path) -> None:
    """In a job of Ray's the cluster is the default."""
    store = place / "ended"
    with (
        holding_back(train_family(SMALLEST), after=3) as (hub, _),
        score(cluster, hub, store, *FAMILY, "ray.workers=1", job=True) as process,
    ):
        wait_for(lambda: commits(store) >= 2 or process.poll() is not None, "two commits")
        scorers = [each for node in cluster.nodes for each in node.scorers()]
        assert len(scorers) == 1, process.communicate()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 143
    lines = [line for line in said.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]
    assert lines == ["klray: error: interrupted; what was committed is safe, the same command goes on from there"], said
    wait_for(lambda: not any(each.is_running() for each in scorers), "the end of the actor")
    told = re.search(r"interrupted, (\d+) checkpoints scored", said)
    assert told and int(told[1]) == len(columns(store)) >= 2, said


def test_a_cluster_that_grows_from_nothing(place: Path) -> None:
    """Its head has no CPU: the node comes because an actor waits."""
    some = ["models.source=hub", "models.repo=klray/tiny-46k-seed1", "models.revisions=[step4,step8]"]
    with ray_cluster(grows=1) as growing, HubServer(train_family(SMALLEST)) as hub:
        cache = f"scoring.cache_dir={place / 'grown-cache'}"
        with score(growing, hub, place / "grown", *some, cache) as process:
            out, said = process.communicate(timeout=480)
    assert process.returncode == 0, out + said
    assert "scored 2 checkpoints" in out and "and on what the cluster adds" in said
