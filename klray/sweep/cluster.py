"""The Ray cluster: joined or started, what it carries, and Dask on it."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import ray

from klray.errors import KlrayError
from klray.sweep.reach import silence
from klray.sweep.settings import RaySettings

log = logging.getLogger("klray")

START_SECONDS = 120  # Ray's 30 pass on a machine that is very busy
START_ATTEMPTS = 2
QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the cluster can carry: number of actors, and what each is pinned to."""

    workers: int
    gpus_per_worker: float
    cpus_per_worker: int

    @property
    def device(self) -> str:
        """Device of each actor, "auto" for several GPUs; Ray shows an actor only the GPUs that it is pinned to."""
        if self.gpus_per_worker > 1:
            return "auto"
        return "cuda" if self.gpus_per_worker > 0 else "cpu"


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a Ray cluster has altogether, and how many actors this machine carries."""

    nodes: int
    cpus: float
    gpus: float
    actors_here: int


def resources(shape: Shape) -> Resources:
    """Resources of the cluster that is connected, for actors of ``shape``."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    here = [node["Resources"] for node in alive if node["NodeID"] == ray.get_runtime_context().get_node_id()]
    room = sum(_actors_on(node, shape.gpus_per_worker, shape.cpus_per_worker) for node in here)
    cpus, gpus = (sum(node["Resources"].get(name, 0.0) for node in alive) for name in ("CPU", "GPU"))
    return Resources(len(alive), cpus, gpus, min(room, shape.workers))


@contextlib.contextmanager
def connected(settings: RaySettings, cpus_per_worker: int = 1) -> Iterator[Shape]:
    """Start or join a Ray cluster; yields how many actors of which shape it carries.

    Raises KlrayError if no cluster answers at the address, or it cannot carry a single actor of the shape asked for.
    """
    own = not ray.is_initialized()
    if own:
        address = os.environ.get("RAY_ADDRESS", "auto") if settings.address == "auto" else settings.address
        if why := silence(address):
            raise _no_ray(address, why)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if settings.address:
            try:
                ray.init(address=settings.address, **QUIET)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise _no_ray(settings.address, str(error)) from error
        else:
            _start(settings.workers, cpus_per_worker)
    try:
        yield _shape(settings, cpus_per_worker, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    finally:
        if own:
            ray.shutdown()


def _start(workers: int | None, cpus_per_worker: int) -> None:
    """Start a cluster of this machine, once more where Ray gives its own processes up."""
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", str(START_SECONDS))
    cpus = max(workers * cpus_per_worker, os.cpu_count() or 1) if workers else None
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **QUIET)
        except Exception as error:  # Ray raises this very class where a process of its own does not come up
            if attempt == START_ATTEMPTS:
                raise KlrayError(
                    f"no Ray cluster could be started on this machine ({' '.join(str(error).split())}); run the same "
                    "command when the machine is less busy, or start a cluster with 'ray start --head' and set "
                    "ray.address=auto"
                ) from error
            log.warning("Ray did not start (%s), trying once more", " ".join(str(error).split()))
        else:
            return


def _no_ray(address: str | None, found: str) -> KlrayError:
    return KlrayError(
        f"ray.address={address}: no Ray cluster could be joined ({found}); start one with 'ray start --head', or leave "
        "ray.address unset to use this machine"
    )


def _shape(settings: RaySettings, cpus_per_worker: int, nodes: list[dict[str, float]]) -> Shape:
    """Fit actors to nodes: one never spans two, and a share of a GPU never comes from two GPUs."""
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    per_worker = settings.gpus_per_worker
    if per_worker is None:
        per_worker = 1.0 if gpus else 0.0
    if per_worker < 0 or (per_worker > 1 and per_worker % 1):
        raise KlrayError(f"ray.gpus_per_worker={per_worker:g}: choose a share of one GPU, or a whole number of GPUs")
    room = sum(_actors_on(node, per_worker, cpus_per_worker) for node in nodes)
    asked = f"{cpus_per_worker} CPUs and {per_worker:g} GPUs"
    found = f"{len(nodes)} nodes with {cpus:g} CPUs and {gpus:g} GPUs together"
    if room < 1:
        raise KlrayError(
            f"a scoring actor needs {asked} on one node, the Ray cluster has {found}; lower scoring.threads or "
            "ray.gpus_per_worker, or join another cluster"
        )
    if settings.workers is not None and settings.workers > room:
        raise KlrayError(
            f"ray.workers={settings.workers}: the Ray cluster ({found}) carries {room} actors of {asked}; "
            "lower ray.workers or leave it unset"
        )
    return Shape(settings.workers or room, per_worker, cpus_per_worker)


def _actors_on(node: dict[str, float], gpus: float, cpus: int) -> int:
    by_cpus = int(node.get("CPU", 0.0) // cpus)
    if not gpus:
        return by_cpus
    present = int(node.get("GPU", 0.0))
    return min(by_cpus, present // int(gpus) if gpus >= 1 else present * int(1 / gpus + 1e-9))


@contextlib.contextmanager
def dask_on_ray(address: str | None) -> Iterator[Callable[..., Any]]:
    """Join or start a cluster; yields what computes Dask's graphs there. ImportError if Ray cannot with this Dask."""
    from ray.util.dask import ray_dask_get  # noqa: PLC0415 - Dask is the analysts' and takes half a second

    with connected(RaySettings(address=address)):
        yield ray_dask_get
