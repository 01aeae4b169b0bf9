"""Datasets as objects: what Zarr itself would write, by any number of threads, and without a warning."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from klray.errors import StoreDamagedError, StoreError
from klray.store.datasets import encode_dataset, write_dataset
from klray.store.objects import JSON_BYTES, FolderObjects


def dataset() -> xr.Dataset:
    return xr.Dataset(
        {"kl": (("model", "other"), np.eye(2)), "z": ("model", da.ones(2))},
        coords={"model": np.array(["a", "b"], dtype=object), "step": ("model", [1, 2])},
        attrs={"threshold": float("nan")},
    )


def test_metadata_is_consolidated_as_zarr_does_it(tmp_path: Path) -> None:
    def expected(**options: object) -> dict[str, bytes]:
        buffers: dict[str, Any] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which is what klray's own consolidation avoids
            dataset().to_zarr(
                MemoryStore(buffers), mode="w-", zarr_format=3, consolidated=True, write_empty_chunks=True, **options
            )
        return {key: buffer.to_bytes() for key, buffer in buffers.items()}

    assert encode_dataset(dataset().compute()) == expected()
    objects = FolderObjects(tmp_path)
    write_dataset(objects, "result", dataset())
    lazy = [name for name, each in dataset().items() if each.chunks]
    checked = expected(encoding={name: {"compressors": ZstdCodec(checksum=True)} for name in lazy})
    assert lazy and {key.removeprefix("result/"): objects.get(key) for key in objects.walk("result")} == checked


@pytest.mark.slow
def test_threads_that_write_at_once_warn_of_nothing_and_leave_the_filters_alone(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)

        def write(number: int) -> None:
            for part in range(3):
                encode_dataset(dataset().compute())
                write_dataset(objects, f"{number}/{part}", dataset())
                assert warnings.filters == filters

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(write, range(8)))
    assert len(objects.names("")) == 8


def test_result_whose_objects_were_removed_while_it_was_written_is_not_finished(tmp_path: Path) -> None:
    class Removed(FolderObjects):
        def get_many(self, keys: list[str], most: int = JSON_BYTES) -> Iterator[bytes | StoreDamagedError | None]:
            self.delete_tree("result/z")
            return super().get_many(keys, most)

    with pytest.raises(StoreError, match="result was removed meanwhile; run"):
        write_dataset(Removed(tmp_path), "result", dataset())
