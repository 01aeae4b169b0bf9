"""The Ray cluster: joined or started, what it carries, what becomes of its nodes, and Dask on it."""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
import ray.exceptions
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.state import state
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.client import ray as client

from klray.errors import KlrayError
from klray.sweep.fleet import Nodes
from klray.sweep.joining import joined, started
from klray.sweep.settings import LOCAL, RaySettings
from klray.words.numbers import counted

NODE_ID = "ray.io/node-id"  # the label that Ray gives every node
_STATUS = "__autoscaling_status"  # what Ray's autoscaler tells of itself


@dataclasses.dataclass(frozen=True)
class Shape:
    """What each actor is pinned to, and how many of them the cluster carries now."""

    workers: int
    gpus_per_worker: float
    cpus_per_worker: int
    grows: bool = False  # nodes are added where actors wait
    memory_bytes: int = 0
    accelerator: str = ""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    resources: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def device(self) -> str:
        """Device of each actor, "auto" for several GPUs; Ray shows an actor only the GPUs that it is pinned to."""
        if self.gpus_per_worker > 1:
            return "auto"
        return "cuda" if self.gpus_per_worker > 0 else "cpu"

    @property
    def needs(self) -> dict[str, float]:
        """Resources of one actor, by Ray's names."""
        kind = {f"accelerator_type:{self.accelerator}": 0.001} if self.accelerator else {}
        found = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker, "memory": self.memory_bytes}
        return {name: float(each) for name, each in {**found, **kind, **self.resources}.items() if each}

    def __str__(self) -> str:
        gigabytes = f", {self.memory_bytes / 1e9:g} GB of memory" if self.memory_bytes else ""
        more = "".join(f", {name}={value}" for name, value in {**self.labels, **self.resources}.items())
        kind = f" of {self.accelerator}" if self.accelerator else ""
        return f"{self.cpus_per_worker} CPUs and {self.gpus_per_worker:g} GPUs{kind}{gigabytes}{more}"

    def options(self, avoid: set[str]) -> dict[str, Any]:
        """Ray's options of an actor that is not to be on the nodes to ``avoid``."""
        labels = dict(self.labels)
        if avoid:
            labels[NODE_ID] = f"!in({', '.join(sorted(avoid))})"
        asked = {"num_cpus": self.cpus_per_worker, "num_gpus": self.gpus_per_worker, "max_restarts": 0}
        more = {"memory": self.memory_bytes, "accelerator_type": self.accelerator, "label_selector": labels,
                "resources": dict(self.resources)}  # fmt: skip
        return {**asked, **{name: value for name, value in more.items() if value}}

    def room_on(self, node: Mapping[str, float], labels: Mapping[str, str] | None = None) -> int:
        """Actors that a node of these resources carries; a share of a GPU never comes from two GPUs."""
        if not all(_matches((labels or {}).get(name, ""), wanted) for name, wanted in self.labels.items()):
            return 0
        room = [int(node.get(name, 0.0) // each) for name, each in self.needs.items() if name != "GPU"]
        if gpus := self.gpus_per_worker:
            present = int(node.get("GPU", 0.0))
            room.append(present // int(gpus) if gpus >= 1 else present * int(1 / gpus + 1e-9))
        return min(room)


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a Ray cluster has altogether, and how many actors this machine carries."""

    nodes: int
    cpus: float
    gpus: float
    actors_here: int


def resources(shape: Shape) -> Resources:
    """Resources of the cluster that is connected, for actors of ``shape``."""
    here = sum(shape.room_on(node["Resources"]) for node in _alive() if node["NodeID"] == this_node())
    cpus, gpus = (sum(node["Resources"].get(name, 0.0) for node in _alive()) for name in ("CPU", "GPU"))
    return Resources(len(_alive()), cpus, gpus, min(here, shape.workers))


def nodes(shape: Shape) -> Nodes:
    """What the cluster that is connected has now, for actors of ``shape``."""
    draining = frozenset(_draining())
    room = {each["NodeID"]: shape.room_on(each["Resources"], each.get("Labels")) for each in _alive()}
    free, all_ = ray.available_resources(), ray.cluster_resources()
    busy = ", ".join(f"{free.get(name, 0.0):g} of {all_.get(name, 0.0):g} {name}s are free" for name in ("CPU", "GPU"))
    return Nodes({node: count for node, count in room.items() if node not in draining}, draining, shape.grows, busy)


def this_node() -> str:
    """Ray's id of the node where this process runs."""
    return str(ray.get_runtime_context().get_node_id())


def node_of(actor: Any) -> str:
    """The node of an actor, dead or alive; "" for one that never was on any."""
    found = {} if client.is_connected() else state.actor_table(actor._actor_id.hex())
    node = str(found.get("Address", {}).get("NodeID", ""))
    return node if node.strip("f") else ""


def is_dead(actor: Any) -> bool:
    """Whether an actor is known to have ended; one that does not answer may be on a node that is silent."""
    return client.is_connected() or state.actor_table(actor._actor_id.hex()).get("State") == "DEAD"


def is_lost(actor: Any, node: str, error: BaseException) -> bool:
    """Whether an actor that ended with ``error`` was lost with its ``node``, or was told to leave it."""
    told = "" if client.is_connected() else str(state.actor_table(actor._actor_id.hex()).get("DeathCause", ""))
    if getattr(error, "preempted", False) or "node has died" in f"{error} {told}":
        return True
    return bool(node) and (node not in {each["NodeID"] for each in _alive()} or node in _draining())


def is_growing() -> bool:
    """Whether Ray's autoscaler adds nodes. In a cluster that was put together by hand it only looks on, and calls the
    kind of each node by the node's id.
    """
    try:
        status = json.loads(_internal_kv_get(_STATUS) or "{}")
        kinds = ((status.get("autoscaler_report") or {}).get("node_type_mapping") or {}).items()
        return any(kind != f"node_{node}" for node, kind in kinds)
    except (ValueError, AttributeError):
        return False


def address_of(settings: RaySettings) -> str:
    """The cluster that these settings mean: inside a job of Ray's, that whose job it is."""
    return settings.address or ("auto" if os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR) else LOCAL)


@contextlib.contextmanager
def connected(
    settings: RaySettings,
    cpus_per_worker: int = 1,
    workers_of_a_gpu: Callable[[list[dict[str, float]]], int] = lambda nodes: 1,
) -> Iterator[Shape]:
    """Start or join a Ray cluster; yields how many actors of which shape it carries. Where the settings do not say it,
    ``workers_of_a_gpu`` tells how many share one, from the nodes' resources.

    Raises KlrayError if no cluster answers at the address, or it cannot carry a single actor of the shape asked for.
    """
    address = address_of(settings)
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            own = started(settings.workers, cpus_per_worker, settings.metrics) if address == LOCAL else joined(address)
            stack.enter_context(own)
        found = [(each["Resources"], each.get("Labels") or {}) for each in _alive()]
        if settings.gpus_per_worker is None and (sharing := workers_of_a_gpu([node for node, _ in found])) > 1:
            settings = dataclasses.replace(settings, gpus_per_worker=1 / sharing)
        yield _shape(settings, cpus_per_worker, found, waits=address != LOCAL, grows=address != LOCAL and is_growing())


def _shape(
    settings: RaySettings,
    cpus_per_worker: int,
    nodes: list[tuple[dict[str, float], dict[str, str]]],
    *,
    waits: bool = False,
    grows: bool = False,
) -> Shape:
    """Fit actors to nodes: one never spans two. ``waits``: for nodes that the cluster does not have yet."""
    cpus, gpus = (sum(node.get(name, 0.0) for node, _ in nodes) for name in ("CPU", "GPU"))
    per_worker = settings.gpus_per_worker
    if per_worker is None:
        per_worker = 1.0 if gpus or settings.accelerator else 0.0
    if per_worker < 0 or (per_worker > 1 and per_worker % 1):
        raise KlrayError(f"ray.gpus_per_worker={per_worker:g}: choose a share of one GPU, or a whole number of GPUs")
    shape = Shape(
        0,
        per_worker,
        cpus_per_worker,
        grows,
        int((settings.memory_gigabytes or 0) * 1e9),
        settings.accelerator or "",
        {str(name): str(value) for name, value in (settings.labels or {}).items()},
        {str(name): float(value) for name, value in (settings.resources or {}).items()},
    )
    room = sum(shape.room_on(*node) for node in nodes)
    found = f"{counted(len(nodes), 'node')} with {cpus:g} CPUs and {gpus:g} GPUs together"
    if room < 1 and not (grows or (waits and settings.workers is not None)):
        wait = ", or set ray.workers to wait for nodes that are still to come" if waits else ""
        raise KlrayError(
            f"a scoring actor needs {shape} on one node, the Ray cluster has {found}; lower scoring.threads or "
            f"ray.gpus_per_worker, or join another cluster{wait}"
        )
    if settings.workers is not None and settings.workers > room and not (waits or grows):
        raise KlrayError(
            f"ray.workers={settings.workers}: the Ray cluster ({found}) carries {room} actors of {shape}; "
            "lower ray.workers or leave it unset"
        )
    return dataclasses.replace(shape, workers=room if settings.workers is None else min(room, settings.workers))


def _matches(value: str, wanted: str) -> bool:
    """Whether a label's value is what Ray's selector wants: a, !a, in(a, b) or !in(a, b)."""
    negated, listed = wanted.startswith("!"), re.fullmatch(r"!?in\((.*)\)", wanted)
    names = [each.strip() for each in listed[1].split(",")] if listed else [wanted.lstrip("!")]
    return (value in names) != negated


def _draining() -> set[str]:
    """Nodes that are to go; of a cluster that is spoken to through Ray's client (ray://) that is not told."""
    return set() if client.is_connected() else set(state.get_draining_nodes())


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


@contextlib.contextmanager
def dask_on_ray(address: str | None) -> Iterator[Callable[..., Any]]:
    """Join or start a cluster; yields what computes Dask's graphs there. ImportError if Ray cannot with this Dask."""
    from ray.util.dask import ray_dask_get  # noqa: PLC0415 - Dask is the analysts' and takes half a second

    with connected(RaySettings(address=address)):
        yield ray_dask_get
