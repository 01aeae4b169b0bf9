"""Whether all that a sweep needs is there: Ray, the device, the disk, the hub. Imports what scores."""

import contextlib
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from klray.checkpoints import Checkpoint, Hub, contact
from klray.doctor import RAY_SECONDS, bounded, refusal, without
from klray.errors import KlrayError
from klray.store.objects import open_objects, probe
from klray.store.objects.probe import Finding, found_and_cure
from klray.sweep.cluster import Resources, Shape, address_of, connected, resources
from klray.sweep.gpu_share import workers_of_a_gpu
from klray.sweep.nodes import LOOK_SECONDS, Seen, look_at_nodes
from klray.sweep.settings import LOCAL, RaySettings, ScoringSettings
from klray.words.numbers import counted

log = logging.getLogger("klray")

TRIAL_BYTES = 1 << 20


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster as it was found: what it has, and the actors that it carries."""

    shape: Shape
    resources: Resources
    nodes: Sequence[Seen] = ()  # of a cluster that is joined
    unknown: str = ""  # why it is not known how many workers share a GPU


def examine_scoring(
    hub: Callable[[], contextlib.AbstractContextManager[Hub]],
    scoring: ScoringSettings,
    ray_settings: RaySettings,
    lacking: str = "",
    store: tuple[str, Mapping[str, Any]] | None = None,
    selected: Callable[[Hub], Sequence[Checkpoint]] = lambda _: (),
) -> Iterator[Finding]:
    """Ray, the device, the disk, and what ``hub`` opens; ``lacking``: what these settings need and is not installed.

    ``selected`` are the checkpoints that a sweep would score, asked for only where there are GPUs. Of a cluster that is
    joined, a finding for each node: also whether it reaches ``store``, a URL with its options.
    """
    if lacking:
        found, _, cure = lacking.rpartition(": ")
        yield Finding("scoring", "refused", found, cure)
    log.info("checking Ray")
    finding, cluster = _cluster(ray_settings, scoring, hub, store, selected)
    yield finding
    for seen in cluster.nodes if cluster else ():
        yield _node(seen)
    log.info("checking device and disk")
    yield _device(scoring, cluster)
    yield _disk(Path(scoring.cache_dir), scoring.cache_bytes, cluster.resources.actors_here if cluster else 1)
    log.info("checking the hub")
    yield _hub(hub)


def _cluster(
    settings: RaySettings,
    scoring: ScoringSettings,
    hub: Callable[[], contextlib.AbstractContextManager[Hub]],
    store: tuple[str, Mapping[str, Any]] | None,
    selected: Callable[[Hub], Sequence[Checkpoint]] = lambda _: (),
) -> tuple[Finding, Cluster | None]:
    unknown = ""

    def share(nodes: Sequence[Mapping[str, float]]) -> int:
        nonlocal unknown
        if not any(node.get("GPU", 0.0) >= 1 for node in nodes):
            return 1
        try:
            with hub() as opened:
                return workers_of_a_gpu(selected(opened), scoring, nodes, settings.workers)
        except (KlrayError, OSError) as error:
            unknown = f"; whether several share a GPU is not known: {found_and_cure(error)[0]}"
            return 1

    def look() -> Cluster:
        with contextlib.ExitStack() as stack:
            shape = stack.enter_context(connected(settings, scoring.threads, share))
            found = Cluster(shape, resources(shape), unknown=unknown)
            if address_of(settings) == LOCAL:
                return found
            common = None
            with contextlib.suppress(KlrayError, OSError):  # the finding of the store says why
                common = stack.enter_context(probe.common(open_objects(*store))) if store is not None else None
            place = store if common is not None else None
            return replace(found, nodes=look_at_nodes(shape, scoring, stack.enter_context(hub()), common, place))

    try:
        cluster = bounded(look, RAY_SECONDS + LOOK_SECONDS)
    except KlrayError as error:
        return refusal("Ray", error), None
    except TimeoutError as error:
        found = f"ray.address={settings.address or 'local'} {error}"
        return Finding("Ray", "refused", found, "check the address, or start a cluster with 'ray start --head'"), None
    shape, there = cluster.shape, cluster.resources
    which = f"the cluster at {settings.address}" if settings.address else "a cluster of this machine"
    gpus = f"{shape.gpus_per_worker:g} {'GPU' if shape.gpus_per_worker <= 1 else 'GPUs'}"
    each = counted(shape.cpus_per_worker, "CPU") + (f" and {gpus}" if shape.gpus_per_worker else "")
    if settings.gpus_per_worker is None and 0 < shape.gpus_per_worker < 1:
        each += f", {round(1 / shape.gpus_per_worker)} of which share a GPU (ray.gpus_per_worker=1: none)"
    has = f"{counted(there.nodes, 'node')}, {counted(round(there.cpus), 'CPU')}, {counted(round(there.gpus), 'GPU')}"
    words = f"{which}: {has}; carries {counted(shape.workers, 'actor')} of {each}{cluster.unknown}"
    return Finding("Ray", "ok", words), cluster


def _node(seen: Seen) -> Finding:
    """A row for one node: everything that is wrong there, or what is sound."""
    known = ", ".join(seen.known)
    if not seen.faults:
        return Finding(f"node {seen.host}", "ok", known)
    found, cures = ("; ".join(filter(None, words)) for words in zip(*seen.faults, strict=True))
    return Finding(f"node {seen.host}", "refused", "; ".join(filter(None, (found, known))), cures)


def _device(scoring: ScoringSettings, cluster: Cluster | None) -> Finding:
    """The device that this machine's actors would score on."""
    cuda = torch.cuda.is_available()
    on_gpu = cluster.shape.device != "cpu" if cluster else cuda
    if on_gpu and not cuda:
        if cluster and not cluster.resources.actors_here:
            return Finding("device", "skipped", "the cluster's GPUs are in other machines")
        return Finding(
            "device",
            "refused",
            f"Ray pins actors to GPUs, and PyTorch {torch.__version__} finds none it can use",
            "install a PyTorch for this machine's CUDA driver, or score on the CPUs with ray.gpus_per_worker=0",
        )
    if on_gpu:
        names = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        found = ", ".join(f"{each.name} with {each.total_memory / 1e9:.0f} GB" for each in names)
        if scoring.dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            emulated = f"{found}: bfloat16 is emulated there"
            return Finding("device", "warning", emulated, "set scoring.dtype=float16 or float32")
        faster = ", scoring.dtype=bfloat16 is several times as fast" if scoring.dtype == "float32" else ""
        return Finding("device", "ok", f"{found}; {scoring.dtype}{faster}")
    found = f"{counted(os.cpu_count() or 1, 'CPU')}, {counted(scoring.threads, 'thread')} an actor"
    if scoring.dtype != "float32":
        slow = f"{found}: {scoring.dtype} is slow on most CPUs, and less exact"
        return Finding("device", "warning", slow, "set scoring.dtype=float32")
    return Finding("device", "ok", f"{found}; float32")


