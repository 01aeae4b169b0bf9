"""Group ``models``: which checkpoints, and the hub that has them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from klray.checkpoints import Hub, RepositorySpec, Selection
from klray.errors import KlrayError
from klray.tiny.serving import embedded_hub


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
    recipe: str = "default"  # of the embedded family: default, smallest or study
    repositories: list[RepositoryConfig] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # more repositories, at main
    repo: str | None = None  # free form: this repository or folder, and no other
    revisions: Any = None  # free form: instead of each repository's own
    stride: int = 1  # every so many-th of the revisions that name a step, and the last
    limit: int | None = None  # the first so many checkpoints


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
