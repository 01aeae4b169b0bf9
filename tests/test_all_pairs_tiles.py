"""All-pairs KL by tiles: kinds of arrays, chunkings, threads, the bits of a pair, growth, and memory."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from distributed import Client
from threadpoolctl import threadpool_info, threadpool_limits

from klray.analysis.kl import all_pairs as divergence
from klray.analysis.kl import tiles
from klray.analysis.kl.all_pairs import kl_divergence, kl_standard_error, kl_with_standard_error
from klray.analysis.kl.panels import Shelf
from klray.analysis.kl.tiling import tiling
from tests.kl_matrices import BOTH, KINDS, N, kl_of_pair, matrix, standard_error_of_pair, text_bytes

BLAS = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]  # type: ignore[call-overload, index]


OPENBLAS = pytest.mark.skipif("openblas" not in BLAS, reason=f"equal bits are promised with OpenBLAS, this is {BLAS}")


@BOTH
@pytest.mark.parametrize(
    ("kind", "chunks", "tile"),
    [
        *(("trajectory", (7, -1), 7), ("trajectory", (1, -1), 30), ("trajectory", (30, 400), 13)),
        *(("trajectory", (4, -1), 1), ("float32 nearly identical", ((5, 1, 20, 4), (1000, 1, 299)), 8)),
    ],
)
def test_dask_is_lazy_and_agrees_over_chunkings(quantity: Callable, kind: str, chunks: Any, tile: int) -> None:
    values = matrix(kind)[: 5 if tile == 1 else 30]
    chunks = chunks if len(values) == 30 or not isinstance(chunks[0], tuple) else (4, -1)
    looked_at: list[int] = []
    lazy_values = da.from_array(values, chunks=chunks).map_blocks(
        lambda b: looked_at.append(len(b)) or b, dtype=values.dtype
    )
    looked_at.clear()
    lazy = quantity(lazy_values, text_bytes(), tile=tile)
    assert isinstance(lazy, da.Array)
    assert looked_at == []
    assert lazy.chunks[0] == lazy.chunks[1] == da.core.normalize_chunks(tile, (len(values),))[0]
    found = lazy.compute()
    np.testing.assert_allclose(
        found, quantity(values, text_bytes()), rtol=1e-9 if quantity is kl_standard_error else 1e-12
    )
    np.testing.assert_array_equal(np.diagonal(found), 0.0)
    np.testing.assert_array_equal(found, found.T)
    assert (found >= 0).all()


@BOTH
def test_xarray_in_xarray_out(quantity: Callable) -> None:
    values = matrix("trajectory", 5)
    data = xr.DataArray(
        values.T,
        {
            "model": [f"m{i}" for i in range(5)],
            "step": ("model", np.arange(5)),
            "text": np.arange(N),
            "text_bytes": ("text", text_bytes()),
            "snapshot": "now",
        },
        ("text", "model"),
    )
    found = quantity(data, data["text_bytes"])
    assert found.dims == ("model", "other")
    assert found.attrs["units"] == "bit/byte"
    assert found.name == {kl_divergence: "kl", kl_standard_error: "kl_standard_error"}[quantity]
    assert set(found.coords) == {"model", "step", "other", "snapshot"}
    assert found.sel(model="m1", other="m3").item() == found.values[1, 3] > 0
    np.testing.assert_array_equal(found.values, quantity(values, text_bytes()))
    lazy = quantity(data.chunk(model=2), data["text_bytes"], tile=3)
    assert isinstance(lazy.data, da.Array)
    np.testing.assert_allclose(lazy.values, found.values, rtol=1e-9)


@BOTH
def test_each_pair_of_tiles_is_computed_once(quantity: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[int, int]] = []
    original, lock = divergence._tile, threading.Lock()

    def counting(*arguments: Any) -> np.ndarray:
        with lock:
            counted.append((len(arguments[1]), len(arguments[1] if arguments[2] is None else arguments[2])))
        return original(*arguments)

    monkeypatch.setattr(divergence, "_tile", counting)
    values = matrix("trajectory", 30, 300)
    quantity(da.from_array(values, chunks=(9, -1)), text_bytes(300), tile=8).compute(scheduler="threads")
    assert sorted(counted) == sorted([(8, 8)] * 6 + [(8, 6)] * 3 + [(6, 6)])


@pytest.mark.slow
def test_tiles_on_a_distributed_cluster() -> None:
    values = matrix("trajectory", 20, 300)
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None):
        found = kl_divergence(da.from_array(values, chunks=(6, -1)), text_bytes(300), tile=7).compute()
    np.testing.assert_array_equal(found, kl_divergence(values, text_bytes(300)))


def test_products_run_in_one_thread_and_blas_gets_its_threads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def threads() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    seen: list[set[int]] = []
    monkeypatch.setattr(tiles, "variance", lambda *_: seen.append(threads()) or np.zeros((1, 1)))
    before = threads()
    kl_divergence(np.zeros((1, 4)), np.ones(4))
    kl_divergence(da.zeros((1, 4)), np.ones(4)).compute(scheduler="threads")
    assert seen == [{1}, {1}]
    assert threads() == before


@OPENBLAS
@pytest.mark.parametrize(("n_texts", "dtype"), [(2, np.float64), (257, np.float32), (N, np.float32), (N, np.float64)])
def test_bits_of_a_pair_do_not_depend_on_others_or_position(n_texts: int, dtype: type) -> None:
    n_models = 2 * tiles.ROWS + 9
    rng = np.random.default_rng(n_texts)
    values = rng.normal(size=n_texts) * 300 + 10.0 ** rng.uniform(-3, 3, (n_models, 1)) * rng.normal(
        size=(n_models, n_texts)
    )
    values = values.astype(dtype)
    sizes = text_bytes(n_texts)
    whole = kl_divergence(values, sizes)
    order = rng.permutation(n_models)
    np.testing.assert_array_equal(kl_divergence(values[order], sizes), whole[np.ix_(order, order)])
    for chosen in (slice(0, 3), slice(100, 400), rng.choice(n_models, 40, replace=False)):
        np.testing.assert_array_equal(kl_divergence(values[chosen], sizes), whole[chosen][:, chosen])
    for tile in (100, 256, 300):
        np.testing.assert_array_equal(kl_divergence(values, sizes, tile=tile), whole)
    lazy = kl_divergence(da.from_array(values, chunks=(77, -1)), sizes, tile=131)
    np.testing.assert_array_equal(lazy.compute(), whole)
    np.testing.assert_array_equal(kl_divergence(np.asfortranarray(values), sizes), whole)
    with threadpool_limits(2, "blas"):
        np.testing.assert_array_equal(kl_divergence(values, sizes), whole)


@BOTH
@pytest.mark.parametrize("known", [1, 8, 16, 19, 30])
@pytest.mark.parametrize("lazy", [False, True])
def test_adding_models_keeps_what_is_known(quantity: Callable, known: int, lazy: bool) -> None:
    values, sizes = matrix("trajectory", 30, 300), text_bytes(300)
    fresh = quantity(values, sizes)
    # marked, so that a value that is computed again shows
    previous = np.random.default_rng(0).random((known, known))
    previous = previous + previous.T
    if lazy:
        found = quantity(
            da.from_array(values, chunks=(11, -1)), sizes, tile=8, previous=da.from_array(previous, chunks=(5, 3))
        ).compute()
    else:
        found = quantity(values, sizes, tile=8, previous=previous)
    np.testing.assert_array_equal(found[:known, :known], previous)
    new = np.ones((30, 30), dtype=bool)
    new[:known, :known] = False
    np.testing.assert_allclose(found[new], fresh[new], rtol=1e-9 if quantity is kl_standard_error else 1e-12)
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("lazy", [False, True])
def test_adding_models_computes_their_pairs_only(lazy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    original, lock = tiles.variance, threading.Lock()

    def counting(rows: np.ndarray, others: np.ndarray | None, reference: np.ndarray | None) -> np.ndarray:
        with lock:
            computed.append(len(rows) * (len(rows) - 1) // 2 if others is None else len(rows) * len(others))
        return original(rows, others, reference)

    monkeypatch.setattr(tiles, "variance", counting)
    values = matrix("trajectory", 30, 300)
    rows = da.from_array(values, chunks=(9, -1)) if lazy else values
    np.asarray(kl_divergence(rows, text_bytes(300), tile=8, previous=kl_divergence(values[:19], text_bytes(300))))
    assert sum(computed) - 19 * 18 // 2 == 30 * 29 // 2 - 19 * 18 // 2


def lazily(values: np.ndarray, tile: int, reference: np.ndarray) -> list[np.ndarray]:
    """KL and standard errors of the same products, of a Dask array."""
    rows = xr.DataArray(da.from_array(values, chunks=(9, -1)), dims=("model", "text"))
    found = kl_with_standard_error(rows, text_bytes(values.shape[1]), reference=reference, tile=tile)
    return [each.values for each in dask.compute(*found)]


@pytest.mark.parametrize("kind", KINDS)
def test_both_at_once_agree_with_an_independent_evaluation(kind: str) -> None:
    values, sizes = matrix(kind, 12), text_bytes()
    kl, error = lazily(values, 5, values[6])
    for i in range(len(values)):
        for j in range(len(values)):
            expected = kl_of_pair(values[i], values[j], sizes), standard_error_of_pair(values[i], values[j], sizes)
            assert (kl[i, j], error[i, j]) == (
                pytest.approx(expected[0], rel=1e-10, abs=0),
                pytest.approx(expected[1], rel=1e-8, abs=0),
            )


@OPENBLAS
def test_bits_of_both_do_not_depend_on_others_or_position() -> None:
    values = matrix("trajectory", 2 * tiles.ROWS + 9, 257).astype(np.float32)
    reference = values[100]
    whole = lazily(values, 512, reference)
    order = np.random.default_rng(0).permutation(len(values))
    for found, expected in zip(lazily(values[order], 100, reference), whole, strict=True):
        np.testing.assert_array_equal(found, expected[np.ix_(order, order)])
    part = slice(90, 130)
    for found, expected in zip(lazily(values[part], 7, reference), whole, strict=True):
        np.testing.assert_array_equal(found, expected[part, part])


@pytest.mark.parametrize(("room", "most"), [(4, 72), (12, 12)])
def test_panels_are_read_as_few_times_as_the_room_allows(room: int, most: int) -> None:
    """Twelve panels, and 78 tiles: without any room they would be read 144 times."""
    counted: list[int] = []
    values = matrix("trajectory", 48, 300)
    rows = da.from_array(values, chunks=(4, -1)).map_blocks(
        lambda block: counted.append(1) or block, dtype=values.dtype, meta=np.empty((0, 0))
    )
    labelled = xr.DataArray(rows, dims=("model", "text"))
    found = kl_with_standard_error(labelled, text_bytes(300), reference=values[0], tile=4, room=room)
    with dask.config.set(scheduler="synchronous"):
        kl, _ = dask.compute(*found)
    np.testing.assert_allclose(kl.values, kl_divergence(values, text_bytes(300)), rtol=1e-10)
    assert len(counted) <= most


def test_a_shelf_lets_go_what_is_needed_least() -> None:
    shelf = Shelf(room=4, uses=5)
    for number in (0, 1, 1, 2, 3, 4):
        if shelf.get(number) is None:
            shelf.put(number, np.zeros(1))
    assert [number for number in range(5) if shelf.get(number) is not None] == [0, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_models", "n_texts", "tile", "budget"), [(1500, 900, 256, None), (1100, 5000, 128, 60), (2200, 700, None, 120)]
)
def test_memory_stays_below_the_projection(
    tmp_path: Path, n_models: int, n_texts: int, tile: int | None, budget: int | None
) -> None:
    """Both matrices, from chunks that fit no tile to files that are written tile by tile; in whole and in part."""

    def read(block_info: Any = None) -> np.ndarray:
        (start, stop), _ = block_info[None]["array-location"]
        return np.random.default_rng(start).normal(-900, 300, (stop - start, n_texts)).astype(np.float32)

    threads, chunk = 2, 100
    chunks = da.core.normalize_chunks((chunk, -1), (n_models, n_texts))
    values = da.map_blocks(read, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0), np.float32))
    plan = tiling(n_models, n_texts, threads, 4, chunk, budget and budget * 2**20, tile)
    assert budget is None or plan.needed_bytes <= budget * 2**20
    labelled = xr.DataArray(values, dims=("model", "text"))
    files = [np.memmap(tmp_path / name, np.float64, "w+", shape=(n_models, n_models)) for name in ("kl", "error")]
    tracemalloc.start()
    try:
        options = {"reference": np.zeros(n_texts), "tile": plan.tile, "room": plan.room}
        matrices = [each.data for each in kl_with_standard_error(labelled, text_bytes(n_texts), **options)]
        with dask.config.set(scheduler="threads", num_workers=threads):
            da.store(matrices, files, lock=False)
        measured = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert measured <= plan.needed_bytes < 4 * measured
    np.testing.assert_array_equal(files[0], np.asarray(files[0]).T)


def test_neither_input_nor_result_need_fit_in_memory() -> None:
    """100,000 models: the input has 4 GB, each matrix 80 GB."""
    plan = tiling(100_000, 10_000, 2, 4, 400, budget_bytes=2 * 2**30)
    assert plan.needed_bytes <= 2 * 2**30
    assert plan.room < -(-100_000 // plan.tile)
