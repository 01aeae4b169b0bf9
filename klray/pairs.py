"""Chosen pairs of a snapshot's models, such as a model and its quantised self, and the KL of just these.

Shapes: K = models, N = texts, P = pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from klray.errors import KlrayError
from klray.preprocess.runs import facts
from klray.units import kl_per_variance

_SAME = ("repository", "commit", "lens", "layer")


@dataclass(frozen=True)
class QuantizationPair:
    """A quantised model and what it was made from, as positions in a snapshot, with their KL in bits per byte."""

    quantization: str
    quantized: int
    original: int
    kl: float
    kl_standard_error: float


def pair_divergence(
    log_likelihood: Any, text_bytes: Any, pairs: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """KL_ij = Var_n(l_i - l_j) / (2 B ln 2) and its standard error by the delta method, (P,) each, in bits per byte.

    ``log_likelihood`` (K, N) in nats may be lazy: two rows at a time are read. arXiv 2505.15353, section 2; the same
    values as those of ``klray.kl_divergence`` and ``klray.kl_standard_error``, without all other pairs.
    """
    per_variance = kl_per_variance(float(np.asarray(text_bytes).mean()))
    kl, error = np.empty(len(pairs)), np.empty(len(pairs))
    for place, (i, j) in enumerate(pairs):
        difference = np.asarray(log_likelihood[i], np.float64) - np.asarray(log_likelihood[j], np.float64)
        squares = (difference - difference.mean()) ** 2
        kl[place] = per_variance * squares.mean()
        error[place] = per_variance * squares.std() / np.sqrt(len(squares))  # sqrt((m4 - m2^2) / N)
    return kl, error


def quantization_pairs(snapshot: xr.Dataset) -> list[QuantizationPair]:
    """Every quantised model of a snapshot with its unquantised self: equal repository, commit, lens and layer.

    Where the original was scored in several dtypes, the quantised model's own is taken, else float32, else the first.
    Quantised models without their original are in no pair.

    Raises
    ------
    KlrayError
        The snapshot does not say which models are quantised.
    """
    if "quantization" not in snapshot.coords:
        raise KlrayError("this dataset has no coordinate 'quantization': open a snapshot with klray.open_dataset")
    quantizations, dtypes = (list(map(str, facts(snapshot, name, ""))) for name in ("quantization", "dtype"))
    selves = list(zip(*(facts(snapshot, name, "").tolist() for name in _SAME), strict=True))
    originals: dict[tuple[Any, ...], dict[str, int]] = {}
    for position, own in enumerate(selves):
        if quantizations[position] == "none":
            originals.setdefault(own, {}).setdefault(dtypes[position], position)
    found: list[tuple[int, int]] = []
    for position, own in enumerate(selves):
        if quantizations[position] == "none" or own not in originals:
            continue
        scored = originals[own]
        best = next((name for name in (dtypes[position], "float32") if name in scored), next(iter(scored)))
        found.append((position, scored[best]))
    kl, error = pair_divergence(snapshot["log_likelihood"].data, snapshot["text_bytes"].values, found)
    return [
        QuantizationPair(quantizations[i], i, j, float(kl[place]), float(error[place]))
        for place, (i, j) in enumerate(found)
    ]
