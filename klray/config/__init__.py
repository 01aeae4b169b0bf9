"""Structured configs: what can be set for a job, with its default; and the values that library functions take.

A file for each Hydra group (or those that belong together): its dataclass, and the functions that make values of it.
These are light: help and ``--cfg`` are answered from them. What makes values of the rooms that fetch and score models
is in ``klray.config.sweep`` and ``klray.config.measure``, for the verbs that need it.
Only jobs/ and this room know Hydra. ``conf/`` holds the groups; every key there is checked against the classes here.
"""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore

from klray.config.adopt import AdoptConfig, adopt_inner, adopt_path
from klray.config.analysis import (
    AnalysisConfig,
    DaskConfig,
    ExportConfig,
    PageConfig,
    ReportConfig,
    ScaleConfig,
    memory_bytes,
    scale_choice,
)
from klray.config.compare import CompareConfig
from klray.config.lens import LensConfig, lens_texts, lens_training
from klray.config.log import LogConfig
from klray.config.models import ModelsConfig, ModelSource, RepositoryConfig
from klray.config.noise import NoiseConfig, noise_path
from klray.config.scoring import DTYPES, Dtype, PlanConfig, ScoringConfig, cache_home
from klray.config.store import Backend, StatusConfig, StoreConfig, VerifyConfig, storage_options, store_url
from klray.config.study import FollowConfig, StageConfig, StudyConfig, followed, stages, tuned_folder
from klray.config.texts import TextsConfig, TextSource, TextSplit, text_set
from klray.config.weights import Align, WeightsConfig, weights_memory_bytes
from klray.sweep.settings import RaySettings


@dataclass
class Config:
    """Everything that a job can be told."""

    models: ModelsConfig = field(default_factory=ModelsConfig)
    texts: TextsConfig = field(default_factory=TextsConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    ray: RaySettings = field(default_factory=RaySettings)
    dask: DaskConfig = field(default_factory=DaskConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    status: StatusConfig = field(default_factory=StatusConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    lens: LensConfig = field(default_factory=LensConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    page: PageConfig = field(default_factory=PageConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    adopt: AdoptConfig = field(default_factory=AdoptConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    log: LogConfig = field(default_factory=LogConfig)


def register() -> None:
    """Make the schema known to Hydra."""
    ConfigStore.instance().store(name="klray_schema", node=Config)
