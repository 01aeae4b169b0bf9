"""How many actors of which shape a cluster carries."""

from __future__ import annotations

import os
from typing import Any

import pytest
import ray

from klray.analysis.cluster import dask_scheduler
from klray.errors import KlrayError
from klray.sweep.cluster import Shape, _shape, connected
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
    assert _shape(settings, cpus, nodes) == shape


def test_an_actor_with_several_gpus_spreads_its_model_over_them() -> None:
    assert [Shape(1, gpus, 1).device for gpus in (0.0, 0.5, 1.0, 2.0)] == ["cpu", "cuda", "cuda", "auto"]


def test_what_does_not_fit_is_refused_with_what_there_is() -> None:
    with pytest.raises(KlrayError, match=r"9 CPUs and 0 GPUs .* 2 nodes with 16 CPUs"):
        _shape(RaySettings(), 9, [LAPTOP, LAPTOP])
    with pytest.raises(KlrayError, match=r"ray\.workers=9: .* carries 8 actors"):
        _shape(RaySettings(workers=9), 1, [LAPTOP])
    with pytest.raises(KlrayError, match=r"gpus_per_worker=1\.5: .*whole number"):
        _shape(RaySettings(gpus_per_worker=1.5), 1, [TWO_GPUS])


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
    monkeypatch.setattr("klray.sweep.joining.log.propagate", True)
    with connected(RaySettings(workers=3)) as shape:
        assert shape == Shape(3, 0.0, 1)
    assert "Ray did not start (" in caplog.text and waits == ["0", "0"]
    with (
        pytest.raises(KlrayError, match=r"no Ray cluster .*'ray start --head'"),
        connected(RaySettings()),
    ):
        pass
    assert not waits and not ray.is_initialized()
