"""Every node of a cluster, looked at before a sweep: what a worker there is examined for, and the hub and the clock.

The rules are those of ``klray.sweep.examining``.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from klray.checkpoints import Cache, Hub, contact
from klray.errors import KlrayError
from klray.store.objects import open_objects
from klray.sweep import examining
from klray.sweep.cluster import NODE_ID, Shape
from klray.sweep.examining import Expected, UnfitError
from klray.sweep.model_process import ModelProcess
from klray.sweep.processes import spare_loopback
from klray.sweep.settings import ScoringSettings
from klray.texts import TextSet

LOOK_SECONDS = 120.0  # to all nodes together: libraries come off a slow disk


@dataclasses.dataclass(frozen=True)
class Seen:
    """What was found on one node, each fault with its cure; ``known`` is what is sound there."""

    host: str
    known: tuple[str, ...]
    faults: tuple[tuple[str, str], ...]
    clock: float = 0.0  # seconds since 1970, when it replied


class NodeActor:
    """Looks at the node where Ray has put it, as one of its workers: with its device, its environment, its disk."""

    def look(
        self, wanted: Expected, store: tuple[str, Mapping[str, Any]] | None, settings: ScoringSettings, hub: Hub
    ) -> Seen:
        """All that is found; nothing is raised."""
        spare_loopback()
        place = examining.here(ray.get_runtime_context().get_node_id())
        known, faults = [f"{os.cpu_count()} CPUs"], []
        cache = Path(settings.cache_dir), settings.cache_bytes
        checks: list[tuple[str, Callable[[], Any]]] = [
            ("", lambda: examining.check_versions(wanted.versions)),
            ("", lambda: f"{examining.check_disk(lambda: Cache(*cache), 0) / 1e9:.1f} GB for checkpoints"),
            ("", lambda: _device(settings)),
            ("the hub answers", lambda: contact(hub)),
        ]
        if store is not None:
            check = lambda: examining.check_store(store[0], lambda: open_objects(*store), wanted)  # noqa: E731
            checks.append(("reads and writes the store", check))
        for words, check_one in checks:
            try:
                found = check_one()
                known += [words or str(found)] if words or found else []
            except UnfitError as unfit:
                faults.append((unfit.found, unfit.cure))
            except KlrayError as error:
                found_, _, cure = str(error).rpartition(": ")
                faults.append((found_ or str(error), cure if found_ else ""))
        return Seen(place.host, tuple(known), tuple(faults), time.time())


def look_at_nodes(
    shape: Shape, settings: ScoringSettings, hub: Hub, common: tuple[str, bytes] | None, store: tuple[str, Any] | None
) -> list[Seen]:
    """What is found on every node of the cluster that is connected, by host; ``common`` is that of ``probe.common``.

    A node that carries no worker, as a head without CPUs, is looked at, too, without its device.
    """
    settings = dataclasses.replace(settings, device=shape.device)
    wanted = examining.expected(common or ("", b""), [])
    alive = [node for node in ray.nodes() if node["Alive"]]
    asked: dict[Any, tuple[str, Any]] = {}
    for node in alive:
        carries = shape.room_on(node["Resources"], node.get("Labels")) > 0
        options: dict[str, Any] = shape.options(set()) if carries else {"num_cpus": 0}
        options["label_selector"] = {**options.get("label_selector", {}), NODE_ID: node["NodeID"]}
        actor = ray.remote(NodeActor).options(**options).remote()
        own = settings if carries else dataclasses.replace(settings, device="cpu")
        asked[actor.look.remote(wanted, store, own, hub)] = (node["NodeManagerHostname"], actor)
    seen, late, until = [], list(asked), time.monotonic() + LOOK_SECONDS
    while late and time.monotonic() < until:
        done, late = ray.wait(late, num_returns=1, timeout=max(0.0, until - time.monotonic()))
        seen += [_answer(each, asked[each][0]) for each in done]  # at once: clocks are compared
    busy = "another job may have its CPUs and GPUs: wait until it ends"
    seen += [Seen(asked[each][0], (), ((f"no answer within {LOOK_SECONDS:.0f} s", busy),)) for each in late]
    for _, actor in asked.values():
        ray.kill(actor)
    return sorted(seen, key=lambda each: each.host)


def _answer(answer: Any, host: str) -> Seen:
    try:
        found: Seen = ray.get(answer)
        clock, _, cure = examining.clock_fault(found.clock).partition(": ")
        more = ((f"its clock {clock}", cure),) if clock else ()
        return dataclasses.replace(found, faults=(*found.faults, *more))
    except ray.exceptions.RayError as error:
        why = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
        return Seen(
            host, (), ((why, "look at Ray's logs there; klray must be installed for the Python that Ray runs"),)
        )


def _device(settings: ScoringSettings) -> str:
    """The device in words, tried in a process of its own, as models are."""
    process = ModelProcess(settings, TextSet("doctor", ("text",), ("",)))
    try:
        name, memory = examining.check_device(process.try_device)
    finally:
        process.close()
    return f"{name} with {memory / 1e9:.0f} GB"
