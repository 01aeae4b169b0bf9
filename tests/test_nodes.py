"""Every node of a cluster is looked at, with what is sound and what is wrong there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from klray.checkpoints import Hub
from klray.doctor.scoring import _node
from klray.store.objects import open_objects, probe
from klray.sweep.cluster import Shape, connected
from klray.sweep.nodes import Seen, look_at_nodes
from klray.sweep.settings import RaySettings, ScoringSettings
from klray.tiny.hub_server import HubServer


@pytest.fixture(scope="module")
def shape() -> Iterator[Shape]:
    with connected(RaySettings(workers=1)) as shape:
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


def test_a_row_without_a_cure_is_one_sentence() -> None:
    found = _node(Seen("node1", ("8 CPUs",), (("no answer within 120 s", ""),)))
    assert (found.found, found.cure) == ("no answer within 120 s; 8 CPUs", "")