def _disk(folder: Path, cache_bytes: int, workers: int) -> Finding:
    """Each worker's cache may grow to ``cache_bytes``; what is in the folder now will be reused or evicted."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(TRIAL_BYTES))
            file.flush()
            os.fsync(file.fileno())
        status = os.statvfs(there)
        used = _bytes_below(folder)
    except OSError as error:
        found = f"scoring.cache_dir={folder} cannot be written to ({error.strerror or error})"
        return Finding("disk", "refused", found, "set scoring.cache_dir= to a folder on a disk with room")
    free = status.f_bavail * status.f_frsize
    found = f"{free / 1e9:.1f} GB free at {folder}"
    found += f", and {used / 1e9:.1f} GB of checkpoints there" if used else ""
    need = cache_bytes * workers
    if free + used < need:
        fits = math.floor((free + used) / workers / 1e8) / 10
        cure = f"set scoring.cache_gigabytes={fits:g}, or scoring.cache_dir= to a larger disk"
        found += f"; {counted(workers, 'worker')} of this machine may fill {need / 1e9:.1f} GB"
        return Finding("disk", "warning", found, cure)
    return Finding(
        "disk", "ok", f"{found}; the caches of {counted(workers, 'worker')} take {need / 1e9:.1f} GB at most"
    )


def _bytes_below(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # removed by a worker in this moment
            size += path.stat().st_size if path.is_file() else 0
    return size


def _hub(hub: Callable[[], contextlib.AbstractContextManager[Hub]]) -> Finding:
    token, address = "", ""
    try:
        with hub() as opened:
            token, address = opened.token or "", opened.address
            found = bounded(lambda: contact(opened))
    except TimeoutError as error:
        return Finding("hub", "refused", f"{address} {error}", "check the network and HF_ENDPOINT")
    except (KlrayError, OSError) as error:
        return without(refusal("hub", error), token)
    words = f"{address} answers in {1000 * found.seconds:.0f} ms"
    if token:
        words += f"; the token is {found.user}'s" if found.user else "; the token is accepted"
    else:
        words += "; there is no token, so gated models would be refused"
    if found.requests_left is not None:
        of = f" of {found.requests_limit:,}" if found.requests_limit else ""
        within = f" in {found.window_seconds:,} s" if found.window_seconds else ""
        words += f"; {found.requests_left:,}{of} requests{within} are left"
    finding = Finding("hub", "ok", words)
    if found.requests_left == 0:
        finding = replace(finding, verdict="warning", cure="wait: klray does too, when the hub says so")
    return without(finding, token)
