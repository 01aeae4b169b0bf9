"""Who came from whom, which models share a map, and the figures that show it, on really trained checkpoints."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from klray.analysis.analyze import analyze
from klray.analysis.facts import own_output
from klray.analysis.relatives import parents, unquantised
from klray.errors import KlrayError
from klray.report.figures import PLATES
from klray.report.figures.kl_heatmap import kl_heatmap_caption, ordered
from klray.report.figures.layer_threads import layer_threads, layer_threads_caption
from klray.report.figures.layers_to_final import layers_to_final
from klray.report.figures.lineage_edges import lineage, lineage_caption
from klray.report.figures.model_map import model_map_caption
from klray.report.figures.quantization_arrows import quantization_arrows, quantization_arrows_caption
from klray.report.figures.training_paths import training_paths, training_paths_caption
from tests.relatives_data import LAYERS, N_TEXTS, snapshot_of_relatives

pytestmark = pytest.mark.slow

NEW = ["training_paths", "quantization_arrows", "lineage", "layer_threads"]


def analysed(data: xr.Dataset, **options: object) -> xr.Dataset:
    return analyze(data, min_step=4, outlier_min_step=8, window=5, **options).compute()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return snapshot_of_relatives()


@pytest.fixture(scope="module")
def result(data: xr.Dataset) -> xr.Dataset:
    return analysed(data)


@pytest.fixture(scope="module")
def plain() -> xr.Dataset:
    return analysed(snapshot_of_relatives(quantized=False, children=False, layers=False))


def arrows(figure: Figure) -> list[set[tuple[tuple[float, ...], tuple[float, ...]]]]:
    """Start and end of the arrows of each panel."""
    return [
        {
            (tuple(each.xyann), tuple(each.xy))
            for each in axes.texts
            if isinstance(each, Annotation) and each.arrow_patch
        }
        for axes in figure.axes
    ]


def test_relatives_are_those_that_repository_commit_and_base_model_name(data: xr.Dataset) -> None:
    labels = data["model"].values
    selves, of = unquantised(data), parents(data)
    quantised = data["quantization"].values != "none"
    assert quantised.sum() == 16
    for at in range(len(labels)):
        assert (selves[at] >= 0) == quantised[at]
        if quantised[at]:
            assert labels[selves[at]] == labels[at].split("+")[0]
        base = data["base_model"].values[at]
        assert (of[at] >= 0) == (base != "")
        if base:
            assert labels[of[at]] == (f"{base}@main" if "child" in base else f"{base}@step40")


def test_two_models_that_name_each_other_or_nobody_are_no_endless_lineage(data: xr.Dataset) -> None:
    bases = data["base_model"].values.astype("<U60")
    child = int(np.flatnonzero(data["repository"].values == "klray/tiny-child-a")[0])
    bases[child] = "klray/tiny-grandchild-a"
    looped = analysed(data.assign_coords(base_model=("model", bases)), tsne=False)
    FigureCanvasAgg(lineage(looped)).draw()
    bases[:] = "klray/nobody"
    assert (parents(data.assign_coords(base_model=("model", bases))) == -1).all()


def test_layers_do_not_move_the_map_of_the_models(data: xr.Dataset, result: xr.Dataset) -> None:
    own = np.flatnonzero(own_output(data))
    without = analysed(data.isel(model=own))
    for name in ("map_pca", "map_tsne", "map_lineage_pca", "map_lineage_tsne"):
        np.testing.assert_array_equal(result[name].values[own], without[name].values)
        assert np.isnan(result[name].values[~own_output(data)]).all()
    assert "map_layers_pca" not in without
    assert np.isnan(result["map_layers_pca"].values[own]).all()


@pytest.mark.parametrize("lens", ["logit", "tuned-0123abcd"])
def test_every_lens_has_a_map_of_its_own_layers(data: xr.Dataset, result: xr.Dataset, lens: str) -> None:
    check_map(data, result, np.flatnonzero(data["lens"].values == lens), "map_layers_pca")
    shares = json.loads(result["map_layers_pca"].attrs["explained_variance_ratio"])
    assert set(shares) == {"logit", "tuned-0123abcd"}


def test_fine_tuned_models_and_their_parents_have_a_map_of_their_own(data: xr.Dataset, result: xr.Dataset) -> None:
    of = parents(data)
    members = np.unique([*np.flatnonzero(of >= 0), *of[of >= 0]])
    assert len(members) == 9 + 2
    check_map(data, result, members, "map_lineage_pca")
    assert result["map_lineage_tsne"].attrs["perplexity"] == pytest.approx(10 / 3)


def check_map(data: xr.Dataset, result: xr.Dataset, members: np.ndarray, name: str) -> None:
    """The map has these models' principal components, by singular value decomposition of theirs alone."""
    recipe = json.loads(result.attrs["recipe"])
    kept = result["text_kept"].values
    values = np.maximum(data["log_likelihood"].values[members].astype(float), recipe["clip_threshold"])[:, kept]
    values -= values.mean(axis=1, keepdims=True)
    values -= values.mean(axis=0)
    left, singular, _ = np.linalg.svd(values / np.sqrt(2 * kept.sum() * recipe["mean_bytes"] * np.log(2)))
    expected = (left[:, : len(singular)] * singular)[:, :2]
    np.testing.assert_allclose(np.abs(result[name].values[members]), np.abs(expected), rtol=1e-5, atol=1e-8)


