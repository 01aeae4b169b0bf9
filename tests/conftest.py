"""Fixtures shared by the tests: places for stores, in a folder and on an S3 server; a hub.

This file is imported before any test: what takes long to be imported comes in with the fixture that needs it.

What takes long to be made is made once for all processes of a run, by ``tests.shared.made_once``. Nobody changes it:

``study_family``  the study's family on a small scale, trained anew
``study``         a store with every kind of column of that family, published and analysed
``swept_store``   a store that ``klray score`` filled with the smallest family: a copy of it is a store to work on

``klray.tiny.family.train_family(SMALLEST)`` needs no fixture: it is trained once for a user of the machine.
"""

from __future__ import annotations

import gc
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests.s3_server import CephServer, S3Server, ceph_server, moto_server, why_no_ceph
from tests.shared import made_once

if TYPE_CHECKING:
    from klray.checkpoints import Hub
    from klray.store import Store
    from klray.tiny.hub_server import HubServer
    from tests.study_data import Study

gc.disable()  # until all is imported, which collections of garbage make a sixth longer

# On a shared machine examples take as long as they do. How many of them a test looks at: `tests.examples`.
settings.register_profile("full", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=20)
settings.load_profile("full")

SLOW_FIXTURES = {"study_family", "swept_store", "s3_server", "moto", "ceph", "ignoring", "keeping"}
S3_SERVER = "moto" if why_no_ceph() else "ceph"
FILE_SYSTEMS: dict[tuple[str, str], dict[str, Any]] = {}


@pytest.fixture(autouse=True)
def _klray_log_as_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test finds klray's log as an import leaves it, also after a verb that ran in this process set it up."""
    log = logging.getLogger("klray")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", True)
    log.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def run_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub's folder with five checkpoints of one run; nobody writes into it."""
    from tests.hub_faults import write_run

    return write_run(tmp_path_factory.mktemp("hub"), 5)


@pytest.fixture
def run_server(run_root: Path) -> Iterator[HubServer]:
    """A hub over it, with requests of its own."""
    from klray.tiny.hub_server import HubServer

    with HubServer(run_root) as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephServer]:
    """Started by the first test that wants it; about 2 s."""
    if why := why_no_ceph():
        pytest.skip(f"no Ceph: {why}")
    with ceph_server(tmp_path_factory.mktemp("ceph")) as server:
        yield server


@pytest.fixture
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Ceph, where it is installed, or moto."""
    server: S3Server = request.getfixturevalue(S3_SERVER)
    return server


@pytest.fixture
def s3_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket's prefix, with endpoint and credentials in the environment as a user would have them."""
    return new_place(s3_server, monkeypatch)


@pytest.fixture(params=["folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL for a new store, in a folder.

    With :data:`tests.stores.ON_S3_TOO` a test runs on S3, too: on Ceph, where that is, or on moto. It is for what the
    way of a server may change: copies of chunks where they lie, times of whole seconds. With
    :data:`tests.stores.EVERY_PLACE` a test runs there a third time, with obstore as the default backend: a test whose
    subject is what a place promises.
    """
    if request.param == "folder":
        return str(tmp_path / "store")
    if request.param == "obstore":
        monkeypatch.setattr("klray.store.objects.opening.DEFAULT_BACKEND", "obstore")
    return new_place(request.getfixturevalue("s3_server"), monkeypatch)


@pytest.fixture
def store(place: str) -> Store:
    """An empty store, at each place in turn."""
    from klray.store import Store
    from tests.stores import TEXTS

    return Store.create(place, TEXTS)


@pytest.fixture
def folder_store(tmp_path: Path) -> Store:
    """An empty store in a folder."""
    from klray.store import Store
    from tests.stores import TEXTS

    return Store.create(str(tmp_path / "store"), TEXTS)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """The smallest embedded family, served."""
    from klray.tiny.family import train_family
    from klray.tiny.family_recipe import SMALLEST
    from klray.tiny.hub_server import HubServer
    from tests.hub_faults import hub_of

    with HubServer(train_family(SMALLEST)) as server:
        yield hub_of(server)


@pytest.fixture(scope="session")
def study_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study's family on a small scale, trained anew: its cache folder. Nobody may change it."""
    from klray.tiny.family import train_family
    from tests.study_data import SCALED

    return made_once(tmp_path_factory, "study", lambda cache: train_family(SCALED, cache, workers=1))


@pytest.fixture(scope="session")
def study(study_family: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A store with every kind of column of that family, published and analysed; nobody may change it."""
    pytest.importorskip("bitsandbytes")
    import torch

    from klray.tiny.family import family_root
    from tests.study_data import SCALED, Study, make_study

    def make(folder: Path) -> None:
        threads = torch.get_num_threads()
        make_study(family_root(SCALED, study_family), folder).save(folder)
        torch.set_num_threads(threads)

    return Study.load(made_once(tmp_path_factory, "study_store", make))


@pytest.fixture(scope="session")
def swept_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in a folder that one worker of ``klray score`` filled; its cache is beside it, with ``-cache`` added."""
    from klray.tiny.family import train_family
    from klray.tiny.family_recipe import SMALLEST
    from klray.tiny.hub_server import HubServer
    from tests.sweep_command import fill

    def make(folder: Path) -> None:
        with HubServer(train_family(SMALLEST)) as server:
            fill(server, folder / "store")

    return made_once(tmp_path_factory, "swept_store", make) / "store"


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken download is tried again at once."""
    from klray.errors import Pauses

    monkeypatch.setattr("klray.checkpoints.patience.PAUSES", Pauses(0.0, 6, 0.0, longest=900.0))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: the last bits do not depend on the machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def new_place(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty prefix in a bucket of its own; the process is the server's user from now on."""
    become(server, monkeypatch)
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    server.make_bucket(bucket)
    return f"s3://{bucket}/some/store"


def become(user: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the user's variables, and nothing of an account that this machine may have."""
    import s3fs

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in user.environment.items():
        monkeypatch.setenv(name, value)
    # fsspec keeps file systems by their arguments, which say nothing of the environment: each user has a set, as each
    # would have a process.
    kept = FILE_SYSTEMS.setdefault((user.endpoint, user.environment["AWS_ACCESS_KEY_ID"]), {})
    monkeypatch.setattr(s3fs.S3FileSystem, "_cache", kept)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What stands on a trained study or on a server of S3 is slow, whatever it does with it."""
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    gc.freeze()  # all that was imported: no later collection goes through it
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if why := why_no_ceph():
        terminalreporter.line(f"Ran on moto, or not at all, and not on Ceph: tests of S3, because {why}")
