"""Group ``models``: which checkpoints, and the hub that has them."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


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
