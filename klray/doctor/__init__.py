"""Doctor: whether all that an analysis needs is there, each finding with what to do; a sweep: klray.doctor.scoring."""

import importlib.metadata
import logging
import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

import dask

from klray.analysis.cluster import dask_scheduler
from klray.errors import KlrayError, StoreError
from klray.store.objects import open_objects
from klray.store.objects.endpoint import impatient, why_silent
from klray.store.objects.probe import CONDITIONAL, Finding, found_and_cure, probe
from klray.words.secrets import without_secrets

log = logging.getLogger("klray")

T = TypeVar("T")

PATIENCE_SECONDS = 15.0  # with one step of what may never answer
RAY_SECONDS = 150.0  # a cluster of this machine takes 5 s to start, and much longer on a busy one
LIBRARIES = ("torch", "transformers", "huggingface_hub", "ray", "dask", "zarr", "xarray", "numpy", "s3fs", "obstore")


def examine(
    store_url: str | None,
    storage_options: Mapping[str, Any],
    scoring: Iterable[Finding],
    scheduler: str = "threads",
    scheduler_address: str | None = None,
    single_writer: bool = False,
) -> Iterator[Finding]:
    """Look at one thing after the other, and say in the log which; no secret is in a finding.

    ``scoring`` are the findings of ``klray.doctor.scoring``; ``scheduler`` and its address are Dask's. Whatever does
    not answer is given up after 15 s. With ``single_writer`` a store's place need not create conditionally: that it
    does not is then a warning.
    """
    log.info("checking libraries")
    yield _versions()
    for finding in scoring:
        yield without(finding)
    log.info("checking Dask")
    yield without(_dask(scheduler, scheduler_address))
    log.info("checking the store")
    for finding in _store(store_url, storage_options):
        if single_writer and finding.verdict == "refused" and finding.check in CONDITIONAL:
            finding = replace(finding, verdict="warning", cure="keep to store.single_writer=true: one job at a time")
        yield without(finding)


def _versions() -> Finding:
    found = [f"klray {importlib.metadata.version('klray')}", f"Python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return Finding("libraries", "ok", ", ".join(found))


def _dask(scheduler: str, address: str | None) -> Finding:
    def trial() -> int:
        with dask_scheduler(scheduler, address):
            return int(dask.delayed(sum)([1, 2]).compute())

    which = scheduler + (f" at {address}" if address else "")
    try:
        answer = bounded(trial, RAY_SECONDS if scheduler == "ray" else PATIENCE_SECONDS)
    except KlrayError as error:
        return refusal("Dask", error)
    except OSError as error:
        found = f"dask.scheduler={which} does not answer ({' '.join(str(error).split())})"
        return Finding("Dask", "refused", found, "start it, check dask.address, or set dask=threads")
    assert answer == 3
    return Finding("Dask", "ok", f"{which}: a trial sum came back")


def _store(url: str | None, storage_options: Mapping[str, Any]) -> Iterator[Finding]:
    if url is None:
        yield Finding("store", "skipped", "no store was named", "set store.url= to a folder or to s3://bucket/prefix")
        return
    options = impatient(storage_options) if url.startswith("s3://") else dict(storage_options)
    try:
        objects = open_objects(url, options)
        silent = bounded(lambda: why_silent(objects))
        findings = probe(objects)
        while not silent and (finding := bounded(lambda: next(findings, None))) is not None:
            yield finding
    except (StoreError, ValueError) as error:
        yield refusal("store", error)
        return
    except TimeoutError as error:
        silent = f"{url} {error}"
    if silent:
        yield Finding("store", "refused", silent, "check AWS_ENDPOINT_URL and the network")


def bounded(work: Callable[[], T], seconds: float | None = None) -> T:
    """What ``work`` returns or raises; it runs in a thread that is left behind when it takes too long.

    TimeoutError: it took longer than ``seconds``, by default PATIENCE_SECONDS.
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


def refusal(check: str, error: Exception) -> Finding:
    """An error as a finding."""
    return Finding(check, "refused", *found_and_cure(error))


def without(finding: Finding, token: str = "") -> Finding:
    """A finding without secrets: messages of other libraries may hold them."""
    found, cure = (without_secrets(words, token) for words in (finding.found, finding.cure))
    return replace(finding, found=found, cure=cure)
