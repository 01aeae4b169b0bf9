"""Group ``study``: what klray study scores into one store, stage by stage, and what it does with it then."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import conf
from klray.config.choices import check_choices
from klray.config.models import ModelsConfig
from klray.config.scoring import ScoringConfig
from klray.errors import KlrayError

if TYPE_CHECKING:
    from klray.config import Config

Group = TypeVar("Group", ModelsConfig, ScoringConfig, "Config")


@dataclass
class StageConfig:
    """One stage: a family of conf/models/, and in what it differs from the job's own settings."""

    name: str = ""
    models: str = ""  # a family of conf/models/
    select: dict[str, Any] = field(default_factory=dict)  # keys of the group models, such as revisions or stride
    scoring: dict[str, Any] = field(default_factory=dict)  # keys of the group scoring, such as quantization or lens
    tune: bool = False  # train a tuned lens for the stage's checkpoint, if it is not there, and score through it


@dataclass
class FollowConfig:
    """A verb that follows the stages, and in what it differs from the job's own settings."""

    verb: str = ""
    models: str = ""  # a family of conf/models/
    set: dict[str, Any] = field(default_factory=dict)  # groups and their keys, such as {analysis: {domain: prose}}


@dataclass
class StudyConfig:
    """The stages in their order, and the verbs that follow."""

    stages: list[StageConfig] = field(default_factory=list)
    only: list[str] = field(default_factory=list)  # names of stages; default: all
    then: list[FollowConfig] = field(
        default_factory=lambda: [FollowConfig("publish"), FollowConfig("analyze"), FollowConfig("report")]
    )


def stages(config: "Config") -> "Iterator[tuple[StageConfig, Config]]":
    """Every stage that is asked for, and the job's config with the stage's models and scoring.

    KlrayError: there is no such stage, no such family, or no such key.
    """
    known = [stage.name for stage in config.study.stages]
    if twice := sorted({name for name in known if known.count(name) > 1 or not name}):
        raise KlrayError(f"study.stages has the name {twice[0]!r} more than once or empty: name each stage differently")
    if lost := sorted(set(config.study.only) - set(known)):
        raise KlrayError(f"study.only={lost}: the study has the stages {', '.join(known) or 'none; set study=tiny'}")
    for stage in config.study.stages:
        if not config.study.only or stage.name in config.study.only:
            where = f"stage {stage.name}"
            models = _changed(_family(where, stage.models), stage.select, f"{where}: select")
            scoring = _changed(config.scoring, stage.scoring, f"{where}: scoring")
            yield stage, dataclasses.replace(config, models=models, scoring=scoring)


def tuned_folder(config: "Config", stage: StageConfig) -> Path:
    """Where the lens that a stage trains is, or goes."""
    return Path(config.report.dir).expanduser() / "lenses" / stage.name


def followed(config: "Config") -> "list[tuple[str, Config]]":
    """The verbs that follow, each with the config that it is called with; KlrayError as for ``stages``."""
    found = []
    for follow in config.study.then:
        where = f"study.then {follow.verb}"
        changed = _changed(config, follow.set, f"{where}: set")
        if follow.models:
            family = _family(where, follow.models)
            changed.models = _changed(family, follow.set.get("models", {}), f"{where}: set")
        found.append((follow.verb, changed))
    return found


def _family(where: str, name: str) -> ModelsConfig:
    path = Path(str(conf.__file__)).parent / "models" / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise KlrayError(f"{where}: models={name} is no family; there are {there}")
    return _changed(ModelsConfig(), OmegaConf.load(path), str(path))


def _changed(group: Group, values: Any, where: str) -> Group:
    try:
        changed: Group = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(group), values))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        words = str(error).strip().splitlines()[0]
        raise KlrayError(f"{where}: {words}; klray score --cfg job prints every key") from error
    check_choices(changed, f"{where}: ")
    return changed
