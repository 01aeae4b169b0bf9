"""What the verbs that fetch or score checkpoints make of their groups: a selection, settings, and the hub."""

import contextlib
import ipaddress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from klray.checkpoints import Checkpoint, Hub, RepositorySpec, Selection, Unavailable, resolve
from klray.checkpoints.local_folder import local_folder
from klray.config.models import ModelsConfig, ModelSource, RepositoryConfig, package_folder
from klray.config.scoring import DTYPES, ScoringConfig, cache_home, check_above_zero
from klray.errors import KlrayError
from klray.likelihood.choices import LOGIT, NONE, check_quantization, lacks_accelerate, lacks_quantization
from klray.sweep.settings import RaySettings, ScoringSettings
from klray.tiny.serving import embedded_hub
from klray.words.progress import Stages


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
    specs = tuple(_spec(config, each) for each in repositories)
    family = config.family or specs[0].repository.rstrip("/").rsplit("/", 1)[-1]
    return Selection(family=family, repositories=specs, stride=config.stride, limit=config.limit)


def _spec(config: ModelsConfig, asked: RepositoryConfig) -> RepositorySpec:
    if (path := local_folder(asked.repository)) is not None and not path.exists():
        raise KlrayError(f"models: {asked.repository} is a path, and there is no folder or file {path}: check it")
    files = asked.files if config.files is None else config.files
    spec = RepositorySpec(
        repository=asked.repository,
        revisions=_names(asked.revisions if config.revisions is None else config.revisions),
        size=asked.size,
        seed=asked.seed,
        base_model=asked.base_model,
        files=() if files is None else _names(files),
    )
    if config.source is not ModelSource.package:
        return spec
    folder, version = package_folder(asked.repository)
    return replace(spec, revisions=version, directory=str(folder))


def hub(config: ModelsConfig) -> contextlib.AbstractContextManager[Hub]:
    """The hub that HF_ENDPOINT names; for the embedded family, one on this machine for the length of the context."""
    if config.source is ModelSource.embedded:
        return embedded_hub(config.recipe)
    return contextlib.nullcontext(Hub.from_environment())


def resolved(hub: Hub, selection: Selection) -> tuple[list[Checkpoint], list[Unavailable]]:
    """``resolve``, telling how far it is; what a hub elsewhere lists of commits is kept in the user's cache folder."""
    with Stages("resolve") as stages:
        return resolve(hub, selection, None if _is_here(hub) else cache_home() / "listings", stages)


def _is_here(hub: Hub) -> bool:
    """Whether a hub is on this machine: asked at no cost, and the next one at its port may be another."""
    host = urlsplit(hub.address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def scoring_settings(config: ScoringConfig, lens_norm: str | None = None) -> ScoringSettings:
    """How checkpoints are scored; ``lens_norm`` is the path to the final norm, where it cannot be found."""
    check_quantization(config.quantization)
    limits = ("limit_seconds", "limit_gigabytes")
    check_above_zero("scoring", config, "threads", "tokens_per_batch", "cache_gigabytes", *limits)
    if config.sketch < 0 or config.sketch % 64:
        raise KlrayError(f"scoring.sketch={config.sketch}: a multiple of 64, such as 65536, or 0 for no weight sketch")
    lens, folder = _lens(config.lens)
    cache = Path(config.cache_dir).expanduser() if config.cache_dir else cache_home() / "checkpoints"
    return ScoringSettings(
        dtype=DTYPES[config.dtype],
        quantization=config.quantization,
        threads=config.threads,
        tokens_per_batch=config.tokens_per_batch,
        cache_dir=str(cache.resolve()),
        cache_bytes=int(config.cache_gigabytes * 1e9),
        lens=lens,
        lens_folder=folder,
        lens_norm=lens_norm,
        allow_unused=tuple(config.allow_unused),
        allow_lost=config.allow_lost,
        sketch=config.sketch,
        limit_seconds=config.limit_seconds,
        limit_bytes=None if config.limit_gigabytes is None else config.limit_gigabytes * 1e9,
    )


def _lens(asked: str) -> tuple[str, str]:
    """Name of the lens that is asked for, and its folder if it is a tuned one."""
    if asked in (NONE, LOGIT):
        return asked, ""
    folder = Path(asked).expanduser().resolve()
    if not folder.is_dir():
        raise KlrayError(f"scoring.lens={asked}: write none, {LOGIT}, or the folder of a tuned lens; {folder} is none")
    from klray.likelihood.lens import Lens, load_translators  # noqa: PLC0415 - only a tuned lens takes PyTorch here

    return Lens(load_translators(folder)).name, str(folder)


def lacks_libraries(ray: RaySettings, scoring: ScoringConfig) -> str:
    """What these settings need and is not installed, and how to install it; "" if all is there."""
    if ray.gpus_per_worker is not None and ray.gpus_per_worker > 1 and (lacking := lacks_accelerate()):
        return f"ray.gpus_per_worker={ray.gpus_per_worker:g}: {lacking}"
    return lacks_quantization(scoring.quantization)


def _names(value: Any) -> str | tuple[str, ...]:
    return tuple(str(each) for each in value) if isinstance(value, list) else str(value)
