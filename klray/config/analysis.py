"""Groups ``analysis`` and ``report``: what is computed from a snapshot, and shown."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class AnalysisConfig:
    """What is computed from a snapshot."""

    name: str = "trajectory"
    snapshot: str = "latest"
    domain: str = ""  # texts of this domain only, with a recipe of their own; the result is called NAME-DOMAIN
    recipe: str = "keep"  # keep: the last one made with these settings, if any; fit: a new one; or a JSON file's path
    clip_quantile: float = 0.02
    outlier_fraction: float = 0.03
    outlier_min_step: int = 2000
    exclude: list[str] = field(default_factory=list)  # patterns over repository@revision
    exclude_found: bool = False  # when a recipe is fitted: leave out the anomalous checkpoints found, and fit again
    window: int = 10
    min_step: int = 1000
    weights: str = "weights"  # exact weight distances: the result of this name that klray weights wrote, if any
    tile: int = 512


@dataclass
class ReportConfig:
    """The report's folder and title."""

    dir: str = "report"
    title: str = "How language models move"
    noise: str | None = None  # a JSON file that klray noise wrote: the report then says how much noise there is
