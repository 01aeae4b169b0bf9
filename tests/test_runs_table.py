"""The headline numbers of each run, against hand-made series."""

from __future__ import annotations

import math

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from klray.analysis.runs import single_models, trajectories
from klray.analysis.runs_table import consecutive_pairs, format_table, run_table
from klray.words.numbers import significant, with_error
from klray.words.outside import printable
from tests.synthetic import trajectory_result

STEPS = (0, 1, 2, 10, 20, 30, 40, 50, 60, 70, 75)


def _series(
    kl: np.ndarray, error: np.ndarray, exponent: np.ndarray | None = None, r_squared: np.ndarray | None = None
) -> xr.Dataset:
    """One run over STEPS with these consecutive KL values (NaN for the first)."""
    result = trajectory_result(sizes=("1m",), seeds=(0,), steps=STEPS, singles=0, n_texts=20, excluded=False)
    nothing = np.full(len(STEPS), np.nan)
    return result.assign(
        consecutive_kl=("model", kl),
        consecutive_kl_standard_error=("model", error),
        exponent_kl=("model", nothing if exponent is None else exponent),
        exponent_kl_r_squared=("model", nothing if r_squared is None else r_squared),
    )


def test_early_and_late_are_medians_of_the_outer_thirds_of_equally_spaced_pairs() -> None:
    # Spacing 10 is the usual one: pairs that end at 20, 30, 40, 50, 60, 70. The wild values belong to other spacings.
    kl = np.array([np.nan, 99, 99, 99, 0.5, 0.3, 0.2, 0.2, 0.04, 0.06, 99])
    error = np.array([np.nan, 9, 9, 9, 0.05, 0.03, 0.02, 0.02, 0.004, 0.002, 9])
    (row,) = run_table(_series(kl, error))
    assert row.spacing == 10
    assert row.late_pairs == 2
    assert row.early_kl == pytest.approx(0.4)
    assert row.late_kl == pytest.approx(0.05)
    # Pairs share their texts: the error is the mean of the pairs' errors and must not shrink with their number.
    assert row.early_kl_standard_error == pytest.approx(0.04)
    assert row.late_kl_standard_error == pytest.approx(0.003)
    assert (row.checkpoints, row.last_step, row.size, row.seed) == (11, 75, "1m", 0)


def test_pairs_without_a_kl_do_not_enter() -> None:
    kl = np.array([np.nan, 99, 99, 99, 0.5, np.nan, np.nan, np.nan, np.nan, 0.06, 99])
    (row,) = run_table(_series(kl, kl / 10))
    assert (row.early_kl, row.late_kl, row.late_pairs) == (pytest.approx(0.5), pytest.approx(0.06), 1)


def test_of_equally_common_spacings_the_widest_counts_and_one_pair_is_late_only() -> None:
    result = trajectory_result(sizes=("1m",), seeds=(0,), steps=(0, 1, 3, 7), singles=0, n_texts=20, excluded=False)
    (row,) = run_table(result)
    assert row.spacing == 4
    assert math.isnan(row.early_kl)
    assert row.late_kl == pytest.approx(float(result.consecutive_kl[-1]))


def test_exponent_is_the_mean_over_the_last_half_of_the_windows() -> None:
    exponent = np.array([np.nan, 1.9, 1.5, 1.0, 0.6, 0.5, 0.4, np.nan, np.nan, np.nan, np.nan])
    r_squared = np.array([np.nan, 0.1, 0.1, 0.1, 0.90, 0.95, 1.0, np.nan, np.nan, np.nan, np.nan])
    (row,) = run_table(_series(np.full(11, 0.1), np.full(11, 0.01), exponent, r_squared))
    assert row.windows == 3
    assert row.exponent == pytest.approx(0.5)
    assert row.exponent_spread == pytest.approx(0.1)
    assert row.r_squared == pytest.approx(0.95)
    assert row.fractal_dimension == pytest.approx(4.0)


def test_a_run_without_exponents_has_no_number_instead_of_a_wrong_one() -> None:
    result = _series(np.full(11, 0.1), np.full(11, 0.01))
    for case in (result, result.drop_vars(["exponent_kl", "exponent_kl_r_squared"])):
        (row,) = run_table(case)
        assert row.windows == 0
        assert all(math.isnan(value) for value in (row.exponent, row.exponent_spread, row.fractal_dimension))
    negative = np.where(np.arange(11) == 3, -0.2, np.nan)
    (row,) = run_table(_series(np.full(11, 0.1), np.full(11, 0.01), negative, np.abs(negative)))
    assert row.exponent == pytest.approx(-0.2)
    assert math.isnan(row.fractal_dimension)


