"""All-pairs KL and its standard error: against an independent evaluation pair by pair, their laws, tiles and memory."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from threadpoolctl import threadpool_info, threadpool_limits

from klray.analysis.kl import all_pairs as divergence
from klray.analysis.kl import tiles
from klray.analysis.kl.all_pairs import kl_divergence, kl_standard_error, paired_standard_error, projected_memory_bytes
from klray.errors import KlrayError

BOTH = pytest.mark.parametrize("quantity", [kl_divergence, kl_standard_error])
BLAS = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]  # type: ignore[call-overload, index]
OPENBLAS = pytest.mark.skipif("openblas" not in BLAS, reason=f"equal bits are promised with OpenBLAS, this is {BLAS}")
N = 1300  # more than one block of tiles.TEXTS, the last one cut


def text_bytes(n_texts: int = N) -> np.ndarray:
    return np.random.default_rng(5).integers(257, 1025, n_texts)


def kl_of_pair(a: np.ndarray, b: np.ndarray, sizes: np.ndarray) -> float:
    difference = a.astype(np.float64) - b.astype(np.float64)
    return float(np.var(difference) / (2 * sizes.mean() * np.log(2)))


def standard_error_of_pair(a: np.ndarray, b: np.ndarray, sizes: np.ndarray) -> float:
    difference = a.astype(np.float64) - b.astype(np.float64)
    difference = difference - difference.mean()
    m2, m4 = (difference**2).mean(), (difference**4).mean()
    return float(np.sqrt((m4 - m2**2) / len(a)) / (2 * sizes.mean() * np.log(2)))


def matrix(kind: str, n_models: int = 30, n_texts: int = N) -> np.ndarray:
    rng = np.random.default_rng(3)
    text = -rng.gamma(4.0, 250.0, n_texts)
    noise = rng.normal(size=(n_models, n_texts))
    if kind == "independent":
        return 300 * noise - 900
    if kind == "trajectory":
        return text + np.cumsum(2 * noise, axis=0)
    if kind == "nearly identical":
        return text + 1e-3 * noise
    if kind == "every scale":  # from far above the threshold of the matrix products to far below it
        return text + 10.0 ** np.linspace(-4, 3, n_models)[:, None] * noise
    if kind == "offsets":
        return text + 0.1 * noise + 1e4 * np.arange(n_models)[:, None]
    if kind == "one text outweighs":
        return np.where(np.arange(n_texts) == 7, -1e5, 0.0) + 10.0 ** np.linspace(-3, 3, n_models)[:, None] * noise
    if kind == "heavy tails":
        return text + rng.standard_t(2, size=(n_models, n_texts)) * np.linspace(0.01, 100, n_models)[:, None]
    if kind == "float32":
        return (text + np.cumsum(0.5 * noise, axis=0)).astype(np.float32)
    assert kind == "float32 nearly identical"
    return (text + 1e-3 * noise).astype(np.float32)


KINDS = [
    "independent",
    "trajectory",
    "nearly identical",
    "every scale",
    "offsets",
    "one text outweighs",
    "heavy tails",
    "float32",
    "float32 nearly identical",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_agrees_with_an_independent_evaluation(kind: str) -> None:
    values, sizes = matrix(kind), text_bytes()
    kl, standard_error = kl_divergence(values, sizes), kl_standard_error(values, sizes)
    for i in range(len(values)):
        for j in range(i + 1, len(values)):
            assert kl[i, j] == pytest.approx(kl_of_pair(values[i], values[j], sizes), rel=1e-10, abs=0)
            expected = standard_error_of_pair(values[i], values[j], sizes)
            assert standard_error[i, j] == pytest.approx(expected, rel=1e-8, abs=0)
    for found in (kl, standard_error):
        assert found.dtype == np.float64
        np.testing.assert_array_equal(np.diagonal(found), 0.0)
        np.testing.assert_array_equal(found, found.T)
        assert (found >= 0).all()


def test_both_ways_of_evaluation_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kinds of matrices above mean something only if some pairs cancel and some do not."""
    counted: list[int] = []
    original = tiles.paired

    def counting(*arguments: Any) -> np.ndarray:
        counted.append(len(arguments[3]))
        return original(*arguments)

    monkeypatch.setattr(tiles, "paired", counting)
    for kernel in (tiles.variance, tiles.square_variance):
        counted.clear()
        kernel(matrix("every scale"))
        assert 30 < sum(counted) < 30 * 29 // 2 - 30


