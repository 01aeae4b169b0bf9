"""The model map: every model as a point, every run as a path, by PCA and by t-SNE."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from klray.analysis.facts import NO_QUANTIZATION, own_output, strings
from klray.analysis.runs import single_models, trajectories
from klray.errors import KlrayError
from klray.report.figures import style
from klray.report.figures.panels import draw_panels, has_points, marks, on_map
from klray.report.figures.plate import Plate

SINGLE_MARKERS = ("D", "*", "P", "X", "<", ">", "p", "h")  # up to so many single models are named in the legend
_SEED_ORDERS_DATA = frozenset({"tiny", "tiny_smallest"})  # families whose seed also decides the order of the data
_FAMILY_COLORS = (*style.PALETTE[0:6:2], *style.PALETTE[1:6:2])
_FAINTEST = 0.25  # tint of a run's first checkpoint: light, and still seen on white


def model_map(result: xr.Dataset) -> Figure:
    """Two panels: principal components of the map coordinates in sqrt(bits/byte), and t-SNE.

    In the PCA panel both axes have one scale, and squared distance in the full space is KL (arXiv 2505.15353,
    section 2). A run is a path from light (first checkpoint, open circle) to full colour (last one, black-rimmed
    circle). Models outside any run are dark marks, a few of them named, or coloured by family when there are no runs.
    Models without coordinates are left out. The t-SNE panel is drawn only when the result has it; its axes mean
    nothing and carry no ticks. KlrayError when no model has PCA coordinates.
    """
    if not has_points(result, "map_pca"):
        raise KlrayError(
            "a model map was asked for, but no model of this result has coordinates in 'map_pca': "
            "check which models the analysis excluded, then analyze again"
        )
    all_runs = trajectories(result)
    located = on_map(result, "map_pca")
    styles = zip(all_runs, style.run_styles(all_runs), strict=True)
    drawn = [(run, look) for run, look in styles if located[run.models].any()]
    singles = single_models(result, all_runs)
    groups = _single_groups(result, singles[located[singles]], bool(drawn))
    figure = style.new_figure(3.9)

    def draw(axes: Axes, points: np.ndarray) -> None:
        for run, look in drawn:
            _draw_run(axes, points[run.models], look, 6 if len(drawn) <= style.MAX_RUNS_IN_LEGEND else 4)
        for members, label, marker, color in groups:
            size = 26 if members.size <= 100 else 8
            mark = {"s": size, "marker": marker, "color": color, "label": label}
            marks(axes, points[members], edgecolor="white", linewidths=0.4, zorder=3, **mark)

    draw_panels(figure, result, "map", draw)
    handles = style.run_handles([look for _, look in drawn])
    handles += [style.entry(label, mark=marker, color=color, ms=5) for _, label, marker, color in groups]
    if drawn:
        handles.append(style.entry("first checkpoint", mark="o", mfc="w", mec=style.MUTED, ms=5))
        handles.append(style.entry("last checkpoint", mark="o", mfc=style.MUTED, mec="k", ms=6))
    style.legend_below(figure, handles)
    return figure


def model_map_caption(result: xr.Dataset) -> str:
    """What the figure shows, as one paragraph of plain text."""
    runs = trajectories(result)
    own = own_output(result)
    missing = int((own & ~on_map(result, "map_pca")).sum())
    sentences = [
        "Map of the models from their log-likelihood vectors. Left: the first two principal components; in the full "
        "space, squared distance is the KL divergence in bits/byte."
    ]
    if has_points(result, "map_tsne"):
        sentences.append("Right: t-SNE of the same coordinates, which keeps neighbourhoods but not distances.")
    if runs:
        sentences.append(
            "Each run is a path from light to full colour as training goes on, from the open circle to the "
            "black-rimmed one."
        )
    if len(runs) > 1 and any(run.family in _SEED_ORDERS_DATA for run in runs):
        sentences.append(
            "Where a seed decides the order of the training data too, as it does in the embedded family, runs of one "
            "seed share that order: models of equal seed and different size can be nearer to each other than models "
            "of equal size and different seed."
        )
    if single_models(result, runs).size:
        sentences.append("Marks without a path are models outside any run." if runs else "Each mark is a model.")
    if missing:
        sentences.append(f"{missing:,} of {int(own.sum()):,} models have no coordinates and are not drawn.")
    if not own.all():
        sentences.append("Layers under a lens have a map of their own.")
    return " ".join(sentences)


def _draw_run(axes: Axes, path: np.ndarray, look: style.RunStyle, end_points: float) -> None:
    path = path[np.isfinite(path).all(1)]
    if not len(path):
        return
    shades = [style.tint(look.color, strength) for strength in np.linspace(_FAINTEST, 1, len(path))]
    segments = np.stack([path[:-1], path[1:]], axis=1)
    axes.add_collection(LineCollection(list(segments), colors=shades[1:], linewidths=1.2, zorder=2))
    marks(axes, path, s=5, c=shades, marker=look.marker, linewidths=0, zorder=3, label=look.label)
    axes.plot(*path[0], marker="o", mfc="white", mec=look.color, mew=1.2, ms=end_points - 1, zorder=4)
    axes.plot(*path[-1], marker="o", mfc=look.color, mec="black", mew=1.0, ms=end_points, zorder=5)


def _single_groups(result: xr.Dataset, singles: np.ndarray, with_runs: bool) -> list[tuple[np.ndarray, str, str, str]]:
    """How the models outside any run are told apart: (positions, label, marker, colour) of each group."""
    if 0 < singles.size <= len(SINGLE_MARKERS):
        names = [str(result["repository"].values[position]).rsplit("/", 1)[-1] for position in singles]
        quantizations = strings(result, "quantization")[singles]
        names = [
            name if quantization in NO_QUANTIZATION else f"{name}, {quantization}"
            for name, quantization in zip(names, quantizations, strict=True)
        ]
        if len(set(names)) < len(names):
            names = [str(result["model"].values[position]) for position in singles]
        marks = zip(singles, names, SINGLE_MARKERS, strict=False)
        return [(np.array([position]), style.plain(name), marker, style.INK) for position, name, marker in marks]
    families = strings(result, "family")[singles]
    names_found, counts = np.unique(families[families != ""], return_counts=True)
    shown = [] if with_runs else list(names_found[np.argsort(-counts, kind="stable")][: len(_FAMILY_COLORS)])
    groups = [(singles[families == name], style.plain(name), "D", _FAMILY_COLORS[shown.index(name)]) for name in shown]
    groups.append((singles[~np.isin(families, shown)], "other models" if shown else "single models", "D", style.MUTED))
    return [group for group in groups if group[0].size]


PLATE = Plate(
    "model_map",
    "Map of the models",
    "Scatter plots of the models by principal components and by t-SNE, with each training run as a path.",
    model_map,
    model_map_caption,
)
