"""Preprocessing of a snapshot: clipped values, removed texts, excluded checkpoints, kept as a recipe to be reused.

Source of the steps and their numbers: arXiv:2505.15353 (pretraining runs) and its published analysis code.
"""

from __future__ import annotations

from klray.preprocess.anomalies import Anomaly, find_anomalies
from klray.preprocess.domains import of_domain, result_name
from klray.preprocess.quantile import lower_quantile
from klray.preprocess.recipe import KNOWN_ANOMALIES, Exclusion, Recipe
from klray.preprocess.runs import Run, runs

__all__ = [
    "KNOWN_ANOMALIES",
    "Anomaly",
    "Exclusion",
    "Recipe",
    "Run",
    "find_anomalies",
    "lower_quantile",
    "of_domain",
    "result_name",
    "runs",
]
