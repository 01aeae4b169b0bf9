"""Fetching from real hub servers, sound and faulty: verification, retries, the bound in bytes, reuse, a full disk."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from klray.checkpoints import Cache, Checkpoint, Hub, RepositorySpec, Selection, resolve
from klray.errors import CheckpointError, KlrayError
from klray.tiny.hub_server import HubServer
from tests.hub_faults import RUN, WEIGHT_BYTES, FaultyHub, checkpoints_of, hub_of, write_model, write_run

STEPS = 6
FILES = 3
CHECKPOINT_BYTES = WEIGHT_BYTES + 10_000  # with config, tokenizer and the notes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("hub"), STEPS)


@pytest.fixture
def server(root: Path) -> Iterator[HubServer]:
    with HubServer(root) as server:
        yield server


def bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):  # passes over folders that are removed while we look
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(parent) / name).stat().st_size
    return total


def test_fetched_folder_holds_the_files_and_nothing_else_of_use(server: HubServer, root: Path, tmp_path: Path) -> None:
    checkpoint = checkpoints_of(server)[1]
    with Cache(tmp_path, 10 * CHECKPOINT_BYTES) as cache:
        folder = cache.fetch(hub_of(server), checkpoint)
        assert folder == tmp_path / "worker-0" / "tiny--run" / checkpoint.commit
        names = sorted(path.name for path in folder.iterdir())
        assert names == [".klray.json", "config.json", "model.safetensors", "tokenizer.json"]
        for file in checkpoint.files:
            assert (folder / file.path).read_bytes() == (root / RUN / "step1" / file.path).read_bytes()
    assert (server.requests["resolve HEAD"], server.requests["resolve GET"]) == (0, FILES)


def test_files_that_are_here_already_are_not_downloaded_again(server: HubServer, tmp_path: Path) -> None:
    with Cache(tmp_path, 10 * CHECKPOINT_BYTES) as cache:
        for checkpoint in checkpoints_of(server):
            cache.fetch(hub_of(server), checkpoint)
            cache.release(checkpoint)
    # config and tokenizer once; then one request a checkpoint
    assert (server.requests["resolve HEAD"], server.requests["resolve GET"]) == (0, FILES + STEPS - 1)


def test_complete_folder_is_reused_without_a_network(server: HubServer, tmp_path: Path) -> None:
    checkpoint = checkpoints_of(server)[0]
    with Cache(tmp_path, CHECKPOINT_BYTES) as cache:
        first = cache.fetch(hub_of(server), checkpoint)
        cache.release(checkpoint)
        before = server.requests.total()
        assert cache.fetch(hub_of(server), checkpoint) == first
        assert server.requests.total() == before
    nowhere = Hub("http://127.0.0.1:9")
    with Cache(tmp_path, CHECKPOINT_BYTES) as cache:  # as after a restart
        assert cache.fetch(nowhere, checkpoint) == first


def test_unfinished_or_damaged_folder_is_fetched_again(server: HubServer, tmp_path: Path) -> None:
    checkpoint, other = checkpoints_of(server)[:2]
    with Cache(tmp_path, 2 * CHECKPOINT_BYTES) as cache:
        folder = cache.fetch(hub_of(server), checkpoint)
        cache.release(checkpoint)
        (folder / "model.safetensors").write_bytes(b"short")
        assert (cache.fetch(hub_of(server), checkpoint) / "model.safetensors").stat().st_size > WEIGHT_BYTES
        unfinished = cache.fetch(hub_of(server), other)
    (unfinished / ".klray.json").unlink()  # as when the process was killed before the end
    with Cache(tmp_path, 2 * CHECKPOINT_BYTES):
        assert folder.is_dir()
        assert not unfinished.exists()


def test_checksum_mismatch_is_tried_once_more(root: Path, tmp_path: Path) -> None:
    with FaultyHub(root, corrupt=1) as server, Cache(tmp_path, CHECKPOINT_BYTES) as cache:
        folder = cache.fetch(hub_of(server), checkpoints_of(server)[0])
        assert (folder / "model.safetensors").read_bytes() == (root / RUN / "step0/model.safetensors").read_bytes()
        assert server.requests["resolve GET"] == FILES + 1


def test_checksum_mismatch_twice_says_both_hashes_and_leaves_nothing(root: Path, tmp_path: Path) -> None:
    with FaultyHub(root, corrupt=1000) as server, Cache(tmp_path, CHECKPOINT_BYTES) as cache:
        checkpoint = checkpoints_of(server)[0]
        with pytest.raises(CheckpointError) as raised:
            cache.fetch(hub_of(server), checkpoint)
        assert raised.value.reason == "checksum_mismatch"
        announced = next(file.sha256 for file in checkpoint.files if file.is_weight)
        assert announced is not None
        assert f"announced sha256:{announced}, found sha256:" in str(raised.value)
        assert "model.safetensors of tiny/run@step0" in str(raised.value)
        assert bytes_below(cache.root) == cache.bytes == 0


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_broken_download_is_finished(root: Path, tmp_path: Path, fault: str, no_pauses: None) -> None:
    with FaultyHub(root, **{fault: 2}) as server, Cache(tmp_path, CHECKPOINT_BYTES) as cache:
        folder = cache.fetch(hub_of(server), checkpoints_of(server)[0])
        assert (folder / "model.safetensors").read_bytes() == (root / RUN / "step0/model.safetensors").read_bytes()
        assert server.requests["resolve GET"] == FILES + 2


def test_rate_limit_and_server_errors_are_waited_out(root: Path, tmp_path: Path, no_pauses: None) -> None:
    with FaultyHub(root) as server, Cache(tmp_path, CHECKPOINT_BYTES) as cache:
        checkpoint = checkpoints_of(server)[0]
        server.faults.update(busy=3, broken=2)
        assert cache.fetch(hub_of(server), checkpoint).is_dir()


def test_hub_that_goes_away_is_download_failed(root: Path, tmp_path: Path, no_pauses: None) -> None:
    with FaultyHub(root) as server:
        checkpoint = checkpoints_of(server)[0]
    with Cache(tmp_path, CHECKPOINT_BYTES) as cache:
        with pytest.raises(CheckpointError, match="check the network") as raised:
            cache.fetch(hub_of(server), checkpoint)
        assert raised.value.reason == "download_failed"
        assert bytes_below(cache.root) == cache.bytes == 0


def test_repository_that_became_gated(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "hub")
    with HubServer(tmp_path / "hub") as server, Cache(tmp_path / "cache", CHECKPOINT_BYTES) as cache:
        checkpoint = checkpoints_of(server)[0]
        (tmp_path / "hub" / RUN / ".gated").touch()
        with pytest.raises(CheckpointError, match="accept its terms") as raised:
            cache.fetch(hub_of(server), checkpoint)
    assert raised.value.reason == "gated"
    assert server.token not in str(raised.value)


def test_commit_that_went_away(root: Path, tmp_path: Path) -> None:
    with HubServer(root) as server, Cache(tmp_path, CHECKPOINT_BYTES) as cache:
        checkpoint = replace(checkpoints_of(server)[0], commit="0" * 40)
        with pytest.raises(CheckpointError, match="no such revision") as raised:
            cache.fetch(hub_of(server), checkpoint)
    assert raised.value.reason == "revision_not_found"


def test_least_recently_used_goes_first(server: HubServer, tmp_path: Path) -> None:
    first, second, third, fourth = checkpoints_of(server)[:4]
    hub = hub_of(server)
    with Cache(tmp_path, 3 * CHECKPOINT_BYTES) as cache:
        folders: dict[Checkpoint, Path] = {}
        for checkpoint in (first, second, third):
            folders[checkpoint] = cache.fetch(hub, checkpoint)
            cache.release(checkpoint)
        cache.fetch(hub, first)
        cache.release(first)
        cache.fetch(hub, fourth)
        assert [folders[one].exists() for one in (first, second, third)] == [True, False, True]
    with Cache(tmp_path, 2 * CHECKPOINT_BYTES) as cache:  # a smaller bound after a restart
        assert [folders[one].exists() for one in (first, second, third)] == [True, False, False]
        assert bytes_below(cache.root) <= cache.bytes <= cache.max_bytes


def test_evict_removes_unless_in_use_elsewhere(server: HubServer, tmp_path: Path) -> None:
    checkpoint = checkpoints_of(server)[0]
    with Cache(tmp_path, CHECKPOINT_BYTES) as cache:
        folder = cache.fetch(hub_of(server), checkpoint)
        assert cache.fetch(hub_of(server), checkpoint) == folder
        cache.evict(checkpoint)
        assert folder.exists()
        cache.evict(checkpoint)
        assert not folder.exists()
        assert cache.bytes == 0
        cache.evict(checkpoint)  # again is harmless


class Waiting(logging.Handler):
    """Tells when a fetch says that it waits for room."""

    def __init__(self) -> None:
        super().__init__()
        self.event = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "waits for room" in record.getMessage():
            self.event.set()


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    handler, logger = Waiting(), logging.getLogger("klray")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    results: list[object] = []

    def run() -> None:
        try:
            results.append(work())
        except KlrayError as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def test_prefetch_waits_until_the_present_one_is_released(server: HubServer, tmp_path: Path, waiting: Waiting) -> None:
    present, following = checkpoints_of(server)[:2]
    with Cache(tmp_path, int(1.5 * CHECKPOINT_BYTES)) as cache:
        folder = cache.fetch(hub_of(server), present)
        before = server.requests.total()
        thread, results = in_thread(lambda: cache.fetch(hub_of(server), following))
        assert waiting.event.wait(30)
        assert server.requests.total() == before
        assert folder.exists()
        cache.release(present)
        thread.join(30)
        assert results == [cache.root / "tiny--run" / following.commit]
        assert not folder.exists()


def test_closing_ends_a_waiting_fetch(server: HubServer, tmp_path: Path, waiting: Waiting) -> None:
    present, following = checkpoints_of(server)[:2]
    cache = Cache(tmp_path, CHECKPOINT_BYTES)
    cache.fetch(hub_of(server), present)
    thread, results = in_thread(lambda: cache.fetch(hub_of(server), following))
    assert waiting.event.wait(30)
    cache.close()
    thread.join(30)
    assert "was closed" in str(results[0])


def test_two_threads_download_a_checkpoint_once(server: HubServer, tmp_path: Path) -> None:
    checkpoint = checkpoints_of(server)[0]
    with Cache(tmp_path, CHECKPOINT_BYTES) as cache:
        started = [in_thread(lambda: cache.fetch(hub_of(server), checkpoint)) for _ in range(4)]
        for thread, _ in started:
            thread.join(30)
        assert len({results[0] for _, results in started}) == 1
    assert server.requests["resolve GET"] == FILES


def test_bytes_stay_below_the_bound_with_many_threads(root: Path, tmp_path: Path) -> None:
    """On disk <= promised <= max_bytes, looked at in the middle of every download and after every fetch."""
    sizes: list[tuple[int, int]] = []
    with Cache(tmp_path, int(2.5 * CHECKPOINT_BYTES)) as cache:

        def look() -> None:
            sizes.append((bytes_below(cache.root), cache.bytes))

        with FaultyHub(root, before_weights=look) as server:
            hub, checkpoints = hub_of(server), checkpoints_of(server)

            def work(seed: int) -> None:
                order = random.Random(seed).sample(checkpoints, len(checkpoints))
                for number, checkpoint in enumerate(order):
                    folder = cache.fetch(hub, checkpoint)
                    look()
                    assert (folder / "model.safetensors").stat().st_size > WEIGHT_BYTES
                    (cache.evict if number % 3 == 0 else cache.release)(checkpoint)

            threads = [in_thread(lambda seed=seed: work(seed)) for seed in range(4)]  # type: ignore[misc]
            for thread, results in threads:
                thread.join(60)
                assert results == [None]
    most = max(on_disk for on_disk, _ in sizes)
    assert most <= max(promised for _, promised in sizes) <= cache.max_bytes
    assert most > CHECKPOINT_BYTES  # two were there at a time


def test_checkpoint_above_the_bound_is_refused_before_any_request(server: HubServer, tmp_path: Path) -> None:
    checkpoint = checkpoints_of(server)[0]
    before = server.requests.total()
    with Cache(tmp_path, 100_000) as cache, pytest.raises(CheckpointError) as raised:
        cache.fetch(hub_of(server), checkpoint)
    assert raised.value.reason == "disk_full"
    for words in (f"{checkpoint.bytes:,} bytes", "may hold 100,000 bytes", "raise scoring.cache_gigabytes to 0.00"):
        assert words in str(raised.value)
    assert server.requests.total() == before


FULL_DISK = """
import pathlib, subprocess, sys
sys.path[:0] = [{project!r}]
from tests.hub_faults import RUN, FaultyHub, checkpoints_of, hub_of, write_run
from klray.checkpoints import Cache, Hub, RepositorySpec, Selection, resolve
from klray.errors import CheckpointError

