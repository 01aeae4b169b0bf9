"""Structured configs: what can be set for a job, with its default; and the values that library functions take.

Only jobs/ and this module know Hydra. ``conf/`` holds the groups; every key there is checked against the classes here.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from dask.utils import parse_bytes
from hydra.core.config_store import ConfigStore

from klray import models, texts
from klray.checkpoints import Hub, RepositorySpec, Selection
from klray.cluster import RaySettings
from klray.embedded.serving import embedded_hub
from klray.errors import KlrayError
from klray.noise.measuring import Ways, available_devices
from klray.scorer import ScoringSettings
from klray.texts import TextSet


class ModelSource(Enum):
    """Where checkpoints come from: HF_ENDPOINT's hub, or the embedded family, served from this machine."""

    hub = "hub"
    embedded = "embedded"


@dataclass
class RepositoryConfig:
    """One repository of a family."""

    repository: str = ""
    revisions: Any = "main"  # a name, a commit sha, a pattern such as step*, or a list of these
    size: str = ""
    seed: int | None = None
    base_model: str = ""


@dataclass
class ModelsConfig:
    """Which checkpoints."""

    family: str = ""
    source: ModelSource = ModelSource.hub
    recipe: str = "default"  # of the embedded family: default or smallest
    repositories: list[RepositoryConfig] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # more repositories, at main
    repo: str | None = None  # free form: this repository or folder, and no other
    revisions: Any = None  # free form: instead of each repository's own
    stride: int = 1  # every so many-th of the revisions that name a step, and the last
    limit: int | None = None  # the first so many checkpoints


class TextSource(Enum):
    """Where texts come from."""

    python_stdlib = "python_stdlib"
    jsonl = "jsonl"
    folder = "folder"


class TextSplit(Enum):
    """Half of the running Python's documents; the embedded family is trained on the other."""

    heldout = "heldout"
    train = "train"


@dataclass
class TextsConfig:
    """Which texts."""

    source: TextSource = TextSource.python_stdlib
    path: str | None = None  # of a JSON Lines file or a folder
    pattern: str = "**/*.txt"  # files of a folder
    split: TextSplit = TextSplit.heldout  # of python_stdlib
    chunked: bool = True  # lines of a JSON Lines file are chunks already, not documents to be cut
    text_field: str = "text"
    domain_field: str | None = None
    domain: str | None = None  # only texts with this label
    n: int | None = None  # draw so many
    seed: int = 0  # of the draw


class Backend(Enum):
    """The library that sends requests to S3."""

    s3fs = "s3fs"
    obstore = "obstore"  # about half of the CPU time; an extra


@dataclass
class StoreConfig:
    """Where columns, snapshots and results live."""

    url: str | None = None  # a folder, or s3://bucket/prefix
    backend: Backend = Backend.s3fs
    storage_options: dict[str, Any] = field(default_factory=dict)  # for the backend; never credentials
    single_writer: bool = False  # one job at a time writes here: S3 servers without conditional puts will do then


class Dtype(Enum):
    """Of the parameters and the arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


DTYPES: dict[Dtype, models.Dtype] = {
    Dtype.float32: "float32",
    Dtype.bfloat16: "bfloat16",
    Dtype.float16: "float16",
}


@dataclass
class ScoringConfig:
    """How checkpoints are scored."""

    dtype: Dtype = Dtype.float32
    quantization: str = "none"
    threads: int = 1  # CPU threads of one worker
    tokens_per_batch: int | None = None  # default: 1,024 on a CPU, 16,384 on a GPU
    cache_dir: str | None = None  # downloaded checkpoints; default below the user's cache folder
    cache_gigabytes: float = 20.0  # of one worker


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


@dataclass
class AnalysisConfig:
    """What is computed from a snapshot."""

    name: str = "trajectory"
    snapshot: str = "latest"
    recipe: str = "keep"  # keep: the last one made with these settings, if any; fit: a new one; or a JSON file's path
    clip_quantile: float = 0.02
    outlier_fraction: float = 0.03
    outlier_min_step: int = 2000
    exclude: list[str] = field(default_factory=list)  # patterns over repository@revision
    window: int = 10
    min_step: int = 1000
    tile: int = 512


@dataclass
class ReportConfig:
    """The report's folder and title."""

    dir: str = "report"
    title: str = "How language models move"
    noise: str | None = None  # a JSON file that klray noise wrote: the report then says how much noise there is