def test_subtracting_the_mean_row_spares_standard_errors_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    original = tiles.paired
    monkeypatch.setattr(tiles, "paired", lambda *given: counted.append(len(given[3])) or original(*given))
    tiles.square_variance(matrix("trajectory"))
    assert sum(counted) < 0.1 * 30 * 29 / 2


@BOTH
def test_identical_models_are_exactly_zero_apart(quantity: Callable) -> None:
    values = matrix("independent", 4)
    values = np.concatenate([values, values, values + 64.0])
    found = quantity(values, text_bytes())
    np.testing.assert_array_equal(found[:4, 4:8][np.eye(4, dtype=bool)], 0.0)
    assert found[:4, 8:][np.eye(4, dtype=bool)].max() < 1e-20  # a constant for all texts is no difference


def test_two_texts_have_no_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=(5, 2)) * 300
    kl = kl_divergence(values, np.array([300, 500]))
    expected = [[kl_of_pair(a, b, np.array([300, 500])) for b in values] for a in values]
    np.testing.assert_allclose(kl, expected, rtol=1e-10)
    assert (kl_standard_error(values, np.array([300, 500])) <= 1e-8 * kl).all()


def test_standard_error_where_all_differences_have_one_size() -> None:
    rng = np.random.default_rng(0)
    values = np.zeros((2, N))
    values[1] = np.where(rng.random(N) < 0.5, -1.0, 1.0) + 1e-3 * rng.normal(size=N)
    expected = standard_error_of_pair(values[0], values[1], text_bytes())
    assert kl_standard_error(values, text_bytes())[0, 1] == pytest.approx(expected, rel=1e-8)


def test_standard_error_is_that_of_resampled_texts() -> None:
    values, sizes = matrix("trajectory", 2), np.full(N, 700)
    rng = np.random.default_rng(1)
    resampled = [kl_of_pair(*values[:, rng.integers(0, N, N)], sizes) for _ in range(2000)]
    assert kl_standard_error(values, sizes)[0, 1] == pytest.approx(np.std(resampled), rel=0.08)


def test_standard_error_by_pairs_is_that_of_the_matrix() -> None:
    values, sizes = matrix("trajectory"), text_bytes()
    found = paired_standard_error(values[:-1], values[1:], sizes)
    np.testing.assert_allclose(found, np.diagonal(kl_standard_error(values, sizes), 1), rtol=1e-8)


# ---- kinds of arrays, chunks and tiles


@BOTH
@pytest.mark.parametrize("kind", ["trajectory", "float32 nearly identical"])
@pytest.mark.parametrize(
    ("chunks", "tile"),
    [((7, -1), 7), ((1, -1), 30), (((5, 1, 20, 4), (1000, 1, 299)), 8), ((30, 400), 13), ((4, -1), 1)],
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
            counted.append((len(arguments[2]), len(arguments[2] if arguments[3] is None else arguments[3])))
        return original(*arguments)

    monkeypatch.setattr(divergence, "_tile", counting)
    values = matrix("trajectory", 30, 300)
    quantity(da.from_array(values, chunks=(9, -1)), text_bytes(300), tile=8).compute(scheduler="threads")
    assert sorted(counted) == sorted([(8, 8)] * 6 + [(8, 6)] * 3 + [(6, 6)])


def test_tiles_on_a_distributed_cluster() -> None:
    values = matrix("trajectory", 20, 300)
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None):
        found = kl_divergence(da.from_array(values, chunks=(6, -1)), text_bytes(300), tile=7).compute()
    np.testing.assert_array_equal(found, kl_divergence(values, text_bytes(300)))