disk = pathlib.Path({disk!r})
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=" + sys.argv[1], "tmpfs", str(disk)], check=True)
filled = []

def fill():
    if len(sys.argv) > 2 and not filled:
        filled.append(1)
        with open(disk / "filler", "wb", buffering=0) as filler:
            try:
                while filler.write(bytes(4096)):
                    pass
            except OSError:
                pass

with FaultyHub(pathlib.Path({root!r}), before_weights=fill) as server:
    hub = Hub(server.endpoint, server.token)
    (checkpoint,), _ = resolve(hub, Selection("tiny", (RepositorySpec({run!r}),)))
    with Cache(disk / "cache", 10**9) as cache:
        try:
            cache.fetch(hub, checkpoint)
        except CheckpointError as error:
            print(error.reason, server.requests["resolve GET"], error)
"""


@pytest.mark.parametrize(
    ("size", "fill", "words"), [("100k", [], "the disk does not have that much"), ("2m", ["fill"], "ran full")]
)
def test_full_disk(root: Path, tmp_path: Path, size: str, fill: list[str], words: str) -> None:
    """A real small file system, too small before the download or filled by another process during it."""
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-Urm", "mount", "-t", "tmpfs", "t", str(tmp_path)]).returncode:
        pytest.skip("this machine does not let users mount file systems of their own")
    script = FULL_DISK.format(project=str(Path(__file__).parents[1]), disk=str(tmp_path), root=str(root), run=RUN)
    command = [unshare, "-Urm", sys.executable, "-c", script, size, *fill]
    said = subprocess.run(command, capture_output=True, text=True, timeout=480, check=True).stdout
    reason, downloads, message = said.split(maxsplit=2)
    assert reason == "disk_full"
    assert (int(downloads) > 0) == bool(fill)
    for each in (words, "bytes are free in", "scoring.cache_dir"):
        assert each in message


def test_local_folder_is_used_in_place_and_hashed_again(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    nowhere = Hub("http://127.0.0.1:9")
    (checkpoint,), _ = resolve(nowhere, Selection("own", (RepositorySpec(str(folder)),)))
    with Cache(tmp_path / "cache", 1) as cache:
        assert cache.fetch(nowhere, checkpoint) == folder
        cache.evict(checkpoint)
        assert folder.is_dir()
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match="not what it was when the job began") as raised:
            cache.fetch(nowhere, checkpoint)
    assert raised.value.reason == "checksum_mismatch"


def test_each_cache_has_a_folder_of_its_own(tmp_path: Path) -> None:
    with Cache(tmp_path, 1) as first, Cache(tmp_path, 1) as second:
        assert [first.root.name, second.root.name] == ["worker-0", "worker-1"]
    with Cache(tmp_path, 1) as third:
        assert third.root == first.root


def test_cache_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KlrayError, match=r"cannot be used .*scoring\.cache_dir"):
        Cache(tmp_path / "file", 1)
