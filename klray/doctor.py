"""Doctor: whether everything that a sweep and an analysis need is there, each finding with what to do about it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import math
import os
import platform
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import dask
import torch

from klray.analysis.cluster import dask_scheduler
from klray.checkpoints import Hub, contact
from klray.errors import KlrayError, StoreError
from klray.store.objects import open_objects
from klray.store.objects.endpoint import impatient, why_silent
from klray.store.objects.probe import CONDITIONAL, Finding, found_and_cure, probe
from klray.sweep.cluster import Resources, Shape, connected, resources
from klray.sweep.settings import RaySettings, ScoringSettings
from klray.words.secrets import without_secrets

log = logging.getLogger("klray")

T = TypeVar("T")

PATIENCE_SECONDS = 15.0  # with one step of what may never answer
RAY_SECONDS = 150.0  # a cluster of this machine takes 5 s to start, and much longer on a busy one
TRIAL_BYTES = 1 << 20
LIBRARIES = ("torch", "transformers", "huggingface_hub", "ray", "dask", "zarr", "xarray", "numpy", "s3fs", "obstore")


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster as it was found: what it has, and the actors that it carries."""

    shape: Shape
    resources: Resources


def examine(
    store_url: str | None,
    storage_options: Mapping[str, Any],
    hub: Callable[[], contextlib.AbstractContextManager[Hub]],
    scoring: ScoringSettings,
    ray_settings: RaySettings,
    scheduler: str = "threads",
    scheduler_address: str | None = None,
    single_writer: bool = False,
) -> Iterator[Finding]:
    """Look at one thing after the other, and say in the log which; no secret is in a finding.

    ``hub`` opens the hub; ``scheduler`` and its address are Dask's. Whatever does not answer is given up after 15 s.
    With ``single_writer`` a store's place need not create conditionally: that it does not is then a warning.
    """
    log.info("checking libraries")
    yield _versions()
    log.info("checking Ray")
    finding, cluster = _cluster(ray_settings, scoring.threads)
    yield _without(finding)
    log.info("checking device and disk")
    yield _device(scoring, cluster)
    yield _disk(Path(scoring.cache_dir), scoring.cache_bytes, cluster.resources.actors_here if cluster else 1)
    log.info("checking Dask")
    yield _without(_dask(scheduler, scheduler_address))
    log.info("checking the hub")
    yield _hub(hub)
    log.info("checking the store")
    for finding in _store(store_url, storage_options):
        if single_writer and finding.verdict == "refused" and finding.check in CONDITIONAL:
            finding = replace(finding, verdict="warning", cure="keep to store.single_writer=true: one job at a time")
        yield _without(finding)


