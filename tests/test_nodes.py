"""Every node of a cluster is looked at, with what is sound and what is wrong there."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import ray

from klray.checkpoints import Checkpoint, Hub
from klray.doctor.scoring import _cluster, _node
from klray.errors import KlrayError
from klray.store.objects import open_objects, probe
from klray.sweep.cluster import Shape, connected
from klray.sweep.nodes import Seen, look_at_nodes
from klray.sweep.settings import RaySettings, ScoringSettings
from klray.tiny.hub_server import HubServer
from tests.fleet_simulated import checkpoint

CARD = {"num_gpus": 1, "resources": {"accelerator_type:H200": 1.0}, "_memory": 40 * 10**9}


@pytest.fixture(scope="module")
def shape() -> Iterator[Shape]:
    """One that leaves alone a GPU which is there in name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", partial(ray.init, **CARD))
        with connected(RaySettings(workers=4, gpus_per_worker=0)) as shape:
            yield shape


@pytest.mark.slow
def test_a_node_tells_what_is_sound_there_and_everything_that_is_not(shape: Shape, tmp_path: Path) -> None:
    settings = ScoringSettings(cache_dir=str(tmp_path / "cache"), cache_bytes=10**9)
    place = (str(tmp_path / "store"), dict[str, str]())
    (tmp_path / "hub").mkdir()
    with HubServer(tmp_path / "hub") as server:
        hub = Hub(server.endpoint, server.token)
        with probe.common(open_objects(*place)) as common:
            (sound,) = look_at_nodes(shape, settings, hub, common, place)
        assert sound.faults == () and {"the hub answers", "reads and writes the store"} <= set(sound.known)
        assert any("GB for checkpoints" in words for words in sound.known)
        assert _node(sound).verdict == "ok"
    (tmp_path / "file").write_text("no folder")
    bad = dataclasses.replace(settings, cache_dir=str(tmp_path / "file" / "cache"))
    (seen,) = look_at_nodes(shape, bad, hub, ("probes/none", b"another"), place)
    found = _node(seen)
    assert found.verdict == "refused" and found.check == f"node {seen.host}" and len(seen.faults) == 3
    assert "does not share with the driver" in found.found and "did not answer as a model hub" in found.found
    assert "scoring.cache_dir" in found.cure and "store.url=s3://" in found.cure


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameters", "carries"),
    [
        (14e6, "carries 4 actors of 1 CPU and 0.25 GPU, 4 of which share a GPU (ray.gpus_per_worker=1: none)"),
        (1e9, "carries 1 actor of 1 CPU and 1 GPU"),
        (
            0,
            "carries 1 actor of 1 CPU and 1 GPU; whether several share a GPU is not known: no models were asked for",
        ),
    ],
)
@pytest.mark.usefixtures("shape")
def test_as_many_workers_share_a_gpu_as_in_a_sweep(parameters: float, carries: str) -> None:
    def selected(_: Hub) -> list[Checkpoint]:
        if not parameters:
            raise KlrayError("no models were asked for: set models=tiny")
        each = [checkpoint(number, "org/a", 10**6) for number in range(8)]
        return [dataclasses.replace(one, parameters=round(parameters)) for one in each]

    hub = partial(contextlib.nullcontext, Hub("http://127.0.0.1"))
    finding, _ = _cluster(RaySettings(), ScoringSettings(), hub, None, selected)
    assert finding.verdict == "ok" and finding.found.endswith(carries)


def test_a_row_without_a_cure_is_one_sentence() -> None:
    found = _node(Seen("node1", ("8 CPUs",), (("no answer within 120 s", ""),)))
    assert (found.found, found.cure) == ("no answer within 120 s; 8 CPUs", "")
