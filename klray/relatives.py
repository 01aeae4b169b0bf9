"""Relatives: which model of a snapshot another one came from, by quantisation or by fine-tuning.

Shapes: K = models of the snapshot (or of a result: both have the coordinates).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

NO_QUANTIZATION = ("", "none")


def own_output(dataset: xr.Dataset) -> np.ndarray:
    """(K,) bool: the model's own output, not a layer under a lens."""
    layers = dataset["layer"].values if "layer" in dataset.coords else np.full(dataset.sizes["model"], -1)
    found: np.ndarray = layers < 0
    return found


def unquantised(dataset: xr.Dataset) -> np.ndarray:
    """(K,) int64 position of each quantised model's unquantised self, -1 where there is none.

    That is the own output of the same commit without quantisation, of the same dtype if there is one; of several the
    last.
    """
    repositories, commits, dtypes, quantizations = (
        _strings(dataset, name) for name in ("repository", "commit", "dtype", "quantization")
    )
    own, plain = own_output(dataset), np.isin(quantizations, NO_QUANTIZATION)
    selves: dict[tuple[str, ...], int] = {}
    for position in np.flatnonzero(own & plain):
        at = repositories[position], commits[position]
        selves[at] = selves[(*at, dtypes[position])] = int(position)
    found = np.full(len(own), -1, dtype=np.int64)
    for position in np.flatnonzero(own & ~plain):
        at = repositories[position], commits[position]
        found[position] = selves.get((*at, dtypes[position]), selves.get(at, -1))
    return found


def parents(dataset: xr.Dataset) -> np.ndarray:
    """(K,) int64 position of each fine-tuned model's parent, -1 where there is none.

    The parent is the unquantised own output of the repository that ``base_model`` names: its revision ``main``, else
    its largest step, else the last. Quantised models and layers have none of their own.
    """
    repositories, revisions, bases, quantizations = (
        _strings(dataset, name) for name in ("repository", "revision", "base_model", "quantization")
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


def _strings(dataset: xr.Dataset, name: str) -> np.ndarray:
    """(K,) a coordinate as fixed-width strings, which every comparison takes; "" where the dataset has none."""
    if name not in dataset.coords:
        return np.full(dataset.sizes["model"], "")
    return np.array([str(value) for value in dataset[name].values], dtype=str)