def _versions() -> Finding:
    found = [f"klray {importlib.metadata.version('klray')}", f"Python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return Finding("libraries", "ok", ", ".join(found))


def _cluster(settings: RaySettings, cpus_per_worker: int) -> tuple[Finding, Cluster | None]:
    def look() -> Cluster:
        with connected(settings, cpus_per_worker) as shape:
            return Cluster(shape, resources(shape))

    try:
        cluster = bounded(look, RAY_SECONDS)
    except KlrayError as error:
        return _refusal("Ray", error), None
    except TimeoutError as error:
        found = f"ray.address={settings.address or 'local'} {error}"
        return Finding("Ray", "refused", found, "check the address, or start a cluster with 'ray start --head'"), None
    shape, there = cluster.shape, cluster.resources
    which = f"the cluster at {settings.address}" if settings.address else "a cluster of this machine"
    each = f"{shape.cpus_per_worker} CPUs" + (f" and {shape.gpus_per_worker:g} GPUs" if shape.gpus_per_worker else "")
    nodes = f"{there.nodes} {'nodes' if there.nodes > 1 else 'node'}"
    words = f"{which}: {nodes}, {there.cpus:g} CPUs, {there.gpus:g} GPUs; carries {shape.workers} actors of {each}"
    return Finding("Ray", "ok", words), cluster


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
            return Finding(
                "device", "warning", f"{found}: bfloat16 is emulated there", "set scoring.dtype=float16 or float32"
            )
        if scoring.dtype == "float32":
            return Finding("device", "ok", f"{found}; float32, scoring.dtype=bfloat16 is several times as fast")
        return Finding("device", "ok", f"{found}; {scoring.dtype}")
    found = f"{os.cpu_count()} CPUs, {scoring.threads} threads an actor"
    if scoring.dtype != "float32":
        return Finding(
            "device",
            "warning",
            f"{found}: {scoring.dtype} is slow on most CPUs, and less exact",
            "set scoring.dtype=float32",
        )
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
        return Finding(
            "disk",
            "refused",
            f"scoring.cache_dir={folder} cannot be written to ({error.strerror or error})",
            "set scoring.cache_dir= to a folder on a disk with room",
        )
    free = status.f_bavail * status.f_frsize
    found = f"{free / 1e9:.1f} GB free at {folder}"
    found += f", and {used / 1e9:.1f} GB of checkpoints there" if used else ""
    need = cache_bytes * workers
    if free + used < need:
        fits = math.floor((free + used) / workers / 1e8) / 10
        return Finding(
            "disk",
            "warning",
            f"{found}; {workers} workers of this machine may fill {need / 1e9:.1f} GB",
            f"set scoring.cache_gigabytes={fits:g}, or scoring.cache_dir= to a larger disk",
        )
    return Finding("disk", "ok", f"{found}; the caches of {workers} workers take {need / 1e9:.1f} GB at most")


def _bytes_below(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # removed by a worker in this moment
            size += path.stat().st_size if path.is_file() else 0
    return size


def _dask(scheduler: str, address: str | None) -> Finding:
    def trial() -> int:
        with dask_scheduler(scheduler, address):
            return int(dask.delayed(sum)([1, 2]).compute())

    which = scheduler + (f" at {address}" if address else "")
    try:
        answer = bounded(trial, RAY_SECONDS if scheduler == "ray" else PATIENCE_SECONDS)
    except KlrayError as error:
        return _refusal("Dask", error)
    except OSError as error:
        return Finding(
            "Dask",
            "refused",
            f"dask.scheduler={which} does not answer ({' '.join(str(error).split())})",
            "start it, check dask.address, or set dask=threads",
        )
    assert answer == 3
    return Finding("Dask", "ok", f"{which}: a trial sum came back")


def _hub(hub: Callable[[], contextlib.AbstractContextManager[Hub]]) -> Finding:
    token, address = "", ""
    try:
        with hub() as opened:
            token, address = opened.token or "", opened.address
            found = bounded(lambda: contact(opened))
    except TimeoutError as error:
        return Finding("hub", "refused", f"{address} {error}", "check the network and HF_ENDPOINT")
    except (KlrayError, OSError) as error:
        return _without(_refusal("hub", error), token)
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
    return _without(finding, token)


def _store(url: str | None, storage_options: Mapping[str, Any]) -> Iterator[Finding]:
    if url is None:
        yield Finding("store", "skipped", "no store was named", "set store.url= to a folder or to s3://bucket/prefix")
        return
    options = impatient(storage_options) if url.startswith("s3://") else dict(storage_options)
    try:
        objects = open_objects(url, options)
        silent = bounded(lambda: why_silent(objects))
    except (StoreError, ValueError) as error:
        yield _refusal("store", error)
        return
    except TimeoutError as error:
        silent = f"{url} {error}"
    if silent:
        yield Finding("store", "refused", silent, "check AWS_ENDPOINT_URL and the network")
        return
    findings = probe(objects)
    while True:
        try:
            finding = bounded(lambda: next(findings, None))
        except TimeoutError as error:
            yield Finding("store", "refused", f"{url} {error}", "check AWS_ENDPOINT_URL and the network")
            return
        if finding is None:
            return
        yield finding


def bounded(work: Callable[[], T], seconds: float | None = None) -> T:
    """What ``work`` returns or raises; it runs in a thread that is left behind when it takes too long.

    Raises
    ------
    TimeoutError
        It took longer than ``seconds``, by default PATIENCE_SECONDS.
    """
    limit = PATIENCE_SECONDS if seconds is None else seconds
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread that asked
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(limit)
    except TimeoutError as error:
        if future.done():
            raise
        raise TimeoutError(f"has not answered within {limit:g} s") from error


def _refusal(check: str, error: Exception) -> Finding:
    return Finding(check, "refused", *found_and_cure(error))


def _without(finding: Finding, token: str = "") -> Finding:
    """A finding without secrets: messages of other libraries may hold them."""
    found, cure = (without_secrets(words, token) for words in (finding.found, finding.cure))
    return replace(finding, found=found, cure=cure)