def test_excluded_checkpoints_are_counted_apart() -> None:
    rows = run_table(trajectory_result(n_texts=30))
    assert [(row.checkpoints, row.excluded) for row in rows] == [(36, 0), (36, 0), (36, 0), (35, 1)]


def test_runs_are_ordered_by_parameters_not_by_the_letters_of_their_size() -> None:
    result = trajectory_result(sizes=("1000m", "70m", "9m"), seeds=(1, 0), steps=(0, 1, 2), n_texts=20)
    assert [(run.size, run.seed) for run in trajectories(result)] == [
        (size, seed) for size in ("9m", "70m", "1000m") for seed in (0, 1)
    ]


def test_checkpoints_are_ordered_by_step_whatever_their_place_in_the_snapshot() -> None:
    result = trajectory_result(sizes=("1m",), seeds=(0,), singles=1, n_texts=20, excluded=False)
    shuffled = np.random.default_rng(0).permutation(result.sizes["model"])
    mixed = result.isel(model=shuffled, other=shuffled)
    (run,) = trajectories(mixed)
    assert np.all(np.diff(run.steps) > 0)
    np.testing.assert_array_equal(mixed.step.values[run.models], run.steps)
    np.testing.assert_array_equal(consecutive_pairs(mixed, run).kl, consecutive_pairs(result, *trajectories(result)).kl)
    assert mixed.revision.values[single_models(mixed, [run])].tolist() == ["main"]


def test_variants_of_one_run_are_trajectories_of_their_own() -> None:
    result = trajectory_result(sizes=("1m",), seeds=(0, 1), steps=(0, 1, 2), singles=0, n_texts=20)
    both = result.assign_coords(
        run=("model", np.repeat("tiny/one", 6)), quantization=("model", np.repeat(["none", "int8"], 3))
    )
    assert [run.name for run in trajectories(both)] == ["tiny/one (float32)", "tiny/one (float32, int8)"]


def test_table_has_a_line_for_each_run_and_lets_no_control_character_through() -> None:
    result = trajectory_result(n_texts=30)
    hostile = result.assign_coords(run=("model", [f"{run}\x1b[2J\n" if run else "" for run in result.run.values]))
    rows = run_table(hostile)
    lines = format_table(rows).split("\n")
    assert lines[0].split()[:3] == ["run", "size", "seed"]
    headings = [name.strip() for name in lines[0].split("  ") if "±" in name]
    assert headings == ["early KL (± SE)", "late KL (± SE)", "c_q (± sd over windows)"]
    assert len(lines) == 2 + len(rows) + 2
    assert len({len(line) for line in lines[:6]}) == 1
    assert "\x1b" not in format_table(rows)
    assert with_error(rows[3].late_kl, rows[3].late_kl_standard_error) in lines[5]
    assert "no trajectory" in format_table([])


def test_stored_results_are_read_once_and_their_pairs_stay_where_they_are() -> None:
    reads: list[str] = []

    def watched(name: str, values: np.ndarray) -> da.Array:
        def read(block: np.ndarray) -> np.ndarray:
            reads.append(name)
            return block

        return da.from_array(values, chunks=-1).map_blocks(read, dtype=values.dtype, meta=np.empty(0, values.dtype))

    result = trajectory_result(n_texts=20)
    names = [name for name in (*result.data_vars, "step", "seed", "run") if name != "model"]
    lazy = result.assign({name: (result[name].dims, watched(str(name), result[name].values)) for name in names})
    assert run_table(lazy) == run_table(result)
    assert sorted(reads) == sorted(set(map(str, names)) - {"kl", "kl_standard_error"})
    assert lazy.consecutive_kl.chunks is not None  # the caller's own dataset is as lazy as before


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.02341, 0.00083, "0.02341 ± 0.00083"),
        (0.4, 0.0351, "0.400 ± 0.035"),
        (12.345, 1.5, "12.3 ± 1.5"),
        (250.0, 31.0, "250 ± 31"),
        (1.5e-8, 2e-9, "1.50e-08 ± 2.0e-09"),
        (0.4, math.nan, "0.400"),
        (0.4, 0.0, "0.400"),
        (math.nan, 0.1, "–"),
    ],
)
def test_value_with_error_shows_two_digits_of_the_error(value: float, error: float, text: str) -> None:
    assert with_error(value, error) == text


def test_significant_digits_and_printable_text() -> None:
    assert [significant(value) for value in (0.0123456, 123.4, 98765.4, math.nan)] == ["0.0123", "123", "98,765", "–"]
    assert printable("a\nb\u202ec") == "a\ufffdb\ufffdc"
    assert printable("x" * 300, 10) == "x" * 9 + "…"
