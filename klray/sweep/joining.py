"""Ray, started on this machine for its owner alone, or joined where it runs already.

Ray puts the driver's working directory on the path of all workers, wherever they run: it is started, and joined, from
the root folder, where only an administrator leaves files.
"""

import contextlib
import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray._private import ray_constants, services
from ray._private.node import Node
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # type: ignore[attr-defined]

from klray.errors import KlrayError
from klray.sweep.processes import private_folder, safe_environment, with_environment
from klray.sweep.reach import silence

log = logging.getLogger("klray")

START_SECONDS = 120  # Ray's 30 pass on a machine that is very busy
START_ATTEMPTS = 2
QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
# Three of the Python processes of Ray's head do nothing for a cluster of one machine, of one driver, without dashboard:
# they scale clusters, carry logs to drivers, and serve the web page. A start takes 4.8 s of CPU with them, 2.3 without.
SPARED = ("start_monitor", "start_log_monitor", "start_api_server")
TERMINATED = 128 + signal.SIGTERM  # as shells count
# Of Ray's folder, the longest socket: <private folder>/ray/session_<date>_<microseconds>_<pid>/sockets/plasma_store
_SOCKET = "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"


@contextlib.contextmanager
def started(workers: int | None, cpus_per_worker: int, metrics: bool = False) -> Iterator[None]:
    """A cluster of this machine for the length of the context, started once more where Ray gives its processes up.

    It listens on the loopback interface alone and wants a token, which only its own processes have; its sockets and
    logs are in a folder that nobody else may enter. With ``metrics`` Ray's exporter, where it is installed, has a port
    on loopback that wants none.
    """
    cpus = max(workers * cpus_per_worker, os.cpu_count() or 1) if workers else None
    with private_folder(_SOCKET) as folder, _own_token():
        with with_environment(_for_workers(folder, metrics)):  # this process has sockets that outlast the folder
            _start(folder, cpus)
        try:
            yield
        finally:
            ray.shutdown()


def _start(folder: Path, cpus: int | None) -> None:
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            # Ray's way to have 127.0.0.1 as the node
            with _spared(), _replaced(ray_constants, "ENABLE_RAY_CLUSTER", value=False):
                _init(address="local", num_cpus=cpus, include_dashboard=False, _temp_dir=str(folder / "ray"))
            return
        except Exception as error:  # Ray raises this very class where a process of its own does not come up
            _end_processes_of(folder)
            if attempt == START_ATTEMPTS:
                raise KlrayError(
                    f"no Ray cluster could be started on this machine ({_line(error)}); run the same command when "
                    "the machine is less busy, or start a cluster with 'ray start --head' and set ray.address=auto"
                ) from error
            log.warning("Ray did not start (%s), trying once more", _line(error))


def _end_processes_of(folder: Path) -> None:
    """End what a start that failed has left running: Ray keeps its server until this process ends."""
    import psutil  # noqa: PLC0415 - Ray brings it, and puts it on the path when it is imported

    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if str(folder) in " ".join(each.cmdline()):
                each.kill()
                each.wait(10)


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    """The cluster at an address, with the token that the environment gives; KlrayError if it cannot be joined."""
    at = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address
    if why := silence(at):
        raise _no_ray(at, why)
    try:
        _check_token(at)
        _init(address=address)
    except KlrayError:
        raise
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _no_ray(address, _line(error)) from error
    try:
        yield
    finally:
        ray.shutdown()


def _init(**options: Any) -> None:
    """``ray.init`` from the root folder, also under 'uv run', which would have the working directory sent to workers.

    SIGTERM stays what it was, to end a job as Ctrl-C does: Ray's handlers print the stack.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    before = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.chdir("/"), _replaced(ray_constants, "RAY_ENABLE_UV_RUN_RUNTIME_ENV", value=False):
            ray.init(**options, **QUIET)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _exit if before in (signal.SIG_DFL, None) else before)


def _exit(*_: object) -> None:
    raise SystemExit(TERMINATED)


def _for_workers(folder: Path, metrics: bool) -> dict[str, str | None]:
    seconds = "RAY_gcs_server_port_wait_time_s"
    waits = os.environ.get(seconds, str(START_SECONDS))
    export = {"RAY_enable_metrics_collection": str(int(metrics))}
    where = {"RAY_TMPDIR": str(folder)}  # where model processes have sockets, too
    return {**safe_environment(), **export, **where, seconds: waits}


@contextlib.contextmanager
def _own_token() -> Iterator[None]:
    """A token for a new cluster, in the environment of its processes alone: in no file and on no command line."""
    token = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_AUTH_TOKEN_PATH": None, "RAY_AUTH_MODE": None}
    try:
        with with_environment(token):  # ray.init sets the mode
            AuthenticationTokenLoader.instance().reset_cache()
            yield
    finally:
        AuthenticationTokenLoader.instance().reset_cache()
        Config.initialize("")


@contextlib.contextmanager
def _spared() -> Iterator[None]:
    """Ray starts nothing of what is ``SPARED``, and it has by that name, for the length of the context."""
    with contextlib.ExitStack() as stack:
        for name in SPARED:
            if hasattr(Node, name):
                stack.enter_context(_replaced(Node, name, value=lambda *_, **__: None))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, *, value: object) -> Iterator[None]:
    """Ray's ``owner.name`` is another, for the length of the context; constants it reads off the environment only once,
    when it is imported.
    """
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _check_token(address: str) -> None:
    """KlrayError where a cluster refuses this process: of that Ray itself speaks in C++, for half a minute."""
    mode, path = os.environ.get("RAY_AUTH_MODE", ""), os.environ.get("RAY_AUTH_TOKEN_PATH")
    if mode == "token" and not os.environ.get("RAY_AUTH_TOKEN"):
        file = Path(path) if path else Path.home() / ".ray" / "auth_token"
        if not (file.is_file() and os.access(file, os.R_OK) and file.read_text(errors="replace").strip()):
            raise _no_token(address, f"RAY_AUTH_MODE=token, and there is no token in {file}")
    if "://" in address:
        return
    at = services.canonicalize_bootstrap_address(address)
    if at is None:
        return
    try:
        with _without_error_output():
            GcsClient(address=at)
    except ray.exceptions.AuthenticationError as error:
        found = "the one given" if mode == "token" else f"a job without a token (RAY_AUTH_MODE={mode or 'disabled'})"
        raise _no_token(address, f"the cluster refuses {found}") from error


@contextlib.contextmanager
def _without_error_output() -> Iterator[None]:
    """What is written in C++ goes nowhere: for moments."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _no_token(address: str, found: str) -> KlrayError:
    return KlrayError(
        f"ray.address={address}: {found}; set RAY_AUTH_MODE=token, and the cluster's token as RAY_AUTH_TOKEN or its "
        "file as RAY_AUTH_TOKEN_PATH ('ray get-auth-token' shows it on the head node)"
    )


def _no_ray(address: str | None, found: str) -> KlrayError:
    return KlrayError(
        f"ray.address={address}: no Ray cluster could be joined ({found}); start one with 'ray start --head', or leave "
        "ray.address unset to use this machine"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
