"""The Dask scheduler of an analysis: threads, a cluster of its own, or Ray's."""

import contextlib
import importlib.metadata
import os
import tempfile
from collections.abc import Iterator

import dask

from klray.errors import KlrayError, lacks
from klray.sweep.reach import silence

# Each listens on every interface unless it is told otherwise, with pages or without.
SERVERS = ("scheduler", "worker")
LOOPBACK = "127.0.0.1:0"


@contextlib.contextmanager
def dask_scheduler(scheduler: str, address: str | None = None, threads: int | None = None) -> Iterator[None]:
    """Run Dask on ``threads`` (default), a ``distributed`` cluster (by address, or of this machine), or on ``ray``.

    KlrayError: an unknown scheduler, nobody at its address, its library is not installed, or Dask on Ray does not work
    with the versions that are.
    """
    schedulers = {"threads": _threads(threads), "distributed": _distributed(address), "ray": _ray(address)}
    if scheduler not in schedulers:
        raise KlrayError(f"dask.scheduler={scheduler}: choose threads, distributed or ray")
    with schedulers[scheduler]:
        yield


@contextlib.contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    with dask.config.set(scheduler="threads", num_workers=threads or os.cpu_count() or 1):
        yield


@contextlib.contextmanager
def _distributed(address: str | None) -> Iterator[None]:
    try:
        from distributed import Client, LocalCluster  # noqa: PLC0415 - an extra, which takes a second
    except ModuleNotFoundError as error:
        raise KlrayError(f"dask.scheduler=distributed: {lacks(error)}") from error
    if why := silence(address):
        raise KlrayError(
            f"dask.address={address}: no Dask scheduler answers ({why}); start one with 'dask scheduler', or "
            "leave dask.address unset to use this machine"
        )
    with contextlib.ExitStack() as stack:
        if not address:
            # Dask's own choice has one name for everybody, who may have left links there, or what is read as pickles.
            place = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="klray-", dir=dask.config.get("temporary-directory", None))
            )
            routes: dict[str, list[str]] = {f"distributed.{each}.http.routes": [] for each in SERVERS}
            stack.enter_context(dask.config.set({**routes, "temporary-directory": place}))
            own = LocalCluster(
                n_workers=1,
                processes=False,
                dashboard_address=LOOPBACK,
                worker_dashboard_address=LOOPBACK,
                scheduler_kwargs={"dashboard": False},
            )
        stack.enter_context(Client(address or stack.enter_context(own)))
        yield


@contextlib.contextmanager
def _ray(address: str | None) -> Iterator[None]:
    try:
        from klray.sweep.cluster import dask_on_ray  # noqa: PLC0415 - Ray is an extra, which an analyst need not have
    except ModuleNotFoundError as error:
        raise KlrayError(f"dask.scheduler=ray: {lacks(error)}") from error
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(dask.config.set(scheduler=stack.enter_context(dask_on_ray(address))))
            works = int(dask.delayed(sum)([1, 2]).compute()) == 3
        except (TypeError, AttributeError, ValueError, KeyError, ImportError) as error:
            if isinstance(error, KlrayError):
                raise
            raise _dask_on_ray(str(error)) from error
        if not works:
            raise _dask_on_ray("a sum came out wrong")
        yield


def _dask_on_ray(found: str) -> KlrayError:
    return KlrayError(
        f"dask.scheduler=ray: Dask {dask.__version__} does not run on Ray {importlib.metadata.version('ray')} "
        f"({found}); set dask.scheduler=threads or distributed"
    )
