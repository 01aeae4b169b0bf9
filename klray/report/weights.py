"""Weights in a report: exponents of their exact distances, as stored and aligned by permutation, next to c_q."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from klray.analysis.drift import exact_drift
from klray.analysis.runs import runs
from klray.analysis.runs_table import exponent_windows, significant, trajectories, weight_windows, with_error
from klray.report.sections import Section, Table

_SOURCES = {"sketched": "c_w, sketches", "exact": "c_w, exact", "aligned": "c_w, aligned"}


def weights_section(result: xr.Dataset, exact: xr.Dataset | None) -> Section | None:
    """c_q and c_w of every run with exact weight distances; None where neither the result nor ``exact`` has any.

    ``exact`` is what ``klray weights`` wrote; its windows are those of the result. What the analysis had already taken
    over stands.
    """
    if exact is not None and "exponent_weights_exact" not in result:
        excluded = result["excluded"].values.astype(bool)
        windows = int(result.attrs["window"]), int(result.attrs["min_step"])
        columns = exact_drift(result, runs(result, excluded), excluded, exact, *windows)
        result = result.assign({name: ("model", column, about) for name, (column, about) in columns.items()})
    found = []
    for run in trajectories(result):
        _, c_q, _ = exponent_windows(result, run)
        by_source = {source: weight_windows(result, run, source) for source in _SOURCES}
        if by_source["exact"][1].size:
            found.append((run.name, c_q, by_source))
    if not found:
        return None
    shown = [source for source in _SOURCES if any(by_source[source][1].size for *_, by_source in found)]
    header = ["Run", "c_q", *(each for source in shown for each in (_SOURCES[source], "R²")), "2/c_w, exact"]
    rows = []
    for name, c_q, by_source in found:
        cells = [name, _late(c_q)]
        for source in shown:
            _, exponent, r_squared = by_source[source]
            cells += [_late(exponent), significant(_mean(r_squared))]
        mean = _mean(by_source["exact"][1])
        rows.append((*cells, significant(2 / mean if mean > 0 else math.nan)))
    return Section(
        "weights",
        "Weights",
        paragraphs=("How fast the parameters move, from the distances of all stored parameters within each window.",),
        tables=(Table(tuple(header), rows),),
        verdict=_difference(found),
        notes=(
            "Each: mean over the last half of the run's windows ± their standard deviation, which is no standard "
            "error, because windows overlap. R²: of the fits of the exponent to its left."
            + (
                " Aligned: hidden units were matched by permutation first, which leaves a model's outputs as they are."
                if "aligned" in shown
                else ""
            ),
        ),
    )


def _late(values: np.ndarray) -> str:
    late = values[len(values) // 2 :]
    return with_error(_mean(values), float(np.std(late, ddof=1)) if late.size > 1 else math.nan)


def _mean(values: np.ndarray) -> float:
    """Of the last half, rounded up, as in the table of runs."""
    late = values[len(values) // 2 :]
    return float(late.mean()) if late.size else math.nan


def _difference(found: list[tuple[str, np.ndarray, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]]) -> str:
    """How much alignment changes c_w at most, over the runs that have both; empty without any."""
    both = [abs(_mean(each["aligned"][1]) - _mean(each["exact"][1])) for *_, each in found if each["aligned"][1].size]
    return f"Alignment changes a run's c_w by {significant(max(both), 2)} at most." if both else ""
