"""Runs: which models of a snapshot are checkpoints of one training run, in which order.

Shapes: K = models of the snapshot, T = saved checkpoints of a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr


@dataclass(frozen=True)
class Run:
    """The saved checkpoints of one run, of one dtype, quantization, lens and layer, in the order of their steps.

    Attributes
    ----------
    name : str
    models : (T,) int64, positions in the snapshot
    steps : (T,) int64, strictly increasing
    """

    name: str
    models: np.ndarray
    steps: np.ndarray


def runs(dataset: xr.Dataset, excluded: np.ndarray | None = None) -> list[Run]:
    """Runs of the snapshot: models with a ``run`` and a step, grouped also by dtype, quantization, lens and layer.

    Of several models at one step (a checkpoint that was scored again) the last one stands, among those that are not
    ``excluded`` (K,) if there are any.
    """
    names, steps = facts(dataset, "run", ""), facts(dataset, "step", -1)
    variants = zip(*(facts(dataset, fact, "") for fact in ("dtype", "quantization", "lens", "layer")), strict=True)
    members: dict[tuple[str, ...], dict[int, int]] = {}
    for position, variant in enumerate(variants):
        if names[position] == "" or steps[position] < 0:
            continue
        of_run = members.setdefault((str(names[position]), *map(str, variant)), {})
        standing = of_run.get(int(steps[position]))
        if standing is None or excluded is None or excluded[standing] or not excluded[position]:
            of_run[int(steps[position])] = position
    return [
        Run(group[0], np.array([of_run[step] for step in sorted(of_run)]), np.array(sorted(of_run)))
        for group, of_run in members.items()
    ]


def facts(dataset: xr.Dataset | xr.DataArray, name: str, default: Any) -> np.ndarray:
    """(K,) a coordinate of the models, or ``default`` for all where the snapshot has none."""
    return dataset[name].values if name in dataset.coords else np.full(dataset.sizes["model"], default)


def fact_strings(dataset: xr.Dataset | xr.DataArray, name: str, default: str = "") -> np.ndarray:
    """The same as strings of fixed width, which every comparison and sort takes.

    Read back from a store, strings are of variable width, and NumPy does not convert those by itself.
    """
    return np.array([str(value) for value in facts(dataset, name, default)], dtype=str)
