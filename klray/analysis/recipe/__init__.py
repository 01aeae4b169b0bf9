"""Preprocessing of a snapshot: clipped values, removed texts, excluded checkpoints, kept as a recipe to be reused.

Source of the steps and their numbers: arXiv:2505.15353 (pretraining runs) and its published analysis code.
"""

from klray.analysis.recipe.anomalies import Anomaly, find_anomalies
from klray.analysis.recipe.misplaced import MISPLACED, misplaced, misplaced_in
from klray.analysis.recipe.one_domain import of_domain, result_name
from klray.analysis.recipe.recipe import (
    FOUND,
    KNOWN_ANOMALIES,
    PUBLISHED,
    Exclusion,
    Recipe,
    excluded_by,
    names_of,
    suspicions,
)
