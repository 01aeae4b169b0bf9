"""Lenses: a model's predictions after each of its layers, by the logit lens or a tuned one. Torch only."""

from __future__ import annotations

from klray.lens.lens import LOGIT, Lens, layer_log_likelihood
from klray.lens.training import LensTraining, prediction_kl, train_lens
from klray.lens.translators import FACTS, Translators, is_unfinished, load_translators

__all__ = [
    "FACTS",
    "LOGIT",
    "Lens",
    "LensTraining",
    "Translators",
    "is_unfinished",
    "layer_log_likelihood",
    "load_translators",
    "prediction_kl",
    "train_lens",
]
