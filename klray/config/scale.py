"""Group ``scale``: what klray scale measures, and where its figure goes."""

from __future__ import annotations

from dataclasses import dataclass, field

from klray.analysis.scale import Choice


@dataclass
class ScaleConfig:
    """What klray scale measures; the recipe, the snapshot and the exclusions are those of ``analysis``."""

    name: str = "scale"
    spacing: int = 1000  # steps between consecutive checkpoints
    min_step: int = 2000  # the later of two consecutive checkpoints has more
    number: int = 50  # early pairs, and later pairs, of each run
    draws: int = 0  # random pairs; 0: as many as there are fine-tuning pairs
    seed: int = 0
    resamples: int = 1000  # of the bootstrap for the standard error of a median
    domains: list[str] = field(default_factory=list)  # two or more are compared side by side
    dir: str | None = None  # folder for the figure


def scale_choice(config: ScaleConfig) -> Choice:
    """How pairs are chosen."""
    return Choice(config.spacing, config.min_step, config.number, config.draws, config.seed)
