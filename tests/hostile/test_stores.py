"""Stores that somebody else wrote: whatever lies in them costs a sentence, and nothing beside them is touched."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import resource
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import klray
from jobs.report import report
from klray.analysis.continuing import NUMERICS_VERSION, Preprocessing, earlier_result
from klray.analysis.drift import is_exact
from klray.config import Config
from klray.errors import KlrayError
from klray.store import Store
from klray.store.twins import take_over
from tests.hostile.stores import BODIES, CHUNKS, METADATA, TWIN, Case, cases, known_values, make

# All of them, 640: KLRAY_ALL_STORES=1 python -m pytest tests/hostile/test_stores.py
CASES = list(cases(every="KLRAY_ALL_STORES" in os.environ))
SHARES = 4
MEMORY = "/dev/shm"  # of Linux: a disk takes longer to make and to remove the folders than klray to look at them
SECONDS, MEGABYTES = 5.0, 1500  # of each verb on each store


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "store"
    make(folder)
    return folder


def verbs(url: str, key: str) -> dict[str, Callable[[], object]]:
    def dataset() -> object:
        return klray.open_dataset(url).load()

    def result() -> object:
        return klray.open_result(url, "t").load()

    opened = functools.cache(Store.open)

    def status() -> None:
        store = opened(url)
        catalog = store.catalog()
        store.failures(), store.wanted_keys(), store.leftovers(catalog)

    return {
        "open_dataset": dataset,
        "open_result": result,
        "status": status,
        "verify": lambda: opened(url).audit(),
        "take_over": lambda: take_over(opened(url).objects, key, TWIN, {"revision": "main"}),
        "publish": lambda: opened(url).publish(),
        "open_published": dataset,
    }


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """More than so much address space beside what is in use is refused by the system: MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEGABYTES * 10**6, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def faults(
    case: Case, sound: Path, place: Path, known: dict[str, np.ndarray], without: tuple[str, ...] = ()
) -> list[str]:
    """What went wrong with the store of ``case``; nothing, as it should be."""
    root = place / "shared" / "store"
    shutil.copytree(sound, root)
    (place / "outside").mkdir()
    (place / "outside" / "secret").write_text("mine")
    case.tamper(root)
    before, found, published = tree(place / "outside"), [], False
    for verb, work in verbs(str(root), min(set(known) - {TWIN.key})).items():
        if verb in without or (verb == "open_published" and not published):
            continue
        start, what = time.process_time(), f"{case.name} {verb}"
        try:
            with bounded_memory():
                done = work()
            published = verb == "publish"
            if "open" in verb and "log_likelihood" in done:  # type: ignore[operator]
                rows = zip(done["key"].values, done["log_likelihood"].values, strict=True)  # type: ignore[index]
                found += [f"{what}: other values" for key, row in rows if not np.array_equal(row, known[str(key)])]
        except KlrayError as error:
            if not 20 < len(str(error)) < 3000 or "\n" in str(error):
                found.append(f"{what}: no sentence: {str(error)[:200]!r}")
        except Exception as error:  # noqa: BLE001
            found.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
        if time.process_time() - start > SECONDS:
            found.append(f"{what}: {time.process_time() - start:.1f} s")
    if tree(place / "outside") != before:
        found.append(f"{case.name}: wrote outside of the store")
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("share", range(SHARES))
def test_tampered_store_costs_a_sentence(
    share: int, sound: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was tampered with: no other error, no other value, nothing read or written beside the store."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # what is tried here is not the disk
    caplog.set_level(logging.CRITICAL)
    found = []
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else tmp_path) as place:
        for number, case in enumerate(CASES[share::SHARES]):
            found += faults(case, sound, Path(place) / str(number), known_values())
            shutil.rmtree(Path(place) / str(number))
    assert found == []
    assert threading.active_count() < 200


def kinds_of_objects(sound: Path) -> dict[str, Path]:
    """One object of each kind: paths that are equal but for ids, attempts and names."""
    found = {}
    for path in sorted(each for each in sound.rglob("*") if each.is_file()):
        name = str(path.relative_to(sound))
        found.setdefault(re.sub(r"2\d{7}T\d{6}\.\d{3}Z|[0-9a-f]{8,64}|org--\w|step\d", "*", name), path)
    coordinates = [name for name in found if re.match(r"snapshots/.*/(?!log_likelihood|key|step)\w+/", name)]
    return {name: path for name, path in found.items() if name not in coordinates}  # one of each type is enough


