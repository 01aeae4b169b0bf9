"""Weights in a report: exponents of their exact distances, as stored and aligned by permutation, next to c_q."""

import xarray as xr

from klray.analysis.diffusion import fractal_dimension, late
from klray.analysis.drift import exact_drift
from klray.analysis.runs import runs, trajectories
from klray.analysis.runs_table import Windows, exponent_windows, weight_windows
from klray.report.sections import Section, Table
from klray.words.numbers import significant, with_error

_SOURCES = {"sketched": "c_w, sketches", "exact": "c_w, exact", "aligned": "c_w, aligned"}


def weights_section(result: xr.Dataset, exact: xr.Dataset | None) -> Section | None:
    """c_q and c_w of every run with exact weight distances; None where neither the result nor ``exact`` has any.

    ``exact`` is what ``klray weights`` wrote; its windows are those of the result. What the analysis had already taken
    over stands.
    """
    if exact is not None and "exponent_weights_exact" not in result:
        excluded = result["excluded"].values.astype(bool)
        asked = int(result.attrs["window"]), int(result.attrs["min_step"])
        columns = exact_drift(result, runs(result, excluded), excluded, exact, *asked)
        result = result.assign({name: ("model", column, about) for name, (column, about) in columns.items()})
    found = []
    for run in trajectories(result):
        by_source = {source: weight_windows(result, run, source) for source in _SOURCES}
        if by_source["exact"].start.size:
            found.append((run.name, exponent_windows(result, run), by_source))
    if not found:
        return None
    shown = [source for source in _SOURCES if any(by_source[source].start.size for *_, by_source in found)]
    header = ["Run", "c_q", *(each for source in shown for each in (_SOURCES[source], "R²")), "2/c_w, exact"]
    rows = []
    for name, of_kl, by_source in found:
        cells = [name, with_error(*late(of_kl.exponent))]
        for source in shown:
            windows = by_source[source]
            cells += [with_error(*late(windows.exponent)), significant(late(windows.r_squared)[0])]
        rows.append((*cells, significant(float(fractal_dimension(late(by_source["exact"].exponent)[0])))))
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


def _difference(found: list[tuple[str, Windows, dict[str, Windows]]]) -> str:
    """How much alignment changes c_w at most, over the runs that have both; empty without any."""
    changed = [
        abs(late(each["aligned"].exponent)[0] - late(each["exact"].exponent)[0])
        for *_, each in found
        if each["aligned"].start.size
    ]
    return f"Alignment changes a run's c_w by {significant(max(changed), 2)} at most." if changed else ""
