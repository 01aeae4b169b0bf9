"""Placing a number on the scale: among the published settings, and among the pairs of a result."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr

import klray
from klray.analysis.recipe import Recipe
from klray.analysis.scale.choosing_pairs import Choice
from klray.analysis.scale.measuring import format_scale, measure_scale, scale_rows
from klray.errors import KlrayError
from tests.scale_data import scale_snapshot


@pytest.fixture(scope="module")
def snapshot() -> xr.Dataset:
    return scale_snapshot()


@pytest.fixture(scope="module")
def result(snapshot: xr.Dataset) -> xr.Dataset:
    return measure_scale(snapshot, Recipe.fit(snapshot))


def test_a_number_is_placed_among_the_published_settings() -> None:
    placed = klray.place(0.42)
    assert [each.setting for each in placed.neighbours[:3]] == ["8-bit", "fine-tuning", "4-bit"]
    assert placed.nearest.log_ratio == pytest.approx(math.log(0.42 / 0.44))
    assert "8 bits (0.44), or fine-tuning (0.4)" in repr(placed)
    assert klray.place(0.02).nearest == klray.place(0.03).nearest or klray.place(0.02).nearest.setting == "later"
    assert klray.place(0.02).nearest.log_ratio == 0.0  # within the range
    assert "10 times more than going up one layer" in repr(klray.place(30))
    assert "no difference at all" in repr(klray.place(0))


def test_a_number_is_placed_among_the_pairs_of_a_result(result: xr.Dataset) -> None:
    kl = result["kl"].values[result["pair_setting"].values == "4-bit"]
    placed = klray.place(float(np.median(kl)), scale=result)
    assert placed.nearest.setting == "4-bit"
    assert placed.nearest.quantile == 0.5 and placed.nearest.n == 10
    by_name = {each.setting: each for each in placed.neighbours}
    early = result["kl"].values[result["pair_setting"].values == "early"]
    assert by_name["early"].quantile == pytest.approx(np.mean(early < placed.kl))
    assert f"4 bits ({placed.kl:.3g}, above 50% of 10 pairs)" in repr(placed)


def test_what_was_published_for_another_spacing_is_not_compared(snapshot: xr.Dataset) -> None:
    other = measure_scale(snapshot, Recipe.fit(snapshot), Choice(spacing=2000), resamples=20)
    published = {row.setting: row.published_low for row in scale_rows(other)}
    assert math.isnan(published["later"]) and published["8-bit"] == 0.44
    assert "1,000 steps apart, which these are not" in format_scale(other)
    narrow = snapshot.isel(model=np.flatnonzero(snapshot["step"].values % 2000 == 0))
    scaled = measure_scale(narrow, Recipe.fit(narrow), Choice(spacing=2000), resamples=20)
    later = float(scaled["median"].sel(setting="later"))
    assert "training for 2,000 steps late" in repr(klray.place(later, scale=scaled))


@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf])
def test_what_is_no_divergence_cannot_be_placed(wrong: float) -> None:
    with pytest.raises(KlrayError, match=r"cannot be placed: .* 0 or more"):
        klray.place(wrong)


def test_placing_says_what_it_needs() -> None:
    with pytest.raises(KlrayError, match="kl='much' is no number"):
        klray.place("much")  # type: ignore[arg-type]
    with pytest.raises(KlrayError, match="lacks kl, pair_setting, median, n"):
        klray.place(0.4, scale=xr.Dataset())


def test_the_smallest_number_there_is_can_be_placed() -> None:
    assert klray.place(5e-324).nearest.setting == "later"


@pytest.mark.parametrize("scale", ["kl pair_setting median n", 3, {}])
def test_what_is_no_result_is_no_scale(scale: object) -> None:
    with pytest.raises(KlrayError, match="no result of klray scale"):
        klray.place(0.1, scale=scale)  # type: ignore[arg-type]