@pytest.mark.slow
def test_one_flipped_byte_in_any_kind_of_object_is_found_and_never_read(
    sound: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    caplog.set_level(logging.CRITICAL)
    rng = np.random.default_rng(5)
    found, unseen = [], []
    for number, (kind, path) in enumerate(kinds_of_objects(sound).items()):
        name, body = str(path.relative_to(sound)), bytearray(path.read_bytes())
        body[int(rng.integers(len(body)))] ^= 1 << int(rng.integers(8))
        case = Case(kind, lambda root, name=name, body=body: (root / name).write_bytes(body))  # type: ignore[misc]
        place = tmp_path / str(number)
        found += faults(case, sound, place, known_values(), without=("take_over", "publish"))  # which write
        try:
            damages = Store.open(str(place / "shared" / "store")).audit().damages
        except KlrayError as error:
            damages = (error,)
        unseen += [] if damages else [kind]
        shutil.rmtree(place)
    assert found == []
    # Claims hold nothing; plans and failures that are damaged are passed over with a warning. Of the texts the values
    # are hashed, so that metadata from which the same values come are no damage.
    harmless = {"failures/*-*.json", "plans/fam-*.json", "snapshots/*-*.claim"}
    assert {kind for kind in unseen if not re.match(r"texts/.*zarr\.json", kind)} <= harmless, unseen


def test_the_stores_are_a_hundred_or_more_of_every_kind() -> None:
    every, chosen = ({case.name for case in cases(every)} for every in (True, False))
    assert len(chosen) >= 100 and chosen <= every
    for name in (*BODIES, *METADATA, *CHUNKS):
        assert any(case.endswith(f"-{name}") for case in chosen), name
    for kind in {case.rpartition("-")[0] for case in every if case.rpartition("-")[2].isdigit()}:
        assert any(case.startswith(kind) for case in chosen), kind


@pytest.mark.parametrize("attrs", [{}, {"recipe": "no", "snapshot": "<script>x</script>"}, {"mean_bytes": "x"}])
def test_result_that_klray_analyze_did_not_write_is_no_report(
    sound: Path, tmp_path: Path, attrs: dict[str, str]
) -> None:
    shutil.copytree(sound, tmp_path / "store")
    store = Store.open(str(tmp_path / "store"))
    data = xr.Dataset({"kl": (("model", "other"), np.eye(2)), "consecutive_kl": ("model", np.ones(2))}, attrs=attrs)
    store.write_result(store.manifest().id, "trajectory", data)
    config = Config()
    config.store.url, config.report.dir = store.url, str(tmp_path / "report")
    with pytest.raises(KlrayError, match="is not what klray analyze writes"):
        report(config)


def test_labels_of_one_width_are_read_as_they_were_written(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "store")
    store = Store.open(str(tmp_path / "store"))
    with warnings.catch_warnings(action="ignore"):  # Zarr's, of such labels
        store.write_result(store.manifest().id, "wide", xr.Dataset(coords={"model": ["a", "long"]}))
        assert store.result(store.manifest().id, "wide")["model"].values.tolist() == ["a", "long"]


def test_sound_store_is_without_fault(sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "shared" / "store")
    for work in verbs(str(tmp_path / "shared" / "store"), min(set(known_values()) - {TWIN.key})).values():
        work()
    store = Store.open(str(tmp_path / "shared" / "store"))
    assert store.audit().damages == () and store.manifest().n_columns == 4  # three and the one that was taken over


NONE_OF_ANALYZE: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {
    "no recipe": lambda result: _told(result, recipe=None),
    "a recipe that is none": lambda result: _told(result, recipe="{}"),
    "a number for a recipe": lambda result: _told(result, recipe=5),
    "of no snapshot": lambda result: _told(result, snapshot=None),
    "of no texts": lambda result: _told(result, text_set=None),
    "no errors": lambda result: result.drop_vars("kl_standard_error"),
    "not square": lambda result: result.isel(other=slice(0, 1)),
    "words for numbers": lambda result: result.assign(kl=result["kl"].astype(str).astype(object)),
    "no pairs of models": lambda result: result.drop_vars("kl").assign(kl=("model", np.ones(2))),
}


def _told(result: xr.Dataset, **attributes: object) -> xr.Dataset:
    kept = {name: value for name, value in {**result.attrs, **attributes}.items() if value is not None}
    return xr.Dataset(result.variables, attrs=kept)


def test_a_result_that_is_none_of_analyze_is_continued_by_nobody(tmp_path: Path) -> None:
    store = make(tmp_path / "store")
    snapshot = store.manifest("latest").id
    asked = Preprocessing(0.02, 0.03, 0, ())
    pairs = {name: (("model", "other"), np.eye(2)) for name in ("kl", "kl_standard_error")}
    facts = {"recipe": asked.fit(store.dataset(snapshot)).to_json(), "snapshot": snapshot, "text_set": "t"}
    result = xr.Dataset(pairs, attrs={**facts, "numerics": NUMERICS_VERSION})
    store.write_result(snapshot, "t", result)
    assert earlier_result(store, snapshot, "t", "", asked) is not None
    for change in NONE_OF_ANALYZE.values():
        store.write_result(snapshot, "t", change(result))
        assert earlier_result(store, snapshot, "t", "", asked) is None


NONE_OF_WEIGHTS: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {
    "no commits": lambda result: result.drop_vars("commit"),
    "other dimensions": lambda result: result.rename(back="rank"),
    "the other way round": lambda result: result.transpose("back", "model"),
    "words for numbers": lambda result: result.assign(squared_distance=result["squared_distance"].astype(str)),
    "odd aligned ones": lambda result: result.assign(squared_distance_aligned=("model", np.ones(2))),
    "made at no time": lambda result: _told(result, made=None),
}


def test_a_result_that_is_none_of_weights_is_known() -> None:
    pairs = {
        "squared_distance": (("model", "back"), np.ones((2, 3))),
        "other_commit": (("model", "back"), [["a"] * 3] * 2),
    }
    names = {name: ("model", ["a", "b"]) for name in ("repository", "commit")}
    result = xr.Dataset(pairs, coords=names, attrs={"made": "today"})
    assert is_exact(result)
    assert not any(is_exact(change(result)) for change in NONE_OF_WEIGHTS.values())
