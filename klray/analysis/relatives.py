"""Relatives: which model of a snapshot another one came from, by quantisation or by fine-tuning.

Shapes: K = models of the snapshot (or of a result: both have the coordinates).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from klray.analysis.runs import fact_strings

NO_QUANTIZATION = ("", "none")
SELF_FACTS = ("repository", "commit", "dtype", "quantization")  # what tells whose quantised self a model is


def own_output(dataset: xr.Dataset) -> np.ndarray:
    """(K,) bool: the model's own output, not a layer under a lens."""
    layers = dataset["layer"].values if "layer" in dataset.coords else np.full(dataset.sizes["model"], -1)
    found: np.ndarray = layers < 0
    return found


def unquantised(dataset: xr.Dataset, excluded: np.ndarray | None = None) -> np.ndarray:
    """(K,) int64 position of each quantised model's unquantised self, -1 where there is none.

    That is the own output of the same commit without quantisation, of the same dtype if there is one, else of the
    dtype that most unquantised models have; of several the last. Those ``excluded`` (K,) are and have none.
    """
    facts = {name: fact_strings(dataset, name) for name in SELF_FACTS}
    usable = own_output(dataset)
    return selves(facts, usable if excluded is None else usable & ~np.asarray(excluded, dtype=bool))


def selves(facts: Mapping[str, np.ndarray], usable: np.ndarray) -> np.ndarray:
    """``unquantised`` from the (K,) strings of each of ``SELF_FACTS``, among own outputs that are ``usable`` (K,)."""
    repositories, commits, dtypes, quantizations = (facts[name] for name in SELF_FACTS)
    plain = np.isin(quantizations, NO_QUANTIZATION)
    usual = Counter(dtypes[usable & plain].tolist()).most_common(1)
    best: dict[tuple[str, ...], int] = {}
    for position in np.flatnonzero(usable & plain).tolist():
        at = repositories[position], commits[position]
        best[at] = best[(*at, dtypes[position])] = position
    found = np.full(len(usable), -1, dtype=np.int64)
    for position in np.flatnonzero(usable & ~plain).tolist():
        at = repositories[position], commits[position]
        choices = [(*at, dtypes[position]), (*at, usual[0][0] if usual else ""), at]
        found[position] = next((best[choice] for choice in choices if choice in best), -1)
    return found


def parents(dataset: xr.Dataset) -> np.ndarray:
    """(K,) int64 position of each fine-tuned model's parent, -1 where there is none.

    The parent is the unquantised own output of the repository that ``base_model`` names: its revision ``main``, else
    its largest step, else the last. Quantised models and layers have none of their own.
    """
    repositories, revisions, bases, quantizations = (
        fact_strings(dataset, name) for name in ("repository", "revision", "base_model", "quantization")
    )
    steps = dataset["step"].values if "step" in dataset.coords else np.full(dataset.sizes["model"], -1)
    own = own_output(dataset) & np.isin(quantizations, NO_QUANTIZATION)
    best: dict[str, tuple[Any, int]] = {}
    for position in np.flatnonzero(own):
        rank = (revisions[position] == "main", int(steps[position]), int(position))
        best[repositories[position]] = max(best.get(repositories[position], ((), -1)), (rank, int(position)))
    found = np.full(len(own), -1, dtype=np.int64)
    for position in np.flatnonzero(own & (bases != "") & (bases != repositories)):
        found[position] = best.get(bases[position], ((), -1))[1]
    return found
