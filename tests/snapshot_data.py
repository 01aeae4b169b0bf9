"""Synthetic snapshots with the coordinates of a real one, for the tests of analyses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

TEXT_SET = "3f" * 32
STEPS = (0, 512, *range(1000, 31_000, 1000))


def snapshot(
    runs: Sequence[str] = ("org/pythia-70m", "org/pythia-1b"),
    steps: Sequence[int] = STEPS,
    singles: int = 3,
    n_texts: int = 200,
    seed: int = 0,
    chunks: Any = (17, -1),
) -> xr.Dataset:
    """Random walks of every run over ``steps``, then ``singles`` models without a step; models in a shuffled order."""
    rng = np.random.default_rng(seed)
    text = -rng.gamma(4.0, 250.0, n_texts)
    rows, facts = [], []
    for run in runs:
        row = text + rng.normal(size=n_texts) * 30
        for previous, step in zip([0, *steps], steps, strict=False):
            row = row + rng.standard_t(5, n_texts) * 0.1 * np.sqrt(step - previous)
            rows.append(row)
            facts.append((run, f"step{step}", run, step))
    for single in range(singles):
        rows.append(text + rng.normal(size=n_texts) * 40)
        facts.append((f"else/model-{single}", "main", "", -1))
    order = rng.permutation(len(rows))
    return labelled(np.array(rows, dtype=np.float32)[order], [facts[place] for place in order], seed, chunks)


def labelled(values: np.ndarray, facts: Sequence[tuple[str, str, str, int]], seed: int, chunks: Any) -> xr.Dataset:
    """A snapshot of (K, N) values whose models have these (repository, revision, run, step)."""
    n_models, n_texts = values.shape
    repository, revision, run, step = zip(*facts, strict=True)

    def strings(items: Sequence[str]) -> np.ndarray:
        return np.array(items, dtype=np.dtypes.StringDType())

    return xr.Dataset(
        {"log_likelihood": (("model", "text"), da.from_array(values, chunks=chunks), {"units": "nat"})},
        coords={
            "model": strings([f"{name}@{of}" for name, of in zip(repository, revision, strict=True)]),
            "key": ("model", strings([f"{seed:02d}{place:062d}" for place in range(n_models)])),
            "repository": ("model", strings(repository)),
            "revision": ("model", strings(revision)),
            "run": ("model", strings(run)),
            "step": ("model", np.array(step, dtype=np.int64)),
            "dtype": ("model", strings(["float32"] * n_models)),
            "quantization": ("model", strings(["none"] * n_models)),
            "lens": ("model", strings(["none"] * n_models)),
            "layer": ("model", np.full(n_models, -1)),
            "text": np.arange(n_texts),
            "text_bytes": ("text", np.random.default_rng(seed + 1).integers(257, 1025, n_texts).astype(np.int32)),
            "domain": ("text", strings(["prose"] * n_texts)),
        },
        attrs={"snapshot": "20260102T030405Z-5f2a9c1e", "text_set": TEXT_SET, "text_set_name": "synthetic"},
    )


def rows_of(dataset: xr.Dataset, run: str) -> np.ndarray:
    """Positions of a run's models in the order of their steps."""
    positions = np.flatnonzero(dataset["run"].values == run)
    return positions[np.argsort(dataset["step"].values[positions])]
