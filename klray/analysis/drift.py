"""Drift in weight space: how far the parameters of each run move, and by which diffusion exponent c_w.

Shapes: K = models of a snapshot, T = saved checkpoints of a run.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from klray.analysis.diffusion import diffusion_exponent
from klray.analysis.facts import facts, strings
from klray.analysis.runs import Run
from klray.weights.distances import relative_error, squared_distances
from klray.words.outside import whole_number

log = logging.getLogger("klray")

Sketches = Callable[[Sequence[str]], Mapping[str, np.ndarray]]  # keys of columns -> (bucket,) of those that have one
Columns = dict[str, tuple[np.ndarray, dict[str, Any]]]

_PAPER = "arXiv:2505.15353"
_MOST_BUCKETS = 2**24  # a store reads no larger ones: they have 64 MiB


def sketched_drift(
    dataset: xr.Dataset,
    found: Sequence[Run],
    excluded: np.ndarray,
    sketches: Sketches | None,
    window: int,
    min_step: int,
) -> Columns:
    """Columns (K,) of ``exponent_weights``, its R^2 and ``consecutive_weight_distance``, from weight sketches.

    The windows are those of KL: excluded checkpoints drop out. Where a run has sketches of several kinds, each kind is
    compared with itself alone. NaN where there is no sketch, or one of another size than belongs to its kind. One
    run's sketches of one kind are in memory at a time: ``drift_bytes``.
    """
    labels, keys = strings(dataset, "sketch"), strings(dataset, "key")
    sizes = [size for label in set(labels) if (size := _buckets(label))]
    error = {"relative_error": relative_error(min(sizes))} if sizes else {}
    columns = _described(len(excluded), "from weight sketches", "", window, min_step, error)
    if sketches is None:
        return columns
    for run in found:
        of_run = labels[run.models]
        squared = np.full((len(run.models), len(run.models)), np.nan)
        for label in set(of_run) - {""}:
            places = np.flatnonzero(of_run == label)
            there = _of_one_size(label, sketches([str(key) for key in keys[run.models[places]]]))
            places = np.array([place for place in places if keys[run.models[place]] in there], dtype=np.int64)
            if len(places):
                rows = np.stack([there[keys[run.models[place]]] for place in places])
                squared[np.ix_(places, places)] = squared_distances(rows)
        _fill(columns, run, excluded, squared, window, min_step)
    return columns


def is_exact(result: xr.Dataset) -> bool:
    """Whether a result has exact weight distances, as ``klray weights`` writes them."""
    pairs, models = ("model", "back"), ("model",)
    expected: dict[str, tuple[tuple[str, ...], str]] = {
        "squared_distance": (pairs, "f"),
        "other_commit": (pairs, "OTU"),
    }
    expected |= {name: (models, "OTU") for name in ("repository", "commit")}
    if "squared_distance_aligned" in result.variables:
        expected["squared_distance_aligned"] = (pairs, "f")
    return "made" in result.attrs and all(
        name in result.variables and result[name].dims == dims and result[name].dtype.kind in kinds
        for name, (dims, kinds) in expected.items()
    )


def exact_drift(
    dataset: xr.Dataset, found: Sequence[Run], excluded: np.ndarray, exact: xr.Dataset, window: int, min_step: int
) -> Columns:
    """The same columns with names that end in ``_exact``, from what ``klray weights`` wrote, where it has the pairs.

    ``exact`` has ``squared_distance`` (model, back): to the checkpoint that is so many places before in its run, which
    is known by ``commit`` and ``other_commit``. Where it was aligned, ``exponent_weights_aligned`` comes with it.
    Exponents are NaN where it was measured in shorter windows than ``window``: theirs would be of another window.
    """
    too_short = exact.sizes["back"] < window
    if too_short:
        log.warning(
            "exact weight distances reach back by %d of the run's checkpoints, windows by %d, so that there are no "
            "exact exponents: run klray weights analysis.window=%d",
            *(exact.sizes["back"], window, window),
        )
    place_of = {
        pair: place for place, pair in enumerate(zip(exact["repository"].values, exact["commit"].values, strict=True))
    }
    repositories, commits = facts(dataset, "repository", ""), facts(dataset, "commit", "")
    described: Columns = {}
    for variable, suffix, words in (
        ("squared_distance", "_exact", "from the stored parameters"),
        ("squared_distance_aligned", "_aligned", "from the stored parameters, hidden units aligned by permutation"),
    ):
        if variable not in exact:
            continue
        distances, others = exact[variable].values, exact["other_commit"].values
        columns = _described(len(excluded), words, suffix, window, min_step, {})
        for run in found:
            squared = np.full((len(run.models), len(run.models)), np.nan)
            where = {commits[model]: t for t, model in enumerate(run.models)}
            for t, model in enumerate(run.models):
                row = place_of.get((repositories[model], commits[model]))
                for back in range(exact.sizes["back"]) if row is not None else ():
                    other = where.get(others[row, back])
                    if other is not None:
                        squared[t, other] = squared[other, t] = distances[row, back]
            _fill(columns, run, excluded, squared, window, min_step)
        if too_short:
            for name in (f"exponent_weights{suffix}", f"exponent_weights_r_squared{suffix}"):
                columns[name][0][:] = np.nan
        described |= columns
    return described


def most_sketches(dataset: xr.Dataset, found: Sequence[Run]) -> tuple[int, int]:
    """(checkpoints, buckets) of the sketches of one kind and run that are the most together."""
    labels = strings(dataset, "sketch")
    counted = (Counter(labels[run.models].tolist()) for run in found)
    of_runs = ((count, _buckets(label)) for counts in counted for label, count in counts.items())
    return max(of_runs, key=lambda each: each[0] * each[1], default=(0, 0))


def drift_bytes(checkpoints: int, size: int) -> int:
    """Bytes that ``sketched_drift`` holds at most: a run's sketches of one kind as they are stored and as float64."""
    return checkpoints * size * (4 + 4 + 8 + 8)