def test_products_run_in_one_thread_and_blas_gets_its_threads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def threads() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    seen: list[set[int]] = []
    monkeypatch.setattr(tiles, "_finished", lambda *_: seen.append(threads()) or np.zeros((1, 1)))
    before = threads()
    kl_divergence(np.zeros((1, 4)), np.ones(4))
    kl_divergence(da.zeros((1, 4)), np.ones(4)).compute(scheduler="threads")
    assert seen == [{1}, {1}]
    assert threads() == before


# ---- a pair's value depends on its two rows alone


@OPENBLAS
@pytest.mark.parametrize("n_texts", [2, 257, N])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
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

    def counting(rows: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
        with lock:
            computed.append(len(rows) * (len(rows) - 1) // 2 if others is None else len(rows) * len(others))
        return original(rows, others)

    monkeypatch.setattr(divergence, "KL", divergence.KL._replace(tile=counting))
    values = matrix("trajectory", 30, 300)
    rows = da.from_array(values, chunks=(9, -1)) if lazy else values
    np.asarray(kl_divergence(rows, text_bytes(300), tile=8, previous=kl_divergence(values[:19], text_bytes(300))))
    assert sum(computed) - 19 * 18 // 2 == 30 * 29 // 2 - 19 * 18 // 2


# ---- laws

MATRICES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(2, 12)),
    elements=st.integers(-5000, 0).map(float),
)


@settings(max_examples=20)
@given(MATRICES, st.integers(-1000, 1000), st.integers(-1000, 1000))
def test_shifting_a_model_or_a_text_changes_nothing(values: np.ndarray, by_model: int, by_text: int) -> None:
    sizes = np.full(values.shape[1], 600)
    shifted = values.copy()
    shifted[0] += by_model
    shifted[:, 0] += by_text
    for quantity in (kl_divergence, kl_standard_error):
        np.testing.assert_allclose(quantity(shifted, sizes), quantity(values, sizes), rtol=1e-7, atol=1e-9)


@settings(max_examples=20)
@given(MATRICES, st.integers(1, 1000))
def test_bits_per_byte_go_with_one_over_bytes(values: np.ndarray, size: int) -> None:
    once, twice = np.full(values.shape[1], size), np.full(values.shape[1], 2 * size)
    for quantity in (kl_divergence, kl_standard_error):
        np.testing.assert_array_equal(quantity(values, once), 2 * quantity(values, twice))


@settings(max_examples=20)
@given(MATRICES)
def test_the_root_of_kl_is_a_distance(values: np.ndarray) -> None:
    root = np.sqrt(kl_divergence(values, np.full(values.shape[1], 600)))
    assert (root >= 0).all()
    assert (np.diagonal(root) == 0).all()
    assert (root == root.T).all()
    detours = root[:, :, None] + root[None]
    assert (root[:, None, :] <= detours * (1 + 1e-9) + 1e-9).all()


@settings(max_examples=20)
@given(MATRICES, st.randoms(use_true_random=False))
def test_reordering_models_or_texts_reorders_the_result(values: np.ndarray, random: Any) -> None:
    models, texts = list(range(values.shape[0])), list(range(values.shape[1]))
    random.shuffle(models)
    random.shuffle(texts)
    sizes = np.arange(1, values.shape[1] + 1)
    for quantity in (kl_divergence, kl_standard_error):
        found = quantity(values[np.ix_(models, texts)], sizes[texts])
        np.testing.assert_allclose(found, quantity(values, sizes)[np.ix_(models, models)], rtol=1e-7, atol=1e-9)


# ---- memory


