"""How many actors of which shape a cluster carries."""

from __future__ import annotations

import os
from typing import Any

import psutil
import pytest
import ray

from klray.analysis.cluster import dask_scheduler
from klray.errors import KlrayError
from klray.sweep.cluster import Shape, _shape, connected, is_growing
from klray.sweep.processes import socket_folder
from klray.sweep.settings import RaySettings

LAPTOP = {"CPU": 8.0}
TWO_GPUS = {"CPU": 16.0, "GPU": 2.0}
WAIT = "RAY_gcs_server_port_wait_time_s"


@pytest.mark.parametrize(
    ("nodes", "settings", "cpus", "shape"),
    [
        ([LAPTOP], RaySettings(), 1, Shape(8, 0.0, 1)),
        ([LAPTOP], RaySettings(), 3, Shape(2, 0.0, 3)),
        ([LAPTOP, TWO_GPUS], RaySettings(), 1, Shape(2, 1.0, 1)),
        ([TWO_GPUS, TWO_GPUS], RaySettings(gpus_per_worker=0.5), 1, Shape(8, 0.5, 1)),
        ([TWO_GPUS], RaySettings(gpus_per_worker=0.6), 1, Shape(2, 0.6, 1)),  # not 3: a share is of one GPU
        ([TWO_GPUS, TWO_GPUS], RaySettings(gpus_per_worker=2), 1, Shape(2, 2.0, 1)),
        ([TWO_GPUS], RaySettings(gpus_per_worker=0), 1, Shape(16, 0.0, 1)),
    ],
)
def test_actors_fit_their_nodes(nodes: list[dict[str, float]], settings: RaySettings, cpus: int, shape: Shape) -> None:
    assert _shape(settings, cpus, [(node, {}) for node in nodes]) == shape


def test_an_actor_with_several_gpus_spreads_its_model_over_them() -> None:
    assert [Shape(1, gpus, 1).device for gpus in (0.0, 0.5, 1.0, 2.0)] == ["cpu", "cuda", "cuda", "auto"]


def test_what_does_not_fit_is_refused_with_what_there_is() -> None:
    with pytest.raises(KlrayError, match=r"9 CPUs and 0 GPUs .* 2 nodes with 16 CPUs"):
        _shape(RaySettings(), 9, [(LAPTOP, {}), (LAPTOP, {})])
    with pytest.raises(KlrayError, match=r"ray\.workers=9: .* carries 8 actors"):
        _shape(RaySettings(workers=9), 1, [(LAPTOP, {})])
    with pytest.raises(KlrayError, match=r"gpus_per_worker=1\.5: .*whole number"):
        _shape(RaySettings(gpus_per_worker=1.5), 1, [(TWO_GPUS, {})])


def test_a_cluster_that_is_joined_is_waited_for_where_it_can_have_what_is_asked_for() -> None:
    growing = _shape(RaySettings(), 1, [({"CPU": 0.0}, {})], waits=True, grows=True)
    assert (growing.workers, growing.grows) == (0, True)
    believed = _shape(RaySettings(workers=9, accelerator="H100"), 1, [(LAPTOP, {})], waits=True)
    assert (believed.workers, believed.gpus_per_worker) == (0, 1.0)
    with pytest.raises(KlrayError, match=r"9 CPUs and 0 GPUs .*, or set ray\.workers to wait for nodes"):
        _shape(RaySettings(), 9, [(LAPTOP, {})], waits=True)


def test_what_a_node_must_have_is_asked_of_ray_and_counted_alike() -> None:
    asked = RaySettings(
        accelerator="H100",
        memory_gigabytes=10,
        labels={"market-type": "!spot", "zone": "in(a, b)"},
        resources={"licence": 0.5},
    )
    node = {**TWO_GPUS, "accelerator_type:H100": 1.0, "memory": 25e9, "licence": 1.0}
    shape = _shape(asked, 1, [(node, {"zone": "b"}), (node, {"zone": "c"}), (TWO_GPUS, {"zone": "a"})])
    assert shape.workers == 2
    assert shape.room_on(node, {"zone": "a", "market-type": "spot"}) == 0
    assert shape.room_on({**node, "memory": 19e9}, {"zone": "a"}) == 1
    assert shape.options({"beef", "f00d"}) == {
        "num_cpus": 1, "num_gpus": 1.0, "max_restarts": 0, "memory": 10 * 10**9, "accelerator_type": "H100",
        "label_selector": {**asked.labels, "ray.io/node-id": "!in(beef, f00d)"}, "resources": {"licence": 0.5},
    }  # fmt: skip
    assert _shape(RaySettings(), 1, [(LAPTOP, {})]).options(set()) == {
        "num_cpus": 1, "num_gpus": 0.0, "max_restarts": 0,
    }  # fmt: skip
    with pytest.raises(KlrayError, match=r"ray\.memory_gigabytes=0: must be above 0"):
        RaySettings(memory_gigabytes=0)


@pytest.mark.parametrize(
    ("told", "grows"),
    [
        ("", False),
        ("{", False),
        ('{"load_metrics_report": {}}', False),
        ('{"autoscaler_report": {"node_type_mapping": {"beef": "node_beef"}}}', False),
        ('{"autoscaler_report": {"node_type_mapping": {"beef": "ray.head.default"}}}', True),
    ],
)
def test_a_cluster_grows_where_the_autoscaler_knows_kinds_of_nodes(
    told: str, grows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("klray.sweep.cluster._internal_kv_get", lambda key: told.encode() or None)
    assert is_growing() is grows


def test_unknown_scheduler_is_named() -> None:
    with pytest.raises(KlrayError, match="choose threads, distributed or ray"), dask_scheduler("slurm"):
        pass


@pytest.mark.slow
def test_cluster_whose_processes_do_not_come_up_in_time_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start, waits = ray.init, ["0", "120", "0", "0"]  # seconds that Ray waits for a process of its own, each time

    def init(*args: Any, **options: Any) -> object:
        os.environ[WAIT] = waits.pop(0)
        return start(*args, **options)

    monkeypatch.setenv(WAIT, "120")
    monkeypatch.setattr(ray, "init", init)
    before = socket_folder("")
    with connected(RaySettings(workers=3)) as shape:
        assert shape == Shape(3, 0.0, 1)
        assert socket_folder("") == before  # what this process starts meanwhile has sockets that outlast the cluster
    assert "Ray did not start (" in caplog.text and waits == ["0", "0"]
    with (
        pytest.raises(KlrayError, match=r"no Ray cluster .*'ray start --head'"),
        connected(RaySettings()),
    ):
        pass
    assert not waits and not ray.is_initialized()
    left = [each.name() for each in psutil.Process().children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]
    assert not [name for name in left if name.startswith(("gcs_server", "raylet"))]