@dataclass
class VerifyConfig:
    """What klray verify does about what it finds."""

    repair: bool = False  # take damaged columns out, and remove leftovers
    grace_hours: float = 24.0  # leftovers that were written to more recently stay: their writer may be at work


@dataclass
class NoiseConfig:
    """What klray noise measures."""

    models: int = 4  # so many of the selected checkpoints, at equal distances
    dtypes: list[Dtype] = field(default_factory=lambda: list(Dtype))  # scoring.dtype is always among them
    devices: list[str] = field(default_factory=list)  # default: the CPU and, where there is one, a GPU
    # default: one text per forward (1), a quarter of what klray score takes, and that
    tokens_per_batch: list[int] = field(default_factory=list)
    path: str | None = None  # of a JSON file to be written


@dataclass
class Config:
    """Everything that a job can be told."""

    models: ModelsConfig = field(default_factory=ModelsConfig)
    texts: TextsConfig = field(default_factory=TextsConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    dask: DaskConfig = field(default_factory=DaskConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)


def register() -> None:
    """Make the schema known to Hydra."""
    ConfigStore.instance().store(name="klray_schema", node=Config)


def text_set(config: TextsConfig) -> TextSet:
    """The text set that is asked for."""
    if config.source is TextSource.python_stdlib:
        split: texts.Split = "train" if config.split is TextSplit.train else "heldout"
        return texts.python_stdlib(split, n=config.n, seed=config.seed, domain=config.domain)
    if not config.path:
        raise KlrayError(f"texts={config.source.value} needs the place of the texts: set texts.path=")
    if config.source is TextSource.folder:
        return texts.from_folder(
            config.path, pattern=config.pattern, n=config.n, seed=config.seed, domain=config.domain
        )
    return texts.from_jsonl(
        config.path,
        n=config.n,
        seed=config.seed,
        domain=config.domain,
        text_field=config.text_field,
        domain_field=config.domain_field,
        chunked=config.chunked,
    )


def selection(config: ModelsConfig) -> Selection:
    """The checkpoints that are asked for."""
    repositories = [*config.repositories, *(RepositoryConfig(name) for name in config.names)]
    if config.repo:
        named = [each for each in repositories if each.repository == config.repo]
        repositories = named or [RepositoryConfig(config.repo)]
    if not repositories:
        raise KlrayError(
            "no models were asked for: set models=tiny (embedded, needs no network), models=pythia or another family "
            'of conf/models/, or models.repo=ORG/NAME models.revisions="step*"'
        )
    specs = tuple(
        RepositorySpec(
            repository=each.repository,
            revisions=_revisions(each.revisions if config.revisions is None else config.revisions),
            size=each.size,
            seed=each.seed,
            base_model=each.base_model,
        )
        for each in repositories
    )
    family = config.family or specs[0].repository.rstrip("/").rsplit("/", 1)[-1]
    return Selection(family=family, repositories=specs, stride=config.stride, limit=config.limit)


@contextlib.contextmanager
def hub(config: ModelsConfig) -> Iterator[Hub]:
    """The hub that HF_ENDPOINT names; for the embedded family, one on this machine for the length of the job."""
    with embedded_hub(config.recipe) if config.source is ModelSource.embedded else contextlib.nullcontext():
        yield Hub.from_environment()


def _revisions(value: Any) -> str | tuple[str, ...]:
    return tuple(str(each) for each in value) if isinstance(value, list) else str(value)


def store_url(config: StoreConfig) -> str:
    """The store's place; it has no default, because results should not land where nobody looks."""
    if not config.url:
        raise KlrayError("no store was named: set store.url= to a folder or to s3://bucket/prefix")
    secrets = sorted(key for key in _keys(config.storage_options) if re.search(r"(?i)secret|token|password|^key$", key))
    if secrets:
        raise KlrayError(
            f"store.storage_options has {', '.join(secrets)}: credentials do not belong in a config, which is printed "
            "and kept; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, in each machine's environment"
        )
    return config.url


def storage_options(config: StoreConfig) -> dict[str, Any]:
    """Options for whoever opens the store, the backend among them."""
    return {"backend": config.backend.value, **config.storage_options}


def _keys(options: Mapping[str, Any]) -> list[str]:
    nested = [key for value in options.values() if isinstance(value, Mapping) for key in _keys(value)]
    return [*(str(key) for key in options), *nested]


def scoring_settings(config: ScoringConfig) -> ScoringSettings:
    """How checkpoints are scored."""
    if config.quantization != "none":
        raise KlrayError(f"scoring.quantization={config.quantization}: this version scores models as they are (none)")
    for name, value in (
        ("threads", config.threads),
        ("tokens_per_batch", config.tokens_per_batch),
        ("cache_gigabytes", config.cache_gigabytes),
    ):
        if value is not None and value <= 0:
            raise KlrayError(f"scoring.{name}={value}: must be above 0")
    cache = Path(config.cache_dir).expanduser() if config.cache_dir else cache_home() / "checkpoints"
    return ScoringSettings(
        dtype=DTYPES[config.dtype],
        quantization=config.quantization,
        threads=config.threads,
        tokens_per_batch=config.tokens_per_batch,
        cache_dir=str(cache.resolve()),
        cache_bytes=int(config.cache_gigabytes * 1e9),
    )


def ray_settings(config: RayConfig, scoring: ScoringConfig) -> RaySettings:
    """The cluster and the shape of its actors."""
    for name, value in (("workers", config.workers), ("max_attempts", config.max_attempts)):
        if value is not None and value < 1:
            raise KlrayError(f"ray.{name}={value}: must be 1 or more")
    if config.gpus_per_worker is not None and config.gpus_per_worker > 1 and (lacking := models.lacks_accelerate()):
        raise KlrayError(f"ray.gpus_per_worker={config.gpus_per_worker:g}: {lacking}")
    return RaySettings(
        address=config.address,
        workers=config.workers,
        gpus_per_worker=config.gpus_per_worker,
        cpus_per_worker=scoring.threads,
        max_attempts=config.max_attempts,
    )


def noise_ways(config: NoiseConfig, settings: ScoringSettings) -> Ways:
    """In which ways checkpoints are scored to measure their noise; the first precision is that of ``klray score``."""
    if config.models < 1:
        raise KlrayError(f"noise.models={config.models}: must be 1 or more")
    budgets = config.tokens_per_batch
    if not budgets and settings.tokens_per_batch is not None:
        budgets = [1, max(1, settings.tokens_per_batch // 4), settings.tokens_per_batch]
    return Ways(
        dtypes=tuple(dict.fromkeys([settings.dtype, *(DTYPES[dtype] for dtype in config.dtypes)])),
        devices=available_devices(config.devices),
        budgets=tuple(budgets),
        threads=settings.threads,
    )


def noise_path(config: NoiseConfig) -> Path | None:
    """Where the noise floor is to be written; None: nowhere. Looked at first, because measuring takes long."""
    if config.path is None:
        return None
    path = Path(config.path).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        found = "is a folder" if path.is_dir() else f"would be in {path.parent}, which is no folder"
        raise KlrayError(f"noise.path={config.path}: it {found}; name a JSON file in a folder that is there")
    return path


def cache_home() -> Path:
    """Where klray keeps what can be made again: $XDG_CACHE_HOME/klray, or ~/.cache/klray."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "klray"


def memory_bytes(text: str) -> int:
    """Bytes of a size such as 4GiB or 500MB."""
    try:
        return int(parse_bytes(text))
    except ValueError as error:
        raise KlrayError(f"dask.memory_limit={text}: write a size such as 4GiB or 500MB") from error
