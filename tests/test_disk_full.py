"""Places that refuse: a disk that runs full, a file system without hard links. A sentence, and a way on."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from klray.errors import KlrayError, StoreError
from klray.likelihood.lens.translators import Translators
from klray.store import Store
from klray.store.objects import FolderObjects, folder
from klray.tiny.family import train_family
from klray.tiny.family_recipe import SMALLEST
from klray.words import whole
from tests.stores import TEXTS, add, column
from tests.test_cli import klray as klray_says


class Os:
    """``os`` as one module sees it, where some functions are another."""

    def __init__(self, **others: Callable[..., Any]):
        self.others = others

    def __getattr__(self, name: str) -> Any:
        return self.others.get(name, getattr(os, name))


def full_from(write: int) -> Os:
    """From the ``write``th on, nothing comes to the disk any more."""
    left = iter(range(write))

    def fsync(descriptor: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return Os(fsync=fsync)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.create(str(tmp_path / "store"), TEXTS)
    add(store, *(column("a", 1000 * step) for step in range(6)))
    return store


@pytest.mark.slow
def test_a_disk_that_runs_full_costs_a_sentence_and_the_same_command_goes_on(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"store.url={store.url}", "analysis.window=3", "analysis.min_step=0", f"report.dir={tmp_path / 'report'}"]
    steps = (("publish", folder, (0, 1, 40, 90)), ("analyze", folder, (0, 50)), ("report", whole, (0,)))
    for verb, module, writes in steps:
        for write in writes:
            with monkeypatch.context() as patch:
                patch.setattr(module, "os", full_from(write))
                code, _, errors = klray_says(capsys, patch, verb, *words)
            assert code == 1, (verb, write)
            where = tmp_path / "report" / "report.html" if verb == "report" else Path(store.url)
            assert f"klray: error: {where}" in errors, errors
            assert "No space left on device; make room there and run the same command again" in errors
            assert store.audit().damages == ()
        assert not (tmp_path / "report" / "report.html").exists()
        code, _, errors = klray_says(capsys, monkeypatch, verb, *words)
        assert code == 0, errors
    assert len(store.snapshot_ids()) == 1 and store.result_names(store.manifest().id) == ["trajectory"]
    assert (tmp_path / "report" / "report.html").is_file()


@contextlib.contextmanager
def no_file_above(n_bytes: int) -> Iterator[None]:
    """Inside, a file that would grow beyond that fails, whatever writes it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_lens_and_a_family_that_find_no_room_say_where(tmp_path: Path) -> None:
    lens = Translators(torch.zeros(2, 16, 16), torch.zeros(2, 16), {})
    with no_file_above(1000), pytest.raises(KlrayError, match=rf"{tmp_path}/lens: the lens cannot be written .*room"):
        lens.save(tmp_path / "lens")
    assert list((tmp_path / "lens").iterdir()) == []
    lens.save(tmp_path / "lens")
    with no_file_above(10), pytest.raises(OSError, match=f"{tmp_path}/families/"):
        train_family(SMALLEST, tmp_path / "families")


def test_repair_makes_room_on_a_full_disk(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.objects.put("snapshots/20260101T000000.000Z-00000000/x", b"left over")
    with monkeypatch.context() as patch:
        patch.setattr(folder, "os", full_from(0))
        words = [f"store.url={store.url}", "verify.repair=true", "verify.grace_hours=0"]
        code, out, errors = klray_says(capsys, patch, "verify", *words)
    assert code == 0 and "removed    1" in out, errors
    assert store.leftovers(store.catalog()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_folder_without_hard_links_is_refused_before_anything_is_visible(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: object, target: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(folder, "os", Os(link=link))
    with pytest.raises(StoreError, match=r"no hard links .*local disk or on S3"):
        Store.create(str(tmp_path / "store"), TEXTS)
    assert list(FolderObjects(tmp_path / "store").walk("")) == []
