"""The runs of a result: their headline numbers, and what was set apart from them."""

import math
from collections.abc import Sequence

import xarray as xr

from klray.analysis.facts import recorded
from klray.analysis.recipe import Anomaly
from klray.analysis.runs_table import RunRow, table_of
from klray.report.sections import Section, Table
from klray.words.numbers import listed

_NAMED = 3  # checkpoints that are excluded for one reason
_NOTE = (
    "Early and late KL, in bits/byte: median of the KL to the previous checkpoint over the first and the last third of "
    "the run's consecutive pairs that are one spacing apart (every: the distance between checkpoints, in steps, that "
    "the run uses most). ± SE: the mean standard error of these pairs. All pairs share the same texts, so it does not "
    "shrink by averaging over them; it covers the choice of texts, not the training seed. c_q: mean over the last half "
    "of the run's windows with the mean R^2 of their fits; ± sd: the standard deviation over these windows, which "
    "overlap, so that it is not a standard error. 2/c_q: fractal dimension of the path.{weights} KL values are "
    "comparable only between runs of the same spacing."
)
_OF_WEIGHTS = " c_w, R^2 (w) and 2/c_w: the same means for the squared Euclidean distance of all parameters."


def runs_section(rows: Sequence[RunRow]) -> Section:
    """The table of runs, the same as that of the terminal."""
    if not rows:
        return Section("runs", "Runs", paragraphs=("No run in this result has two or more checkpoints with a step.",))
    header, cells = table_of(rows)
    note = _NOTE.format(weights=_OF_WEIGHTS if "c_w" in header else "")
    return Section("runs", "Runs", tables=(Table(header, cells, text_columns=2),), notes=(note,))


def set_apart_section(result: xr.Dataset) -> Section | None:
    """Checkpoints that are excluded or look anomalous, a row for a reason; None without any."""
    by_reason: dict[str, list[str]] = {}
    excluded = recorded(result, "excluded_reasons", {})
    for model, reason in excluded.items():
        by_reason.setdefault(reason, []).append(model)
    rows = [(listed(models, _NAMED), reason, "excluded") for reason, models in by_reason.items()]
    unknown = {"ratio": math.nan, "typical_ratio": math.nan}  # to results of klray 0.1
    for each in recorded(result, "anomalies", []):
        anomaly = Anomaly(**unknown | each)
        if anomaly.model not in excluded:
            rows.append((anomaly.model, f"off its run's path: {anomaly.evidence}", "kept"))
    rows += [(model, why, "in no run") for model, why in recorded(result, "contested", {}).items()]
    rows += [(model, why, "kept") for model, why in recorded(result, "misplaced", {}).items()]
    if not rows:
        return None
    return Section(
        "set_apart",
        "Excluded and anomalous checkpoints",
        paragraphs=(
            "An excluded model is left out of the recipe, of consecutive KL, diffusion windows and maps. A checkpoint "
            "is off its run's path when it is farther from both of its neighbours than they are from each other.",
        ),
        tables=(Table(("Checkpoint", "Why", "What was done"), rows, text_columns=3, long=1),),
    )
