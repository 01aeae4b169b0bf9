"""What the figures draw is what the result holds."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from klray.analysis.runs import trajectories
from klray.analysis.runs_table import consecutive_pairs
from klray.errors import KlrayError
from klray.report.figures import PLATES
from klray.report.figures.consecutive_kl import consecutive_kl, consecutive_kl_caption
from klray.report.figures.diffusion_exponents import diffusion_exponents
from klray.report.figures.kl_heatmap import MAX_MODELS, kl_heatmap, kl_heatmap_caption
from klray.report.figures.model_map import model_map, model_map_caption
from klray.report.figures.style import run_labels, run_styles, save, smaller
from tests.synthetic import trajectory_result

pytestmark = pytest.mark.slow

RESULT = trajectory_result()  # nobody may change it


@pytest.fixture(scope="module")
def result() -> xr.Dataset:
    return RESULT


def _line(axes: Axes, label: str) -> Line2D:
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return line


def _data(line: Line2D) -> np.ndarray:
    return np.column_stack([np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)])


def _legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_consecutive_lines_hold_the_kl_of_every_run(result: xr.Dataset) -> None:
    figure = consecutive_kl(result)
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_ylabel() == "KL to previous checkpoint (bits/byte)"
    runs = trajectories(result)
    assert len(runs) == 4
    for run, label in zip(runs, run_labels(runs), strict=True):
        members = result.isel(model=run.models[1:])
        spaced = (members.step - members.previous_step).values == 20
        usual = spaced & np.isfinite(members.consecutive_kl.values)
        drawn = _data(_line(axes, label))
        np.testing.assert_array_equal(drawn[:, 0], members.step)
        np.testing.assert_array_equal(drawn[:, 1], np.where(usual, members.consecutive_kl, np.nan))
    marks = np.concatenate([_data(line) for line in axes.lines if line.get_linestyle() == "None"])
    finite = np.isfinite(result.consecutive_kl.values)
    assert set(map(tuple, marks[np.isfinite(marks).all(1)])) == set(
        zip(result.step.values[finite].astype(float), result.consecutive_kl.values[finite], strict=True)
    )
    assert "open: other spacing" in _legend_texts(figure)


def test_consecutive_band_is_one_standard_error_on_both_sides(result: xr.Dataset) -> None:
    one = result.isel(model=slice(0, 36), other=slice(0, 36))
    (axes,) = consecutive_kl(one).axes
    corners = {tuple(corner) for band in axes.collections for path in band.get_paths() for corner in path.vertices}
    pairs = consecutive_pairs(one, *trajectories(one))
    for sign in (-1, 1):
        edge = pairs.kl + sign * pairs.standard_error
        assert set(zip(pairs.step.astype(float), edge, strict=True)) <= corners


def test_nothing_joins_pairs_of_different_spacing() -> None:
    # Usual spacing 20: the pairs that end at 20, 40, 60, 100 and 120; then 10 (ending at 70 and 80), 5 and 2.
    steps = (0, 20, 40, 60, 70, 80, 100, 120, 125, 127)
    one = trajectory_result(sizes=("1m",), seeds=(0,), steps=steps, singles=0, n_texts=30, excluded=False)
    (axes,) = consecutive_kl(one).axes
    lines = [_data(line) for line in axes.lines if line.get_linestyle() != "None"]
    joined = {
        (int(a[0]), int(b[0])) for line in lines for a, b in itertools.pairwise(line) if np.isfinite([a, b]).all()
    }
    assert joined == {(20, 40), (40, 60), (70, 80), (100, 120)}
    extents = sorted({int(x) for path in band.get_paths() for x in path.vertices[:, 0]} for band in axes.collections)
    assert sorted(map(sorted, extents)) == [[20, 40, 60], [70, 80], [100, 120], [125], [127]]
    assert "only pairs of the same distance" in consecutive_kl_caption(one)


def test_the_legend_says_how_far_apart_the_checkpoints_of_runs_of_unequal_spacing_are(result: xr.Dataset) -> None:
    assert not any("every" in text for text in _legend_texts(consecutive_kl(result)))
    first = trajectories(result)[0].name
    factor = xr.where(result["run"] == first, 2, 1)
    other = result.assign_coords(step=result["step"] * factor).assign(previous_step=result["previous_step"] * factor)
    texts = _legend_texts(consecutive_kl(other))
    assert sum(text.endswith(", every 40") for text in texts) == 1
    assert sum(text.endswith(", every 20") for text in texts) == 3
    assert "different spacing are not comparable" in consecutive_kl_caption(other)


def test_published_ranges_are_drawn_only_at_the_published_spacing(result: xr.Dataset) -> None:
    thousand = result.assign_coords(step=result.step * 50).assign(previous_step=result.previous_step * 50)
    figure = consecutive_kl(thousand)
    figure.canvas.draw()
    notes = {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}
    assert set(notes) == {"published,\nearly", "published,\nlater"}
    assert all(figure.axes[0].bbox.x1 < box.x0 and box.x1 <= figure.bbox.x1 for box in notes.values())
    assert "Grey: the published ranges" in consecutive_kl_caption(thousand)
    assert not consecutive_kl(result).axes[0].texts
    assert "the spacing here is another" in consecutive_kl_caption(result)


def test_identical_checkpoints_are_mentioned_where_a_log_axis_cannot_show_them(result: xr.Dataset) -> None:
    zero = result.consecutive_kl.where(result.step != 1, 0.0)
    assert "4 pairs with a KL of 0" in consecutive_kl_caption(result.assign(consecutive_kl=zero))
    assert "KL of 0" not in consecutive_kl_caption(result)


def test_map_draws_every_model_with_coordinates_once(result: xr.Dataset) -> None:
    figure = model_map(result)
    assert [axes.get_xlabel().split(",")[0] for axes in figure.axes] == ["PC 1", "t-SNE 1"]
    for axes, name in zip(figure.axes, ("map_pca", "map_tsne"), strict=True):
        scattered = [c for c in axes.collections if not str(c.get_label()).startswith("_")]
        offsets = np.concatenate([np.asarray(collection.get_offsets()) for collection in scattered])
        expected = result[name].values[~result.excluded.values]
        np.testing.assert_array_equal(np.sort(offsets, axis=0), np.sort(expected, axis=0))
        assert len(scattered) == 4 + 2
    assert "2 of 147 models have no coordinates" in model_map_caption(result)
    assert _legend_texts(figure)[4:] == ["model-0", "model-1", "first checkpoint", "last checkpoint"]


def test_map_marks_the_ends_of_each_run(result: xr.Dataset) -> None:
    axes = model_map(result).axes[0]
    ends = {tuple(_data(line)[0]): line for line in axes.lines}
    for run, style in zip(trajectories(result), run_styles(trajectories(result)), strict=True):
        first, last = (tuple(result.map_pca.values[run.models[place]]) for place in (0, -1))
        assert same_color(ends[first].get_markerfacecolor(), "white")
        assert same_color(ends[first].get_markeredgecolor(), style.color)
        assert same_color(ends[last].get_markerfacecolor(), style.color)


def test_variance_shares_sum_to_one_when_two_dimensions_hold_everything() -> None:
    three = trajectory_result(sizes=("1m",), seeds=(0,), steps=(0, 20, 40), singles=0, excluded=False)
    axes = model_map(three).axes[0]
    shares = [int(label.split(", ")[1].split("%")[0]) for label in (axes.get_xlabel(), axes.get_ylabel())]
    assert sum(shares) in (99, 100, 101)
    variances = three.map_pca.values.var(axis=0)
    assert shares[0] == round(100 * variances[0] / variances.sum())
    assert axes.get_aspect() == 1


def test_map_without_tsne_is_one_panel_and_one_component_is_enough(result: xr.Dataset) -> None:
    assert len(model_map(result.drop_vars("map_tsne")).axes) == 1
    assert len(model_map(result.assign(map_tsne=result.map_tsne * np.nan)).axes) == 1
    narrow = result.drop_vars("map_tsne").isel(component=slice(1))
    assert len(model_map(narrow).axes[0].lines) == 8


def test_map_of_single_models_colours_families() -> None:
    singles = trajectory_result(sizes=(), singles=12, n_texts=30)
    families = np.array(["llama", "qwen", ""])[np.arange(12) % 3]
    figure = model_map(singles.assign_coords(family=("model", families)))
    assert sorted(_legend_texts(figure)) == ["llama", "other models", "qwen"]


def test_heat_map_holds_the_kl_ordered_by_run_and_step(result: xr.Dataset) -> None:
    shuffled = np.random.default_rng(1).permutation(result.sizes["model"])
    axes, bar = kl_heatmap(result.isel(model=shuffled, other=shuffled)).axes
    drawn = axes.images[0].get_array()
    kl = result.kl.values
    np.testing.assert_array_equal(np.ma.getmaskarray(np.ma.masked_invalid(drawn)), np.isnan(kl))
    low = axes.images[0].norm.vmin
    np.testing.assert_allclose(np.ma.filled(drawn, np.nan), np.where(np.isnan(kl), np.nan, np.maximum(kl, low)))
    assert axes.images[0].norm.vmax == np.nanmax(kl)
    separators = sorted(line.get_ydata()[0] for line in axes.lines if line.get_xdata()[0] == 0)
    assert separators == [36, 72, 108, 144]
    assert [text.get_text() for text in axes.get_yticklabels()] == run_labels(trajectories(result))
    assert bar.get_ylabel() == "KL divergence (bits/byte)"


def test_heat_map_caption_states_where_the_colours_start(result: xr.Dataset) -> None:
    low = kl_heatmap(result).axes[0].images[0].norm.vmin
    apart = result.kl.values[~np.eye(result.sizes["model"], dtype=bool)]
    caption = kl_heatmap_caption(result)
    assert f"The scale starts at {low:.2g} bits/byte" in caption
    assert f"and {(apart < low).sum()} of the other pairs)" in caption
    two = trajectory_result(sizes=("1m",), seeds=(0,), steps=(0, 20), singles=0, excluded=False)
    assert "(the diagonal) has one colour" in kl_heatmap_caption(two)


def test_map_caption_says_what_equal_seeds_share_in_the_embedded_family(result: xr.Dataset) -> None:
    note = "models of equal seed and different size can be nearer"
    assert note in model_map_caption(result)
    assert note not in model_map_caption(result.assign_coords(family=result.family.where(result.step < 0, "pythia")))


def test_heat_map_of_too_many_models_is_thinned_and_says_so(result: xr.Dataset) -> None:
    again = np.resize(np.arange(144), MAX_MODELS + 100)
    many = result.isel(model=again, other=again)
    image = kl_heatmap(many).axes[0].images[0]
    assert image.get_array().shape == (MAX_MODELS, MAX_MODELS)
    assert "Of 1,600 models, 1,500 are shown" in kl_heatmap_caption(many)
    assert "are shown" not in kl_heatmap_caption(result)


def test_exponent_lines_hold_exponents_and_r_squared(result: xr.Dataset) -> None:
    figure = diffusion_exponents(result)
    upper, lower = figure.axes
    runs = trajectories(result)
    for run, label in zip(runs, run_labels(runs), strict=True):
        members = result.isel(model=run.models)
        starts = np.isfinite(members.exponent_kl.values)
        for axes, name in ((upper, "exponent_kl"), (lower, "exponent_kl_r_squared")):
            expected = np.column_stack([members.step.values[starts], members[name].values[starts]])
            np.testing.assert_array_equal(_data(_line(axes, label)), expected)
    assert set(_line(upper, "ordinary diffusion, c = 1").get_ydata()) == {1.0}


def test_a_run_keeps_its_colour_in_every_figure(result: xr.Dataset) -> None:
    first = trajectories(result)[0]
    without = result.copy(deep=True)
    without.exponent_kl[first.models] = np.nan
    labels = run_labels(trajectories(result))
    colors = [_line(consecutive_kl(result).axes[0], label).get_color() for label in labels]
    upper = diffusion_exponents(without).axes[0]
    assert labels[0] not in [line.get_label() for line in upper.lines]
    assert [_line(upper, label).get_color() for label in labels[1:]] == colors[1:]
    assert len(set(colors)) == 4


def test_many_runs_share_the_colour_of_their_size() -> None:
    many = trajectory_result(sizes=("1m", "2m", "3m"), seeds=range(6), steps=(0, 20, 40), singles=0, n_texts=20)
    styles = run_styles(trajectories(many))
    assert [style.color for style in styles] == [styles[i - i % 6].color for i in range(18)]
    assert len({style.color for style in styles}) == 3
    assert _legend_texts(consecutive_kl(many))[:3] == [f"tiny {size} (6 runs)" for size in ("1m", "2m", "3m")]
    assert [text.get_text() for text in kl_heatmap(many).axes[0].get_yticklabels()] == ["tiny 1m", "tiny 2m", "tiny 3m"]


def test_two_checkpoints_are_enough_for_all_but_exponents() -> None:
    two = trajectory_result(sizes=("1m",), seeds=(0,), steps=(0, 20), singles=0, excluded=False)
    (axes,) = consecutive_kl(two).axes
    assert _data(_line(axes, "tiny-1m-seed0")).tolist() == [[20.0, float(two.kl[0, 1])]]
    image = kl_heatmap(two).axes[0].images[0]
    assert image.norm.vmin < float(two.kl[0, 1]) < image.norm.vmax
    assert len(model_map(two).axes[0].lines) == 2
    with pytest.raises(KlrayError, match=r"10 further checkpoints .* step 20"):
        diffusion_exponents(two)


def test_a_result_without_steps_says_why_there_is_no_figure() -> None:
    singles = trajectory_result(sizes=(), singles=5, n_texts=30)
    with pytest.raises(KlrayError, match="two consecutive checkpoints"):
        consecutive_kl(singles)
    with pytest.raises(KlrayError, match=r"no checkpoint .*analysis\.window="):
        diffusion_exponents(singles.drop_vars(["exponent_kl", "exponent_kl_r_squared"]))
    with pytest.raises(KlrayError, match="no model of this result has coordinates"):
        model_map(singles.assign(map_pca=singles.map_pca * np.nan))
    with pytest.raises(KlrayError, match=r"no pair of models .* KL above 0"):
        kl_heatmap(singles.assign(kl=singles.kl * 0))


def test_an_excluded_run_is_left_out_of_every_line_figure(result: xr.Dataset) -> None:
    gone = trajectories(result)[1]
    positions = gone.models
    without = result.copy(deep=True)
    for name in ("consecutive_kl", "exponent_kl", "map_pca", "map_tsne"):
        without[name][positions] = np.nan
    without.excluded[positions] = True
    for draw in (consecutive_kl, diffusion_exponents, model_map):
        texts = _legend_texts(draw(without))
        assert "tiny-0.36m-seed1" not in texts
        assert "tiny-0.36m-seed0" in texts


def test_names_are_drawn_literally_and_without_folders(result: xr.Dataset) -> None:
    names = {
        "tiny/tiny-0.36m-seed0": r"$\frac{$",
        "tiny/tiny-0.36m-seed1": "_hidden\n",
        "tiny/tiny-1.3m-seed0": "/home/ann/x/run",
    }
    hostile = result.assign_coords(run=("model", [names.get(run, run) for run in result.run.values]))
    for plate in PLATES:
        if plate.applies(hostile):
            FigureCanvasAgg(plate.draw(hostile)).draw()
    labels = run_labels(trajectories(hostile))
    assert len(set(_legend_texts(consecutive_kl(hostile))) & set(labels)) == 4
    assert not any("/home" in label for label in labels)
    same = hostile.assign_coords(
        run=("model", [f"/home/ann/{run[-1]}/x/run" if run else "" for run in result.run.values])
    )
    labels = run_labels(trajectories(same))
    assert len(set(labels)) == len(labels)
    assert not any("ann" in label for label in labels)


# The others are drawn of a result with relatives, in test_relatives.py.
@pytest.mark.parametrize("plate", [plate for plate in PLATES if plate.applies(RESULT)], ids=lambda plate: plate.name)
def test_nothing_is_cut_off_and_no_legend_hides_data(plate: object, result: xr.Dataset) -> None:
    figure = plate.draw(result)  # type: ignore[attr-defined]
    figure.canvas.draw()
    page = figure.bbox.padded(0.5)
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        for legend in figure.legends:
            assert not legend.get_window_extent().overlaps(box)


def test_files_are_reproducible_and_embed_fonts(result: xr.Dataset, tmp_path: Path) -> None:
    first = save(diffusion_exponents(result), tmp_path / "a", "exponents")
    second = save(diffusion_exponents(result), tmp_path / "b", "exponents")
    assert first == second == (tmp_path / "a" / "exponents.png").read_bytes()
    pdf = (tmp_path / "a" / "exponents.pdf").read_bytes()
    assert pdf == (tmp_path / "b" / "exponents.pdf").read_bytes()
    assert b"/FontFile2" in pdf  # TrueType: many proceedings refuse Type 3
    assert b"/Type3" not in pdf


def test_pyplot_is_never_touched() -> None:
    code = "import klray.report.figures, sys; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_large_picture_is_made_smaller_for_the_page() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8))
    body = io.BytesIO()
    noise.save(body, format="png")
    assert smaller(body.getvalue(), 10**6) == body.getvalue()
    small = smaller(body.getvalue(), 100_000)
    assert len(small) <= 100_000
    with Image.open(io.BytesIO(small)) as picture:
        assert picture.size == (300, 200)
