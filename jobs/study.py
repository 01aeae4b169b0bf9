"""Run a study: score its stages into one store, then publish, analyse and report."""

import importlib
import logging
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jobs
from jobs.lens import lens
from jobs.score import score
from klray import config as configs
from klray.config import Config
from klray.config.job import verb
from klray.errors import KlrayError
from klray.words.tables import say

log = logging.getLogger("klray")


def study(config: Config) -> int:
    """Number of checkpoints that failed in all stages; what follows is done with those that did not."""
    stages = list(configs.stages(config))
    if not stages:
        raise KlrayError("the study has no stages: set study=tiny or study=pythia, or study.stages")
    configs.store_url(config.store)  # refused here, not within the first stage
    then = [(name, _function(name), changed) for name, changed in configs.followed(config)]
    Path(config.report.dir).expanduser().mkdir(parents=True, exist_ok=True)  # where lenses and the noise floor go, too
    failures = 0
    for number, (stage, changed) in enumerate(stages, 1):
        log.info("study: stage %d of %d, %s", number, len(stages), stage.name)
        say()
        say(f"stage {stage.name}")
        if stage.tune:
            folder = str(configs.tuned_folder(config, stage))
            changed.lens = replace(config.lens, path=folder)
            lens(changed)
            changed.scoring = replace(changed.scoring, lens=folder)
        failures += len(score(changed).failures)
    for name, follow, changed in then:
        log.info("study: %s", name)
        say()
        follow(changed)
    return failures


def _function(name: str) -> Callable[[Config], Any]:
    """What a verb does: the function of its own name in its module."""
    verbs = [module.name for module in pkgutil.iter_modules(jobs.__path__) if module.name != "study"]
    if name not in verbs:
        raise KlrayError(f"study.then has {name}, which is no verb: there are {', '.join(sorted(verbs))}")
    function: Callable[[Config], Any] | None = getattr(importlib.import_module(f"jobs.{name}"), name, None)
    if function is None:
        raise KlrayError(f"study.then has {name}, which no study can call: run klray {name} by itself")
    return function


main = verb(study, bool)

if __name__ == "__main__":
    main()