def _buckets(label: str) -> int:
    """Buckets of the sketches with this label, such as 65536-v1-0123456789abcdef; 0 where it does not say."""
    found = whole_number(label.partition("-")[0]) or 0
    return found if found <= _MOST_BUCKETS else 0


def _of_one_size(label: str, there: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of ``there`` that have as many buckets as their ``label`` says, or else as most have; others are told."""
    sizes = Counter(map(len, there.values()))
    size = _buckets(label) or max(sizes, key=sizes.__getitem__, default=0)
    for key, buckets in there.items():
        if len(buckets) != size:
            words = "the weight sketch of column %s has %d buckets, and %d belong there: passed over"
            log.warning(words, key[:12], len(buckets), size)
    return {key: buckets for key, buckets in there.items() if len(buckets) == size}


def exponents(
    steps: np.ndarray, squared: np.ndarray, window: int, min_step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """c_w, its R^2 and the distance to the checkpoint before, each (T,), from squared distances (T, T).

    Pairs that a window of W did not reach are NaN there, and drop out as excluded ones do.
    """
    exponent, r_squared = diffusion_exponent(steps, squared, window, min_step)
    distance = np.full(len(steps), np.nan)
    distance[1:] = np.sqrt(np.diagonal(squared, 1))
    return exponent, r_squared, distance


def _fill(columns: Columns, run: Run, excluded: np.ndarray, squared: np.ndarray, window: int, min_step: int) -> None:
    out = excluded[run.models]
    squared[out] = np.nan
    squared[:, out] = np.nan
    for (column, _), values in zip(columns.values(), exponents(run.steps, squared, window, min_step), strict=True):
        column[run.models] = values


def _described(n_models: int, source: str, suffix: str, window: int, min_step: int, more: dict[str, Any]) -> Columns:
    """The columns that `exponents` fills, NaN as yet, with their attributes."""
    paper = {"units": "1", "references": _PAPER}
    fit = {**paper, "window": window, "min_step": min_step, **more}
    distance = f"Euclidean distance of all parameters to the previous saved checkpoint, {source}"
    return {
        f"{name}{suffix}": (np.full(n_models, np.nan), attributes)
        for name, attributes in (
            ("exponent_weights", {**fit, "long_name": f"diffusion exponent c_w of squared weight distance, {source}"}),
            ("exponent_weights_r_squared", {**fit, "long_name": f"R^2 of the fit of exponent_weights{suffix}"}),
            ("consecutive_weight_distance", {**paper, "long_name": distance, **more}),
        )
    }
