"""An analysis that was cut short: the tiles that it wrote are not computed again, and what was lost is."""

from __future__ import annotations

import errno
import logging
import re
import shutil
import threading
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jobs.analyze import analyze
from jobs.publish import publish
from klray.analysis.kl import all_pairs
from klray.config import Config
from klray.store.objects import FolderObjects
from tests.test_pipeline import prepared

TILES = 15  # of 31 models in tiles of 7, at and above the diagonal
KEPT = re.compile(r"(\d+) of 15 tiles are there")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("published")
    config = prepared(str(folder / "store"), folder)
    publish(config)
    return config


def copy(config: Config, folder: Path) -> Config:
    shutil.copytree(str(config.store.url), folder / "store")
    copied = deepcopy(config)
    copied.store.url = str(folder / "store")
    return copied


@pytest.fixture
def config(published: Config, tmp_path: Path) -> Config:
    return copy(published, tmp_path)


@pytest.fixture(scope="module")
def whole(published: Config, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """The result of an analysis that nothing cut short."""
    return analyze(copy(published, tmp_path_factory.mktemp("whole"))).load()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the tiles of which products were taken."""
    shapes: list[tuple[int, ...]] = []
    work = all_pairs.Work.of

    def counted(self: all_pairs.Work, rows: np.ndarray, others: np.ndarray | None) -> tuple[np.ndarray, ...]:
        found = work(self, rows, others)
        if len(self.quantities) == 2:
            shapes.append(found[0].shape)
        return found

    monkeypatch.setattr(all_pairs.Work, "of", counted)
    return shapes


def cut_short(config: Config, after: int) -> Path:
    """The folder of an analysis that could write so many chunks of kl and its standard errors."""
    put, written, one = FolderObjects.put, [], threading.RLock()

    def full(self: FolderObjects, key: str, body: bytes) -> None:
        with one:  # so that nothing is being written any more when the first one fails
            if "/kl" in key and "/c/" in key:
                written.append(key)
                if len(written) > after:
                    raise OSError(errno.ENOSPC, "no room")
            put(self, key, body)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FolderObjects, "put", full)
        with pytest.raises(OSError, match="no room"):
            analyze(config)
    (attempt,) = {path.parents[3] for path in Path(str(config.store.url)).rglob("kl*/c/*/*")}
    return attempt


def whole_tiles(attempt: Path) -> list[tuple[int, int]]:
    """Those at and above the diagonal of which both matrices were written."""
    return [
        (i, j)
        for i in range(5)
        for j in range(i, 5)
        if all((attempt / name / "c" / str(i) / str(j)).is_file() for name in ("kl", "kl_standard_error"))
    ]


def there(caplog: pytest.LogCaptureFixture) -> int:
    found = KEPT.search(caplog.text)
    return int(found[1]) if found else 0


@pytest.mark.parametrize("after", [1, 24])
def test_only_what_is_missing_is_computed_and_the_result_is_the_same_to_the_bit(
    after: int, config: Config, whole: xr.Dataset, computed: list[tuple[int, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    written = whole_tiles(cut_short(config, after))
    assert after < 10 or written
    computed.clear()
    with caplog.at_level(logging.INFO, "klray"):
        result = analyze(config)
    assert there(caplog) == len(written) and len(computed) == TILES - len(written)
    xr.testing.assert_identical(result, whole)


def test_of_a_chunk_that_is_damaged_or_gone_the_tile_is_computed(
    config: Config, whole: xr.Dataset, computed: list[tuple[int, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    attempt = cut_short(config, 49)
    damaged, emptied, *_ = [attempt / "kl" / "c" / str(i) / str(j) for i, j in whole_tiles(attempt)]
    body = bytearray(damaged.read_bytes())
    body[-8] ^= 1
    damaged.write_bytes(body)
    emptied.write_bytes(b"")
    computed.clear()
    with caplog.at_level(logging.INFO, "klray"):
        values = analyze(config)["kl"].values
    assert there(caplog) + len(computed) == TILES + 2
    assert caplog.text.count("computed anew") == 2
    np.testing.assert_array_equal(values, whole["kl"].values)


def test_what_another_recipe_or_a_stranger_left_is_passed_over(
    config: Config, computed: list[tuple[int, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    attempt = cut_short(config, 40)
    (attempt.with_name("0" * 8) / "kl" / "c" / "0").mkdir(parents=True)
    (attempt.with_name("0" * 8) / "kl" / "c" / "0" / "0").write_bytes(b"x")
    (attempt.with_name("not an attempt")).mkdir()
    config.analysis.clip_quantile = 0.1
    computed.clear()
    with caplog.at_level(logging.INFO, "klray"):
        analyze(config)
    assert there(caplog) == 0 and len(computed) == TILES
