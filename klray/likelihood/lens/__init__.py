"""Lenses: a model's predictions after each of its layers, by the logit lens or a tuned one. Torch only."""

from klray.likelihood.lens.lens import Lens, layer_log_likelihood
from klray.likelihood.lens.translators import FACTS, Translators, is_unfinished, load_translators
