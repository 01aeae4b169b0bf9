"""Fetching ahead of what is worked on: in order, within the cache's bound, and given up when nobody wants it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from klray.checkpoints import Cache, Fetcher
from klray.errors import CheckpointError
from tests.hub_faults import WEIGHT_BYTES, FaultyHub, checkpoints_of, hub_of, write_run

STEPS = 6
CHECKPOINT_BYTES = WEIGHT_BYTES + 10_000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("hub"), STEPS)


@pytest.fixture
def server(root: Path) -> Iterator[FaultyHub]:
    with FaultyHub(root) as server:
        yield server


def test_as_many_are_ahead_as_the_cache_has_room_for(server: FaultyHub, tmp_path: Path) -> None:
    hub, checkpoints = hub_of(server), checkpoints_of(server)
    with Cache(tmp_path, int(3.5 * CHECKPOINT_BYTES)) as cache:
        fetcher = Fetcher(hub, cache)
        for number, checkpoint in enumerate(checkpoints):
            folder = fetcher.take(checkpoint, checkpoints[number + 1 : number + 5])
            assert (folder / "model.safetensors").stat().st_size > WEIGHT_BYTES
            assert cache.bytes <= cache.max_bytes
            cache.evict(checkpoint)
        assert len(server.seen) == STEPS  # each once
        assert cache.bytes == 0


def test_all_are_fetched_one_by_one_in_a_cache_for_one(server: FaultyHub, tmp_path: Path) -> None:
    hub, checkpoints = hub_of(server), checkpoints_of(server)
    with Cache(tmp_path, int(1.5 * CHECKPOINT_BYTES)) as cache:
        fetcher = Fetcher(hub, cache)
        for number, checkpoint in enumerate(checkpoints):
            fetcher.take(checkpoint, checkpoints[number + 1 :])
            cache.evict(checkpoint)
        assert len(server.seen) == STEPS


def test_what_nobody_wants_any_more_makes_room(server: FaultyHub, tmp_path: Path) -> None:
    hub, (first, second, third, fourth, fifth, _) = hub_of(server), checkpoints_of(server)
    with Cache(tmp_path, int(2.5 * CHECKPOINT_BYTES)) as cache:
        fetcher = Fetcher(hub, cache)
        fetcher.take(first, [second, third, fourth])
        cache.evict(first)
        fetcher.take(fifth, [fourth])  # another worker took the second and the third, and this one an earlier one
        cache.evict(fifth)
        fetcher.take(fourth)
        cache.evict(fourth)
        assert cache.bytes == 0


def test_failure_is_told_when_the_checkpoint_is_taken_and_the_next_one_follows(root: Path, tmp_path: Path) -> None:
    with FaultyHub(root, corrupt=0) as server:
        hub, (first, second, third, *_) = hub_of(server), checkpoints_of(server)
        with Cache(tmp_path, 10 * CHECKPOINT_BYTES) as cache:
            fetcher = Fetcher(hub, cache)
            fetcher.take(first)
            server.faults["corrupt"] = 2 * (WEIGHT_BYTES // 65536 + 1)  # every block of both attempts
            with pytest.raises(CheckpointError, match="other content than it announces, twice"):
                fetcher.take(second, [third])
            assert fetcher.take(third).is_dir()
