"""Structured configs: what can be set for a job, with its default; and the values that library functions take.

A file for each Hydra group (or two that belong together): its dataclass, and the functions that make values of it.
Only jobs/ and this room know Hydra. ``conf/`` holds the groups; every key there is checked against the classes here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore

from klray.config.analysis import AnalysisConfig, ReportConfig
from klray.config.clusters import DaskConfig, RayConfig, memory_bytes, ray_settings
from klray.config.lens import LensConfig, lens_folder, lens_texts, lens_training
from klray.config.models import ModelsConfig, ModelSource, RepositoryConfig, hub, selection
from klray.config.noise import NoiseConfig, noise_path, noise_ways
from klray.config.plan import PlanConfig, plan_rates
from klray.config.scale import ScaleConfig, scale_choice
from klray.config.scoring import DTYPES, Dtype, ScoringConfig, cache_home, scoring_settings
from klray.config.store import Backend, StoreConfig, VerifyConfig, storage_options, store_url
from klray.config.study import FollowConfig, StageConfig, StudyConfig, followed, stages, tuned_folder
from klray.config.texts import TextsConfig, TextSource, TextSplit, text_set
from klray.config.weights import Align, WeightsConfig, weights_memory_bytes

__all__ = [
    "DTYPES",
    "Align",
    "AnalysisConfig",
    "Backend",
    "Config",
    "DaskConfig",
    "Dtype",
    "FollowConfig",
    "LensConfig",
    "ModelSource",
    "ModelsConfig",
    "NoiseConfig",
    "PlanConfig",
    "RayConfig",
    "ReportConfig",
    "RepositoryConfig",
    "ScaleConfig",
    "ScoringConfig",
    "StageConfig",
    "StoreConfig",
    "StudyConfig",
    "TextSource",
    "TextSplit",
    "TextsConfig",
    "VerifyConfig",
    "WeightsConfig",
    "cache_home",
    "followed",
    "hub",
    "lens_folder",
    "lens_texts",
    "lens_training",
    "memory_bytes",
    "noise_path",
    "noise_ways",
    "plan_rates",
    "ray_settings",
    "register",
    "scale_choice",
    "scoring_settings",
    "selection",
    "stages",
    "storage_options",
    "store_url",
    "text_set",
    "tuned_folder",
    "weights_memory_bytes",
]


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
    lens: LensConfig = field(default_factory=LensConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    study: StudyConfig = field(default_factory=StudyConfig)


def register() -> None:
    """Make the schema known to Hydra."""
    ConfigStore.instance().store(name="klray_schema", node=Config)
