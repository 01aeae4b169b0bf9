"""The headline numbers of a trajectory analysis: one row per run, for the terminal and for the report."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xarray as xr

from klray.analysis.diffusion import fractal_dimension, late
from klray.analysis.runs import Run, trajectories
from klray.words.numbers import NONE, significant, with_error
from klray.words.outside import printable
from klray.words.tables import text_table


@dataclass(frozen=True)
class Pairs:
    """Consecutive saved checkpoints of one run, each pair named by its later step; arrays of shape (T - 1,).

    ``kl`` and ``standard_error`` are in bits/byte and NaN where the analysis has none. ``usual`` marks pairs that are
    ``spacing`` steps apart: the distance the run uses most, of several such the widest (None without any pair).
    """

    step: np.ndarray
    previous_step: np.ndarray
    kl: np.ndarray
    standard_error: np.ndarray
    usual: np.ndarray
    spacing: int | None


@dataclass(frozen=True)
class RunRow:
    """Headline numbers of one run; NaN (or None) where the run has too few checkpoints.

    *Early* and *late* are the first and the last third (a third rounded down, at least one pair) of the run's
    consecutive pairs that have a finite KL and are ``spacing`` steps apart (see `Pairs`); a run with one such pair has
    no early value. KL values are medians, in bits/byte. The standard error beside one is the mean of its pairs'
    standard errors, in bits/byte: all pairs share the same texts, so their errors are correlated and do not shrink
    by averaging over pairs; whatever the correlation, the mean of the standard errors is an upper bound for the
    standard error of the mean. It covers the choice of texts, not the training seed.

    ``exponent`` is the mean c_q over the last half (rounded up) of the run's windows, by start step; ``r_squared`` is
    the mean R^2 of those windows. ``exponent_spread`` is their sample standard deviation: windows overlap, so it is
    not a standard error. ``weight_exponent`` and ``weight_r_squared`` are the same means for c_w, of exact weight
    distances where the result has them and of weight sketches elsewhere.
    """

    run: str
    family: str
    size: str
    seed: int | None
    checkpoints: int
    excluded: int
    last_step: int | None
    spacing: int | None
    early_kl: float
    early_kl_standard_error: float
    late_kl: float
    late_kl_standard_error: float
    late_pairs: int
    exponent: float
    exponent_spread: float
    r_squared: float
    windows: int
    weight_exponent: float = math.nan
    weight_r_squared: float = math.nan

    @property
    def weight_fractal_dimension(self) -> float:
        """D = 2 / c_w of the path of the parameters, dimensionless; NaN unless c_w > 0."""
        return float(fractal_dimension(self.weight_exponent))

    @property
    def fractal_dimension(self) -> float:
        """D = 2 / c_q, dimensionless (arXiv 2505.15353, section 4: c = 2H, D = 1/H); NaN unless c_q > 0."""
        return float(fractal_dimension(self.exponent))


def consecutive_pairs(result: xr.Dataset, run: Run) -> Pairs:
    """The run's consecutive pairs, from ``consecutive_kl`` and ``previous_step`` of the result."""
    step, previous = run.steps, result["previous_step"].values[run.models]
    paired = previous >= 0
    step, previous, positions = step[paired], previous[paired], run.models[paired]
    kl = result["consecutive_kl"].values[positions]
    distance = step - previous
    counted = distance[np.isfinite(kl)]
    spacing = None
    if counted.size:
        distances, counts = np.unique(counted, return_counts=True)
        spacing = int(distances[counts == counts.max()].max())
    return Pairs(
        step=step,
        previous_step=previous,
        kl=kl,
        standard_error=result["consecutive_kl_standard_error"].values[positions],
        usual=np.isfinite(kl) & (distance == spacing),
        spacing=spacing,
    )


class Windows(NamedTuple):
    """Windows of a run that have an exponent: start step, exponent and R^2, each of shape (windows,)."""

    start: np.ndarray
    exponent: np.ndarray
    r_squared: np.ndarray


def exponent_windows(result: xr.Dataset, run: Run) -> Windows:
    """Those of KL, with c_q."""
    return _windows(result, run, "exponent_kl", "exponent_kl_r_squared")


def weight_windows(result: xr.Dataset, run: Run, source: str = "") -> Windows:
    """Those of weights, with c_w.

    ``source``: "sketched", "exact", "aligned" (exact, modulo permutations), or "" for exact, else sketched, ones.
    """
    if not source:
        exact = weight_windows(result, run, "exact")
        return exact if exact.start.size else weight_windows(result, run, "sketched")
    suffix = "" if source == "sketched" else f"_{source}"
    return _windows(result, run, f"exponent_weights{suffix}", f"exponent_weights_r_squared{suffix}")


