"""A cache folder that somebody else wrote in: what lies there is hashed, and nothing leads out of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from klray.checkpoints import Cache, Checkpoint, Hub
from klray.checkpoints.delivery import MARKER
from klray.errors import KlrayError
from klray.tiny.hub_server import HubServer
from tests.hub_faults import checkpoints_of, hub_of

ROOMY = 10**9  # bytes


def planted(place: Path, checkpoint: Checkpoint) -> Path:
    """Where another process left a checkpoint, as far as its sizes tell."""
    return place / "worker-0" / "tiny--run" / checkpoint.commit


def test_what_an_earlier_process_left_is_hashed_before_it_is_used(run_server: HubServer, tmp_path: Path) -> None:
    first, second, *_ = checkpoints_of(run_server)
    with Cache(tmp_path, ROOMY) as cache:
        for checkpoint in (first, second):
            cache.fetch(hub_of(run_server), checkpoint)
    weights = planted(tmp_path, first) / "model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(bytes(len(sound)))
    before = run_server.requests["resolve GET"]
    with Cache(tmp_path, ROOMY) as cache:
        assert (cache.fetch(hub_of(run_server), first) / "model.safetensors").read_bytes() == sound
        assert run_server.requests["resolve GET"] == before + 1
        cache.fetch(Hub("http://127.0.0.1:9"), second)
        cache.release(second)
        cache.fetch(Hub("http://127.0.0.1:9"), second)


def test_links_in_a_cache_lead_nowhere(run_server: HubServer, tmp_path: Path) -> None:
    checkpoint, cached = checkpoints_of(run_server)[0], tmp_path / "cache"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.json").write_text("mine")
    for link in (planted(cached, checkpoint), planted(cached, checkpoint).parent.with_name("other--run")):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(outside)
    (cached / "worker-0.lock").symlink_to(outside / "lock")
    with pytest.raises(KlrayError, match=r"set scoring[.]cache_dir"), Cache(cached, ROOMY):
        pass
    (cached / "worker-0.lock").unlink()
    with Cache(cached, ROOMY) as cache:
        folder = cache.fetch(hub_of(run_server), checkpoint)
        assert not folder.is_symlink() and (folder / "config.json").stat().st_size > 4
    assert [path.name for path in outside.iterdir()] == ["config.json"]
    assert (outside / "config.json").read_text() == "mine"


def test_a_folder_that_others_may_write_or_own_is_taken_back_or_left(tmp_path: Path) -> None:
    (tmp_path / "worker-0").symlink_to(tmp_path)
    (tmp_path / "worker-1").mkdir(mode=0o777)
    with Cache(tmp_path, 10**6) as cache:
        assert cache.root == tmp_path / "worker-1"
        assert cache.root.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd"])
def test_a_marker_that_names_files_outside_is_none(run_server: HubServer, tmp_path: Path, path: str) -> None:
    checkpoint = checkpoints_of(run_server)[0]
    with Cache(tmp_path, 10**6) as cache:
        folder = cache.fetch(hub_of(run_server), checkpoint)
    marker = folder / MARKER
    marker.write_text(marker.read_text().replace("config.json", path))
    with Cache(tmp_path, 10**6) as cache:
        assert cache.bytes == 0 and not folder.exists()
