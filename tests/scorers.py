"""A scorer whose models are loaded in the process of the test."""

from __future__ import annotations

from typing import Any

from klray.checkpoints import Hub
from klray.sweep.model import Compute
from klray.sweep.scorer import Scorer
from klray.sweep.settings import ScoringSettings
from klray.texts import TextSet


def scorer_here(hub: Hub, url: str, text_set: TextSet, settings: ScoringSettings) -> Scorer:
    """Takes PyTorch into this process, and keeps its threads as ``settings`` say."""
    options: dict[str, Any] = {}
    return Scorer(hub, url, options, text_set, settings, Compute(settings, text_set))
