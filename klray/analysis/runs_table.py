"""The headline numbers of a trajectory analysis: one row per run, for the terminal and for the report."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from klray.words.tables import text_table

_NONE = "–"


@dataclass(frozen=True)
class Trajectory:
    """The checkpoints of one run, at least two, ordered by step.

    Attributes
    ----------
    positions : int array (T,), where the checkpoints stand on the result's model axis.
    steps : int64 array (T,), training steps.
    included : bool array (T,), False for a checkpoint that the analysis excluded.
    """

    name: str
    family: str
    size: str
    seed: int | None
    parameters: int
    positions: np.ndarray
    steps: np.ndarray
    included: np.ndarray


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
        return 2.0 / self.weight_exponent if self.weight_exponent > 0 else math.nan

    @property
    def fractal_dimension(self) -> float:
        """D = 2 / c_q, dimensionless (arXiv 2505.15353, section 4: c = 2H, D = 1/H); NaN unless c_q > 0."""
        return 2.0 / self.exponent if self.exponent > 0 else math.nan


def trajectories(result: xr.Dataset) -> list[Trajectory]:
    """Runs with two or more checkpoints, ordered by family, number of parameters, size, seed and name.

    Models of one run that differ in dtype, quantization, lens or layer are trajectories of their own, and their names
    then carry what sets them apart. Models without a run or a step (-1) belong to none: see `single_models`.
    """
    steps = result["step"].values
    runs = strings(result, "run")
    variants = list(zip(*(strings(result, name) for name in ("dtype", "quantization", "lens", "layer")), strict=True))
    members: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for position in np.flatnonzero((steps >= 0) & (runs != "")):
        members.setdefault((runs[position], variants[position]), []).append(int(position))
    found = {key: positions for key, positions in members.items() if len(positions) > 1}
    several = {run for run, _ in found if sum(other == run for other, _ in found) > 1}
    return sorted(
        (
            _trajectory(result, _with_variant(run, variant) if run in several else run, np.array(positions))
            for (run, variant), positions in found.items()
        ),
        key=lambda t: (t.family, t.parameters, t.size, -1 if t.seed is None else t.seed, t.name),
    )


def single_models(result: xr.Dataset, runs: Iterable[Trajectory]) -> np.ndarray:
    """Positions on the model axis, int array, of the models that belong to none of ``runs``."""
    alone = np.ones(result.sizes["model"], dtype=bool)
    for run in runs:
        alone[run.positions] = False
    return np.flatnonzero(alone)


def consecutive_pairs(result: xr.Dataset, run: Trajectory) -> Pairs:
    """The run's consecutive pairs, from ``consecutive_kl`` and ``previous_step`` of the result."""
    step, previous = run.steps, result["previous_step"].values[run.positions]
    paired = previous >= 0
    step, previous, positions = step[paired], previous[paired], run.positions[paired]
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


def exponent_windows(result: xr.Dataset, run: Trajectory) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start step, c_q and R^2 of the run's windows that have an exponent, each of shape (windows,)."""
    if "exponent_kl" not in result:
        nothing = np.empty(0)
        return nothing.astype(np.int64), nothing, nothing
    exponent = result["exponent_kl"].values[run.positions]
    finite = np.isfinite(exponent)
    return run.steps[finite], exponent[finite], result["exponent_kl_r_squared"].values[run.positions][finite]


