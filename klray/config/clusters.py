"""Groups ``ray`` and ``dask``: the clusters that score and analyse."""

from __future__ import annotations

from dataclasses import dataclass

from dask.utils import parse_bytes

from klray.config.scoring import ScoringConfig
from klray.errors import KlrayError
from klray.likelihood import loading
from klray.likelihood.quantization import lacks_library
from klray.sweep.cluster import RaySettings


@dataclass
class RayConfig:
    """The Ray cluster that scores."""

    address: str | None = None  # a running cluster; default: one on this machine for the length of the run
    workers: int | None = None
    gpus_per_worker: float | None = None  # a share of one, or several for a model that is too large for one
    max_attempts: int = 2


@dataclass
class DaskConfig:
    """The Dask scheduler that analyses."""

    scheduler: str = "threads"  # threads, distributed or ray
    address: str | None = None
    threads: int | None = None
    memory_limit: str = "4GiB"  # an analysis that would need more is refused


def ray_settings(config: RayConfig, scoring: ScoringConfig) -> RaySettings:
    """The cluster and the shape of its actors."""
    check_counts(config)
    if config.gpus_per_worker is not None and config.gpus_per_worker > 1 and (lacking := loading.lacks_accelerate()):
        raise KlrayError(f"ray.gpus_per_worker={config.gpus_per_worker:g}: {lacking}")
    if lacking := lacks_library(scoring.quantization):
        raise KlrayError(lacking)
    return RaySettings(
        address=config.address,
        workers=config.workers,
        gpus_per_worker=config.gpus_per_worker,
        cpus_per_worker=scoring.threads,
        max_attempts=config.max_attempts,
    )


def check_counts(config: RayConfig) -> None:
    """Refuse less than one worker or attempt; ``klray plan`` needs no Ray, and asks the same."""
    for name, value in (("workers", config.workers), ("max_attempts", config.max_attempts)):
        if value is not None and value < 1:
            raise KlrayError(f"ray.{name}={value}: must be 1 or more")


def memory_bytes(text: str) -> int:
    """Bytes of a size such as 4GiB or 500MB."""
    try:
        return int(parse_bytes(text))
    except ValueError as error:
        raise KlrayError(f"dask.memory_limit={text}: write a size such as 4GiB or 500MB") from error
