"""Sweep: from what is asked for and what a store holds to a run, and its report."""

import dataclasses
import logging
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Any

import ray

from klray.checkpoints import Checkpoint, Hub, Unavailable
from klray.store import Failure, Store, unresolved
from klray.sweep.claims import withdraw
from klray.sweep.cluster import connected
from klray.sweep.driver import Driver
from klray.sweep.gpu_share import workers_of_a_gpu
from klray.sweep.metrics import Meters
from klray.sweep.settings import RaySettings, ScoringSettings
from klray.sweep.telling import Telling
from klray.texts import TextSet
from klray.words.heard import Kind, kinds
from klray.words.numbers import counted
from klray.words.progress import Progress

log = logging.getLogger("klray")


@dataclasses.dataclass(frozen=True)
class SweepReport:
    """How a sweep ended."""

    scored: int  # columns that this sweep committed
    taken_over: int  # of these, columns of checkpoints with the same files as another, not fetched and not scored
    present: int  # columns that were there before
    elsewhere: int  # columns that other jobs committed meanwhile
    failures: tuple[Failure, ...]
    tokens: int
    seconds: float
    start_seconds: float = 0.0  # of these, until the first checkpoint was begun: Ray, and a worker's imports
    warnings: tuple[Kind, ...] = ()  # of workers and their models
    workers: str = ""  # how many there were, and which nodes were put aside, if any was


def missing(
    checkpoints: Iterable[Checkpoint], committed: Set[str], settings: ScoringSettings, text_set: str
) -> tuple[list[Checkpoint], list[Checkpoint]]:
    """Split checkpoints into (missing, present) by the keys that a store has committed for a text set's fingerprint."""
    keys: dict[str, Checkpoint] = {}
    for checkpoint in checkpoints:
        keys.setdefault(settings.identity(checkpoint, text_set).key, checkpoint)
    return (
        [checkpoint for key, checkpoint in keys.items() if key not in committed],
        [checkpoint for key, checkpoint in keys.items() if key in committed],
    )


def sweep(
    store: Store,
    text_set: TextSet,
    checkpoints: Sequence[Checkpoint],
    unavailable: Sequence[Unavailable],
    hub: Hub,
    settings: ScoringSettings,
    ray_settings: RaySettings,
    storage_options: Mapping[str, Any] | None = None,
    resolved: Iterable[tuple[str, str]] = (),
    family: str = "",
) -> SweepReport:
    """Score every checkpoint that the store lacks; failures are recorded with their reasons and the sweep goes on.

    Checkpoints that hold the same weights, config and tokenizer are fetched and scored once, and recorded each.

    ``resolved`` are the (repository, revision or pattern) that were asked for and found: earlier records that they
    could not be are withdrawn. ``family`` names the job for people.

    Raises StoreError if the store refuses to be written (what was committed before is safe), KlrayError if the cluster
    cannot carry the actors that were asked for.
    """
    start = time.monotonic()
    texts = store.texts.fingerprint
    asked = [(each.repository, each.revision) for each in checkpoints] + list(resolved)
    store.withdraw_failures(settings.identity_of(repository, unresolved(name), texts) for repository, name in asked)
    todo, present = missing(checkpoints, store.committed_keys(), settings, texts)
    failed = []
    for lost in unavailable:
        log.warning("%s@%s: %s", lost.repository, lost.revision, lost.message)
        identity = settings.identity_of(lost.repository, unresolved(lost.revision), texts)
        failed.append(store.record_failure(identity, lost.revision, lost.reason, lost.message, uuid.uuid4().hex))
    if not todo:
        return SweepReport(0, 0, len(present), 0, tuple(failed), 0, time.monotonic() - start)
    share = partial(workers_of_a_gpu, todo, settings, workers=ray_settings.workers)
    with connected(ray_settings, settings.threads, share) as shape:
        settings = dataclasses.replace(settings, device=shape.device)
        arguments = (hub, store.url, dict(storage_options or {}), ray.put(text_set), settings)
        same = {each.content: settings.identity(each, texts).key for each in present if each.content}
        job = uuid.uuid4().hex
        driver = Driver(store, settings, shape, arguments, todo, same, ray_settings, job)
        workers = min(len(todo), ray_settings.workers or shape.workers)
        more = ", and on what the cluster adds" if shape.grows and ray_settings.workers is None else ""
        if shape.grows and shape.device == "cpu" and ray_settings.gpus_per_worker is None:
            log.warning("the cluster has no GPU now: set ray.gpus_per_worker=1 if it is to add nodes that have some")
        if shape.gpus_per_worker not in (0.0, 1.0) and ray_settings.gpus_per_worker is None:
            more = f", {round(1 / shape.gpus_per_worker)} of which share a GPU (ray.gpus_per_worker=1: none){more}"
        log.info(
            "scoring %s on %s%s", counted(len(todo), "checkpoint"), counted(workers, f"{shape.device} worker"), more
        )
        meters = Meters(job) if ray_settings.metrics else None
        try:
            with (
                Progress(len(todo), "score", "checkpoint") as progress,
                Telling(store, progress, job, family, len(todo), meters) as telling,
            ):
                driver.go(telling)
        finally:
            withdraw(store, job)
    tally, begun = driver.dispatch.tally, driver.dispatch.begun
    return SweepReport(
        scored=tally.scored,
        taken_over=tally.taken_over,
        present=len(present),
        elsewhere=tally.elsewhere,
        failures=tuple(failed + driver.failures),
        tokens=tally.tokens,
        seconds=time.monotonic() - start,
        start_seconds=begun - start if begun is not None else 0.0,
        warnings=tuple(kinds(driver.warned)),
        workers=driver.fleet.closing(),
    )