def weight_windows(result: xr.Dataset, run: Trajectory, source: str = "") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start step, c_w and R^2 of the run's windows that have a c_w, each of shape (windows,).

    ``source``: "sketched", "exact", "aligned" (exact, modulo permutations), or "" for exact, else sketched, ones.
    """
    suffixes = {"sketched": [""], "exact": ["_exact"], "aligned": ["_aligned"], "": ["_exact", ""]}[source]
    for suffix in suffixes:
        if f"exponent_weights{suffix}" in result:
            exponent = result[f"exponent_weights{suffix}"].values[run.positions]
            finite = np.isfinite(exponent)
            if finite.any():
                r_squared = result[f"exponent_weights_r_squared{suffix}"].values[run.positions]
                return run.steps[finite], exponent[finite], r_squared[finite]
    return np.empty(0, np.int64), np.empty(0), np.empty(0)


def run_table(result: xr.Dataset) -> list[RunRow]:
    """One `RunRow` for each run of a "trajectory" result, in the order of `trajectories`."""
    result = in_memory(result)
    return [_row(result, run) for run in trajectories(result)]


def format_table(rows: Iterable[RunRow]) -> str:
    """Rows as plain text in aligned columns, with a line that explains them; a sentence when there are none."""
    header: tuple[str, ...] = (
        *("run", "size", "seed", "checkpoints", "last step", "every"),
        *("early KL (± SE)", "late KL (± SE)", "c_q (± sd over windows)", "R^2", "2/c_q"),
    )
    rows = list(rows)
    with_weights = any(math.isfinite(row.weight_exponent) for row in rows)
    cells = [_cells(row) + (_weight_cells(row) if with_weights else ()) for row in rows]
    if with_weights:
        header += ("c_w", "R^2 (w)", "2/c_w")
    if not cells:
        return "No run has two or more checkpoints with a step: there is no trajectory to summarise."
    return (
        text_table(header, cells, text_columns=2) + "\n"
        "KL to the previous checkpoint in bits/byte: medians of the first and last third of the pairs 'every' steps "
        "apart, ± standard error (SE) of one pair.\n"
        "c_q: mean over the last half of the windows, ± their standard deviation (sd), which is no standard error: "
        "windows overlap; 2/c_q: fractal dimension."
        + (" c_w, R^2 (w), 2/c_w: the same of squared weight distance." if with_weights else "")
    )


def significant(value: float, digits: int = 3) -> str:
    """``value`` with that many significant digits; a dash for NaN."""
    if not math.isfinite(value):
        return _NONE
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:#.{digits}g}".removesuffix(".")


def with_error(value: float, error: float) -> str:
    """``value ± error``, both to two significant digits of the error; without an error, three digits of the value."""
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return significant(value)
    decimals = max(0, 1 - math.floor(math.log10(error)))
    if decimals > 6:
        return f"{value:.2e} ± {error:.1e}"
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def in_memory(result: xr.Dataset) -> xr.Dataset:
    """The result with everything but its pairs of models loaded: each read from a store would be a request again."""
    loaded = result.copy()
    for variable in loaded.variables.values():
        if "other" not in variable.dims:
            variable.load()
    return loaded


def strings(result: xr.Dataset, name: str) -> np.ndarray:
    """The variable ``name`` as numpy strings of fixed width, which every comparison and sort takes.

    Read back from a store, strings are of variable width, and numpy does not convert those by itself.
    """
    return np.array([str(value) for value in result[name].values], dtype=str)


def printable(text: str, limit: int = 200) -> str:
    """``text`` on one line, control characters replaced and cut at ``limit`` characters: names come from anybody."""
    clean = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def _with_variant(run: str, variant: tuple[str, ...]) -> str:
    dtype, quantization, lens, layer = variant
    parts = [dtype, quantization, lens, f"layer {layer}" if layer != "-1" else ""]
    return f"{run} ({', '.join(part for part in parts if part and part != 'none')})"


def _trajectory(result: xr.Dataset, name: str, positions: np.ndarray) -> Trajectory:
    steps = result["step"].values[positions]
    positions = positions[np.argsort(steps, kind="stable")]
    first = positions[0]
    seed = int(result["seed"].values[first])
    return Trajectory(
        name=name,
        family=str(result["family"].values[first]),
        size=str(result["size"].values[first]),
        seed=None if seed < 0 else seed,
        parameters=int(result["parameters"].values[first]),
        positions=positions,
        steps=result["step"].values[positions],
        included=~result["excluded"].values[positions].astype(bool),
    )


def _row(result: xr.Dataset, run: Trajectory) -> RunRow:
    pairs = consecutive_pairs(result, run)
    kl, error = pairs.kl[pairs.usual], pairs.standard_error[pairs.usual]
    third = max(1, kl.size // 3)
    early = slice(0, third if kl.size > 1 else 0)
    late = slice(kl.size - third, None)
    _, exponents, r_squared = exponent_windows(result, run)
    last_half = slice(exponents.size // 2, None)
    _, weight_exponents, weight_r_squared = weight_windows(result, run)
    weight_half = slice(weight_exponents.size // 2, None)
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
        early_kl=_median(kl[early]),
        early_kl_standard_error=_mean(error[early]),
        late_kl=_median(kl[late]),
        late_kl_standard_error=_mean(error[late]),
        late_pairs=int(kl[late].size),
        exponent=_mean(exponents[last_half]),
        exponent_spread=float(np.std(exponents[last_half], ddof=1)) if exponents[last_half].size > 1 else math.nan,
        r_squared=_mean(r_squared[last_half]),
        windows=int(exponents[last_half].size),
        weight_exponent=_mean(weight_exponents[weight_half]),
        weight_r_squared=_mean(weight_r_squared[weight_half]),
    )


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else math.nan


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if values.size else math.nan


def _or_none(value: Hashable | None) -> str:
    return _NONE if value is None or value == "" else str(value)


def _cells(row: RunRow) -> tuple[str, ...]:
    excluded = f" (+{row.excluded} excluded)" if row.excluded else ""
    return (
        printable(row.run, 48),
        printable(_or_none(row.size), 16),
        _or_none(row.seed),
        f"{row.checkpoints}{excluded}",
        _or_none(row.last_step),
        _or_none(row.spacing),
        with_error(row.early_kl, row.early_kl_standard_error),
        with_error(row.late_kl, row.late_kl_standard_error),
        with_error(row.exponent, row.exponent_spread),
        significant(row.r_squared),
        significant(row.fractal_dimension),
    )


def _weight_cells(row: RunRow) -> tuple[str, ...]:
    return tuple(map(significant, (row.weight_exponent, row.weight_r_squared, row.weight_fractal_dimension)))
