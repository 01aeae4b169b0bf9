"""The Ray cluster: joined or started, what it carries, and Dask on it."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import ray

from klray.errors import KlrayError
from klray.sweep.joining import joined, started
from klray.sweep.settings import RaySettings


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
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            own = joined(settings.address) if settings.address else started(settings.workers, cpus_per_worker)
            stack.enter_context(own)
        yield _shape(settings, cpus_per_worker, [node["Resources"] for node in ray.nodes() if node["Alive"]])


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