@pytest.mark.parametrize(("n_models", "n_texts", "tile", "threads"), [(1500, 900, 256, 2), (1100, 5000, 128, 1)])
def test_memory_stays_below_the_projection(
    tmp_path: Path, n_models: int, n_texts: int, tile: int, threads: int
) -> None:
    """Both matrices, from chunks that fit no tile to a file that is written tile by tile."""

    def read(block_info: Any = None) -> np.ndarray:
        (start, stop), _ = block_info[None]["array-location"]
        return np.random.default_rng(start).normal(-900, 300, (stop - start, n_texts)).astype(np.float32)

    chunks = da.core.normalize_chunks((350, -1), (n_models, n_texts))
    values = da.map_blocks(read, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0), np.float32))
    sizes = text_bytes(n_texts)
    files = [np.memmap(tmp_path / name, np.float64, "w+", shape=(n_models, n_models)) for name in ("kl", "error")]
    tracemalloc.start()
    try:
        matrices = [kl_divergence(values, sizes, tile=tile), kl_standard_error(values, sizes, tile=tile)]
        with dask.config.set(scheduler="threads", num_workers=threads):
            da.store(matrices, files, lock=False)
        measured = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    projected = projected_memory_bytes(n_models, n_texts, tile, threads)
    assert measured <= projected < 4 * measured
    np.testing.assert_array_equal(files[0], np.asarray(files[0]).T)


def test_the_result_need_not_fit_in_memory() -> None:
    """100,000 models: the matrix has 80 GB, a run holds the 4 GB of input and little more."""
    assert projected_memory_bytes(100_000, 10_000, 1024, 8) < 8 * 2**30


# ---- refusals


@BOTH
@pytest.mark.parametrize(
    ("values", "sizes", "words"),
    [
        (np.zeros(4), np.ones(4), r"needs the shape \(models, texts\), it has \(4,\)"),
        (np.zeros((3, 1)), np.ones(1), "at least 1 model and 2 texts .*3 models and 1 texts: score more texts"),
        (
            np.zeros((3, 4)),
            np.ones(5),
            r"text_bytes needs the shape \(4,\).* it has \(5,\): pass the bytes of the same texts",
        ),
        (np.zeros((3, 4)), 700.0, r"text_bytes needs the shape \(4,\).* it has \(\)"),
        (
            np.zeros((3, 4)),
            np.array([1, 2, 0, 3]),
            "positive numbers of UTF-8 bytes, it has 0 at text 2: leave empty texts",
        ),
        (np.zeros((3, 4)), np.array([1, np.nan, 1, 3]), "positive numbers of UTF-8 bytes, it has nan at text 1"),
        (np.zeros((3, 4)), np.array(list("abcd")), "positive numbers of UTF-8 bytes, it has dtype <U1"),
        (np.array([[0.0, 1.0], [np.inf, 0.0]]), np.ones(2), "needs finite values, model 1 has inf at text 0"),
        (np.zeros((2, 2), dtype=complex), np.ones(2), "needs real numbers, nats, it has dtype complex128"),
        (xr.DataArray(np.zeros((2, 2)), dims=("a", "text")), np.ones(2), r"dimensions \('model', 'text'\)"),
    ],
)
def test_what_has_no_divergence_is_refused(quantity: Callable, values: Any, sizes: Any, words: str) -> None:
    with pytest.raises(KlrayError, match=words):
        quantity(values, sizes)


@BOTH
def test_wrong_tiles_and_previous_results_are_refused(quantity: Callable) -> None:
    values, sizes = np.zeros((3, 4)), np.ones(4)
    with pytest.raises(KlrayError, match="tile needs at least 1 model, it is 0"):
        quantity(values, sizes, tile=0)
    with pytest.raises(KlrayError, match=r"previous needs the shape \(P, P\) with P <= 3.* it has \(4, 4\)"):
        quantity(values, sizes, previous=np.zeros((4, 4)))
    with pytest.raises(KlrayError, match=r"it has \(2, 3\): pass the matrix of an earlier state"):
        quantity(values, sizes, previous=np.zeros((2, 3)))


def test_dask_refuses_what_is_not_finite_when_computed() -> None:
    values = np.zeros((20, 4))
    values[13, 3] = np.nan
    lazy = kl_divergence(da.from_array(values, chunks=(6, 2)), np.ones(4), tile=5)
    with pytest.raises(KlrayError, match="model 13 has nan at text 3"):
        lazy.compute()
