"""What a worker is examined for: each fault by its name and its cure, none where all is the driver's."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from klray.checkpoints import Cache, Checkpoint, Facts, RemoteFile
from klray.errors import StoreError
from klray.store import Store
from klray.store.objects import Objects, open_objects, probe
from klray.sweep.examining import Expected, examine, expected, here
from klray.sweep.model_process import ModelProcess
from klray.sweep.replies import DeviceError, Unfit, WorkerFacts
from klray.sweep.settings import ScoringSettings
from tests.stores import TEXTS, column

HERE = here("node")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache", 10**6) as cache:
        yield cache


@pytest.fixture
def wanted(folder_store: Store) -> Iterator[Expected]:
    with probe.common(folder_store.objects) as common:
        yield expected(common, [])


@pytest.fixture
def reply(folder_store: Store, cache: Cache) -> Callable[..., WorkerFacts | Unfit]:
    def reply(
        wanted: Expected,
        url: str = folder_store.url,
        objects: Callable[[], Objects] | None = None,
        device: Callable[[], tuple[str, int]] = lambda: ("cpu", 1),
    ) -> WorkerFacts | Unfit:
        return examine(HERE, wanted, url, objects or (lambda: open_objects(url)), lambda: cache, device)

    return reply


Reply = Callable[..., WorkerFacts | Unfit]


def test_a_worker_like_the_driver_is_fit(wanted: Expected, reply: Reply, folder_store: Store) -> None:
    before = time.time()
    found = reply(wanted)
    assert isinstance(found, WorkerFacts)
    assert (found.place, found.device, found.memory_bytes, found.cache_bytes) == (HERE, "cpu", 1, 10**6)
    assert before <= found.clock <= time.time()
    folder_store.add_column(column("a", 1))  # what is written to try the place is no part of the store
    assert len(folder_store.commits()) == 1 and folder_store.audit().damages == ()


def test_what_tries_the_store_is_gone_afterwards(folder_store: Store) -> None:
    with probe.common(folder_store.objects) as (key, body):
        assert probe.is_common(folder_store.objects, key, body)
        assert len(folder_store.objects.walk("probes")) == 2
    assert not (Path(folder_store.url) / "probes").exists()


@pytest.mark.parametrize(
    ("changed", "fault", "found"),
    [
        ({"versions": {"torch": "1.0", "klray": version("klray")}}, "versions", r"torch .* \(the driver has 1\.0\)$"),
        ({"common": ("probes/other/common", b"x")}, "store", r"is another one there than the driver's|share"),
        ({"least_bytes": 1 << 60}, "disk", r"^disk full: [\d,]+ bytes are free in .*, the smallest checkpoint takes"),
    ],
)
def test_each_fault_is_named(
    changed: dict[str, object], fault: str, found: str, wanted: Expected, reply: Reply
) -> None:
    unfit = reply(dataclasses.replace(wanted, **changed))  # type: ignore[arg-type]
    assert isinstance(unfit, Unfit) and unfit.fault == fault and unfit.cure
    assert re.search(found, unfit.found), unfit.found


def test_a_folder_that_is_not_shared(wanted: Expected, reply: Reply, tmp_path: Path) -> None:
    empty = reply(wanted, url=str(tmp_path / "elsewhere"), objects=lambda: Store.open(str(tmp_path / "no")).objects)
    own = reply(wanted, url=Store.create(str(tmp_path / "own"), TEXTS).url)
    for unfit in (empty, own):
        assert isinstance(unfit, Unfit) and unfit.fault == "store"
        assert "is a folder that this node does not share" in unfit.found and "store.url=s3://" in unfit.cure


def test_credentials_that_the_driver_has_and_a_worker_has_not(
    wanted: Expected, reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> Objects:
        raise StoreError("store s3://bucket/a: access denied; see that the credentials are right")

    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    there = expected(wanted.common, [])
    assert {"AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY"} <= {*there.credentials}
    unfit = reply(there, url="s3://bucket/a", objects=refused)
    assert isinstance(unfit, Unfit) and unfit.cure == "see that the credentials are right"
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    unfit = reply(there, url="s3://bucket/a", objects=refused)
    assert isinstance(unfit, Unfit) and unfit.found == "store s3://bucket/a: access denied"
    assert unfit.cure == "the driver has AWS_SECRET_ACCESS_KEY: start Ray there with them, or give the nodes a role"


def test_a_local_model_that_is_not_there_or_is_another(wanted: Expected, reply: Reply, tmp_path: Path) -> None:
    files = (RemoteFile("config.json", 2, None, "9e26dfeeb6e641a33dae4961196235bdb965b21b"),
             RemoteFile("model.safetensors", 3, "0" * 64, None))  # fmt: skip
    model = Checkpoint("mine", "main", "0" * 64, files, Facts(), directory=str(tmp_path / "model"))
    there = expected(wanted.common, [model])
    assert there.least_bytes == 0
    for change, found in (
        (lambda: None, "is not there"),
        ((tmp_path / "model").mkdir, "has no config.json"),
        (lambda: (tmp_path / "model" / "config.json").write_text("[]"), "has another config.json"),
        (lambda: (tmp_path / "model" / "config.json").write_text("{}"), "has no model.safetensors"),
        (lambda: (tmp_path / "model" / "model.safetensors").write_text("ab"), "has another model.safetensors"),
    ):
        change()
        unfit = reply(there)
        assert isinstance(unfit, Unfit) and unfit.fault == "folder" and unfit.found.endswith(found)
    (tmp_path / "model" / "model.safetensors").write_text("abc")
    assert isinstance(reply(there), WorkerFacts)


def test_what_a_device_fails_with_is_its_own(wanted: Expected, reply: Reply) -> None:
    def broken() -> tuple[str, int]:
        raise RuntimeError("CUDA error: unspecified launch failure")

    unfit = reply(wanted, device=broken)
    assert isinstance(unfit, Unfit) and unfit.fault == "device"
    assert unfit.found == "the device does not work: RuntimeError: CUDA error: unspecified launch failure"


@pytest.mark.slow
def test_the_device_is_tried_where_the_models_are_to_be(tmp_path: Path) -> None:
    with contextlib.closing(ModelProcess(ScoringSettings(), TEXTS)) as process:
        name, memory = process.try_device()
        assert name == "cpu" and memory > 10**8
        pid = process.pid
        assert process.try_device() == (name, memory) and process.pid == pid
    with contextlib.closing(ModelProcess(ScoringSettings(device="cuda"), TEXTS)) as process:
        if torch.cuda.is_available():
            assert process.try_device()[1] > 10**9
        else:
            with pytest.raises(DeviceError, match="finds no CUDA device"):
                process.try_device()
    lens = ScoringSettings(lens="tuned-0123", lens_folder=str(tmp_path / "none"))
    with contextlib.closing(ModelProcess(lens, TEXTS)) as process, pytest.raises(Exception, match="none") as caught:
        process.try_device()
    assert not isinstance(caught.value, DeviceError)
