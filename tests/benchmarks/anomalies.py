"""How small a planted anomaly may be before it is missed: noise in the weights of one checkpoint of a trained run.

The family is the embedded one, trained first where it is not there yet; a minute and a half of scoring.
"""

from __future__ import annotations

import numpy as np
import torch

import klray
from klray import texts
from klray.analysis.kl.all_pairs import kl_divergence
from klray.analysis.recipe import find_anomalies
from klray.likelihood.loading import load
from klray.likelihood.tokenizer import load_tokenizer
from klray.tiny.family import train_family
from klray.tiny.serving import RECIPES
from tests.benchmarks.machine import table

NOISE = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of each tensor's root mean square
STEPS = {"default": (2, 8, 40, 120, 220, 320, 420, 500, 580), "smallest": (2, 8, 16, 24, 32, 36)}
N_TEXTS = 64


def damaged(weights: dict[str, torch.Tensor], noise: float) -> dict[str, torch.Tensor]:
    """Every tensor with Gaussian noise of that share of its own root mean square."""
    torch.manual_seed(0)
    return {name: w + noise * w.square().mean().sqrt() * torch.randn(w.shape) for name, w in weights.items()}


def main(recipe: str = "default") -> str:
    """For each step and amount of noise: the KL to the undamaged checkpoint, and whether the anomaly is found."""
    family, text_set = RECIPES[recipe], texts.python_stdlib(n=N_TEXTS)
    run, steps = family.runs[-1], np.array(family.saved_steps)
    folder = train_family(family) / run.repository

    def score(step: int, noise: float = 0.0) -> np.ndarray:
        place = folder / f"step{step}"
        model = load(place).model
        if noise:
            model.load_state_dict(damaged(model.state_dict(), noise))
        return klray.log_likelihood(model, load_tokenizer(place), list(text_set.texts))

    clean = np.array([score(int(step)) for step in steps])
    floor = np.quantile(clean, 0.02, method="lower")
    labels = [f"step{step}" for step in steps]

    def pairs(values: np.ndarray) -> np.ndarray:
        found: np.ndarray = kl_divergence(np.maximum(values, floor), text_set.n_bytes)
        return found

    def steps_found(values: np.ndarray) -> list[int]:
        return [each.step for each in find_anomalies(labels, steps, pairs(values))]

    consecutive = np.diagonal(pairs(clean), 1)
    rows = [("step", "before, after", *(f"noise {noise:g}" for noise in NOISE))]
    for step in STEPS[recipe]:
        at = int(np.flatnonzero(steps == step)[0])
        cells = []
        for noise in NOISE:
            values = clean.copy()
            values[at] = score(step, noise)
            found = steps_found(values)
            away = pairs(np.stack([values[at], clean[at]]))[0, 1]
            mark = "" if not found else " *" if found == [step] else f" * and {set(found) - {step}}"
            cells.append(f"{away:.3f}{mark}")
        rows.append((str(step), f"{consecutive[at - 1]:.3f}, {consecutive[at]:.3f}", *cells))
    return table(
        f"Anomalies: noise in the weights of one checkpoint of {run.repository}, {N_TEXTS} texts. KL in bits/byte of "
        f"the checkpoint before and after, and of the damaged to the undamaged one; * found. Without noise: "
        f"{steps_found(clean) or 'nothing'} found.",
        rows,
    )