def _windows(result: xr.Dataset, run: Run, name: str, fit: str) -> Windows:
    if name not in result:
        return Windows(np.empty(0, np.int64), np.empty(0), np.empty(0))
    exponent = result[name].values[run.models]
    finite = np.isfinite(exponent)
    return Windows(run.steps[finite], exponent[finite], result[fit].values[run.models][finite])


def run_table(result: xr.Dataset) -> list[RunRow]:
    """One `RunRow` for each run of a "trajectory" result, in the order of `trajectories`."""
    result = in_memory(result)
    return [_row(result, run) for run in trajectories(result)]


def table_of(rows: Sequence[RunRow]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and cells of the table of runs, for a reader; names stand as they are. c_w where any run has it."""
    columns: list[tuple[str, Callable[[RunRow], str]]] = [
        ("run", lambda row: row.run),
        ("size", lambda row: _or_none(row.size)),
        ("seed", lambda row: _or_none(row.seed)),
        ("checkpoints", lambda row: f"{row.checkpoints}{f' (+{row.excluded} excluded)' if row.excluded else ''}"),
        ("last step", lambda row: _or_none(row.last_step)),
        ("every", lambda row: _or_none(row.spacing)),
        ("early KL (± SE)", lambda row: with_error(row.early_kl, row.early_kl_standard_error)),
        ("late KL (± SE)", lambda row: with_error(row.late_kl, row.late_kl_standard_error)),
        ("c_q (± sd over windows)", lambda row: with_error(row.exponent, row.exponent_spread)),
        ("R^2", lambda row: significant(row.r_squared)),
        ("2/c_q", lambda row: significant(row.fractal_dimension)),
    ]
    if any(math.isfinite(row.weight_exponent) for row in rows):
        columns += [
            ("c_w", lambda row: significant(row.weight_exponent)),
            ("R^2 (w)", lambda row: significant(row.weight_r_squared)),
            ("2/c_w", lambda row: significant(row.weight_fractal_dimension)),
        ]
    return tuple(name for name, _ in columns), [tuple(cell(row) for _, cell in columns) for row in rows]


def format_table(rows: Sequence[RunRow]) -> str:
    """Rows as plain text in aligned columns, with a line that explains them; a sentence when there are none."""
    if not rows:
        return "No run has two or more checkpoints with a step: there is no trajectory to summarise."
    header, cells = table_of(rows)
    shown = [(printable(run, 48), printable(size, 16), *numbers) for run, size, *numbers in cells]
    return (
        text_table(header, shown, text_columns=2) + "\n"
        "KL to the previous checkpoint in bits/byte: medians of the first and last third of the pairs 'every' steps "
        "apart, ± standard error (SE) of one pair.\n"
        "c_q: mean over the last half of the windows, ± their standard deviation (sd), which is no standard error: "
        "windows overlap; 2/c_q: fractal dimension."
        + (" c_w, R^2 (w), 2/c_w: the same of squared weight distance." if "c_w" in header else "")
    )


def in_memory(result: xr.Dataset) -> xr.Dataset:
    """The result with everything but its pairs of models loaded: each read from a store would be a request again."""
    loaded = result.copy()
    for variable in loaded.variables.values():
        if "other" not in variable.dims:
            variable.load()
    return loaded


def _row(result: xr.Dataset, run: Run) -> RunRow:
    pairs = consecutive_pairs(result, run)
    kl, error = pairs.kl[pairs.usual], pairs.standard_error[pairs.usual]
    third = max(1, kl.size // 3)
    first, last = slice(0, third if kl.size > 1 else 0), slice(kl.size - third, None)
    of_kl, of_weights = exponent_windows(result, run), weight_windows(result, run)
    exponent, spread = late(of_kl.exponent)
    included = run.steps[run.included]
    return RunRow(
        run=run.name,
        family=run.family,
        size=run.size,
        seed=run.seed,
        checkpoints=int(run.included.sum()),
        excluded=int((~run.included).sum()),
        last_step=int(included[-1]) if included.size else None,
        spacing=pairs.spacing,
        early_kl=_median(kl[first]),
        early_kl_standard_error=_mean(error[first]),
        late_kl=_median(kl[last]),
        late_kl_standard_error=_mean(error[last]),
        late_pairs=int(kl[last].size),
        exponent=exponent,
        exponent_spread=spread,
        r_squared=late(of_kl.r_squared)[0],
        windows=of_kl.start.size - of_kl.start.size // 2,
        weight_exponent=late(of_weights.exponent)[0],
        weight_r_squared=late(of_weights.r_squared)[0],
    )


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else math.nan


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if values.size else math.nan


def _or_none(value: Hashable | None) -> str:
    return NONE if value is None or value == "" else str(value)
