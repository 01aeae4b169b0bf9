"""Lenses: a model's predictions after each of its layers, by the logit lens or a tuned one. Torch only."""

from __future__ import annotations

from klray.likelihood.lens.lens import Lens, layer_log_likelihood
from klray.likelihood.lens.translators import FACTS, Translators, is_unfinished, load_translators

__all__ = ["FACTS", "Lens", "Translators", "is_unfinished", "layer_log_likelihood", "load_translators"]
