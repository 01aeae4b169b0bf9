"""Matrices of log-likelihoods of every kind, and KL and its standard error of one pair in a few lines of NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from klray.analysis.kl.all_pairs import kl_divergence, kl_standard_error

BOTH = pytest.mark.parametrize("quantity", [kl_divergence, kl_standard_error])
N = 1300  # more than one block of tiles.TEXTS, the last one cut


def text_bytes(n_texts: int = N) -> np.ndarray:
    return np.random.default_rng(5).integers(257, 1025, n_texts)


def kl_of_pair(a: np.ndarray, b: np.ndarray, sizes: np.ndarray) -> float:
    difference = a.astype(np.float64) - b.astype(np.float64)
    return float(np.var(difference) / (2 * sizes.mean() * np.log(2)))


def standard_error_of_pair(a: np.ndarray, b: np.ndarray, sizes: np.ndarray) -> float:
    difference = a.astype(np.float64) - b.astype(np.float64)
    difference = difference - difference.mean()
    m2, m4 = (difference**2).mean(), (difference**4).mean()
    return float(np.sqrt((m4 - m2**2) / len(a)) / (2 * sizes.mean() * np.log(2)))


def matrix(kind: str, n_models: int = 30, n_texts: int = N) -> np.ndarray:
    rng = np.random.default_rng(3)
    text = -rng.gamma(4.0, 250.0, n_texts)
    noise = rng.normal(size=(n_models, n_texts))
    if kind == "independent":
        return 300 * noise - 900
    if kind == "trajectory":
        return text + np.cumsum(2 * noise, axis=0)
    if kind == "nearly identical":
        return text + 1e-3 * noise
    if kind == "every scale":  # from far above the threshold of the matrix products to far below it
        return text + 10.0 ** np.linspace(-4, 3, n_models)[:, None] * noise
    if kind == "offsets":
        return text + 0.1 * noise + 1e4 * np.arange(n_models)[:, None]
    if kind == "one text outweighs":
        return np.where(np.arange(n_texts) == 7, -1e5, 0.0) + 10.0 ** np.linspace(-3, 3, n_models)[:, None] * noise
    if kind == "heavy tails":
        return text + rng.standard_t(2, size=(n_models, n_texts)) * np.linspace(0.01, 100, n_models)[:, None]
    if kind == "float32":
        return (text + np.cumsum(0.5 * noise, axis=0)).astype(np.float32)
    assert kind == "float32 nearly identical"
    return (text + 1e-3 * noise).astype(np.float32)


KINDS = [
    "independent",
    "trajectory",
    "nearly identical",
    "every scale",
    "offsets",
    "one text outweighs",
    "heavy tails",
    "float32",
    "float32 nearly identical",
]