def test_paths_have_every_checkpoint_of_the_runs_once_and_open_marks_before_the_end_of_warm_up(
    result: xr.Dataset,
) -> None:
    figure = training_paths(result)
    pca, tsne, _ = figure.axes
    trained = np.flatnonzero((result["run"].values != "") & own_output(result) & (unquantised(result) < 0))
    for axes, name in ((pca, "map_pca"), (tsne, "map_tsne")):
        offsets = np.concatenate([np.asarray(each.get_offsets()) for each in axes.collections])
        np.testing.assert_array_equal(np.sort(offsets, axis=0), np.sort(result[name].values[trained], axis=0))
    open_marks = [each for each in pca.collections if len(each.get_offsets()) and (each.get_facecolors() == 1).all()]
    assert sum(len(each.get_offsets()) for each in open_marks) == 2 * 4  # steps 0, 1, 2, 4 of two runs
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "tiny-46k-seed1",
        "tiny-46k-seed2",
        "before step 8",
        "after",
    }
    assert "before step 8, " in training_paths_caption(result)
    assert "t-SNE (perplexity" in training_paths_caption(result)


def test_later_steps_are_lighter(result: xr.Dataset) -> None:
    filled = training_paths(result).axes[0].collections[1]
    lightness = filled.get_facecolors()[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()


def test_arrows_lead_from_models_to_their_quantised_selves(result: xr.Dataset) -> None:
    of = unquantised(result)
    quantised = np.flatnonzero(of >= 0)
    panels = arrows(quantization_arrows(result))
    for panel, name in zip(panels, ("map_pca", "map_tsne"), strict=True):
        points = result[name].values
        assert panel == {(tuple(points[of[at]]), tuple(points[at])) for at in quantised}
    medians = [
        np.median([result["kl"].values[at, of[at]] for at in quantised if result["quantization"].values[at] == name])
        for name in ("int8", "nf4")
    ]
    assert f"int8 {medians[0]:.3g} (8 models), nf4 {medians[1]:.3g} (8 models)" in quantization_arrows_caption(result)


def test_edges_lead_from_parents_to_children(result: xr.Dataset) -> None:
    of = parents(result)
    children = np.flatnonzero(of >= 0)
    for panel, name in zip(arrows(lineage(result)), ("map_lineage_pca", "map_lineage_tsne"), strict=True):
        points = result[name].values
        assert panel == {(tuple(points[of[at]]), tuple(points[at])) for at in children}
    median = np.median(result["kl"].values[of[children], children])
    assert "9 fine-tuned children" in lineage_caption(result)
    assert f"parent to child: {median:.3g} bits/byte" in lineage_caption(result)


def test_a_model_has_one_colour_in_both_figures_of_layers() -> None:
    """Names of children begin with their parent's, and "@" sorts behind "-"."""
    named = ("org/a", "step9"), ("org/a-b", "main")
    coords: dict[str, list[object]] = {name: [] for name in ("repository", "revision", "key", "lens", "layer", "step")}
    for repository, revision in reversed(named):
        for layer in range(2):
            row = (repository, revision, repository, "logit", layer, 9 if revision == "step9" else -1)
            for name, value in zip(coords, row, strict=True):
                coords[name].append(value)
    dataset = xr.Dataset(
        {"map_layers_pca": (("model", "component"), np.arange(8.0).reshape(4, 2)), "kl_final": ("model", [1.0, 0] * 2)},
        coords={name: ("model", np.array(values)) for name, values in coords.items()},
    )
    labels = [
        [text.get_text() for text in draw(dataset).legends[0].get_texts()][:2]
        for draw in (layer_threads, layers_to_final)
    ]
    assert labels[0] == labels[1] == ["a@step9", "a-b@main"]


def test_heat_map_keeps_single_models_quantised_ones_and_layers_apart(result: xr.Dataset) -> None:
    once = np.flatnonzero((unquantised(result) < 0) | (result["step"].values == result["step"].values.max()))
    result = result.isel(model=once, other=once)  # several quantised checkpoints of a run are a run of their own
    order, blocks = ordered(result)
    own, quantised = own_output(result)[order], unquantised(result)[order] >= 0
    runs = sum(size for name, size in blocks if name not in ("single models", "quantised", "layers"))
    kinds = [name for name, size in blocks for _ in range(size)][runs:]
    assert kinds == [
        "single models" if o and not q else "quantised" if o else "layers"
        for o, q in zip(own[runs:], quantised[runs:], strict=True)
    ]
    assert {"single models", "quantised", "layers"} == set(kinds)
    layers = order[np.array([False] * runs + [kind == "layers" for kind in kinds])]
    assert result["layer"].values[layers].tolist() == list(range(LAYERS + 1)) * (len(layers) // (LAYERS + 1))
    assert sorted(order.tolist()) == list(range(result.sizes["model"]))
    assert "Layers under a lens come last" in kl_heatmap_caption(result)


def test_threads_go_through_the_layers_in_order(result: xr.Dataset) -> None:
    figure = layer_threads(result)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        *["logit lens"] * 2,
        *["tuned lens 0123abcd"] * 2,
    ]
    for axes, lens in ((figure.axes[0], "logit"), (figure.axes[2], "tuned-0123abcd")):
        drawn = [np.asarray(each.get_offsets()) for each in axes.collections]
        for path, repository in zip(drawn, ("klray/tiny-46k-seed1", "klray/tiny-46k-seed2"), strict=True):
            chosen = (result["lens"].values == lens) & (result["repository"].values == repository)
            assert result["layer"].values[chosen].tolist() == list(range(LAYERS + 1))
            np.testing.assert_array_equal(path, result["map_layers_pca"].values[chosen])
    assert "models are drawn" not in layer_threads_caption(result)
    assert "Layers under a lens" in model_map_caption(result)
    assert "no coordinates" not in model_map_caption(result)


@pytest.mark.parametrize("plate", [plate for plate in PLATES if plate.name in NEW], ids=lambda plate: plate.name)
def test_nothing_is_cut_off_and_no_legend_hides_data(plate: object, result: xr.Dataset) -> None:
    figure = plate.draw(result)  # type: ignore[attr-defined]
    figure.canvas.draw()
    page = figure.bbox.padded(0.5)
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        for legend in figure.legends:
            assert not legend.get_window_extent().overlaps(box)


def test_without_relatives_their_plates_do_not_apply(plain: xr.Dataset, result: xr.Dataset) -> None:
    assert [plate.name for plate in PLATES if plate.name in NEW and plate.applies(plain)] == ["training_paths"]
    assert [plate.name for plate in PLATES if plate.name in NEW and plate.applies(result)] == NEW
    for draw, words in (
        (quantization_arrows, "no quantised model of this result is on the map together with its unquantised self"),
        (lineage, "no model of this result is on the map together with the one that its base_model names"),
        (layer_threads, "no model of this result has two layers with coordinates"),
        (training_paths, "no run of this result has two checkpoints with coordinates"),
    ):
        with pytest.raises(KlrayError, match=words):
            draw(plain.assign(map_pca=plain["map_pca"] * np.nan))


def test_without_tsne_there_is_one_panel(data: xr.Dataset) -> None:
    without = analysed(data, tsne=False)
    assert not [name for name in without if str(name).endswith("tsne")]
    assert [len(draw(without).axes) for draw in (quantization_arrows, lineage, layer_threads)] == [1, 1, 2]
    assert data.sizes["text"] == N_TEXTS
