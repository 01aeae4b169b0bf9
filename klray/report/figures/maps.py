"""The model map: every model as a point, every run as a path, by PCA and by t-SNE."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from klray.analysis.facts import NO_QUANTIZATION, own_output, strings
from klray.analysis.runs import single_models, trajectories
from klray.errors import KlrayError
from klray.report.figures.panels import has_points, two_columns
from klray.report.figures.style import (
    INK,
    MAX_RUNS_IN_LEGEND,
    MUTED,
    PALETTE,
    RunStyle,
    dress,
    legend_below,
    new_figure,
    plain,
    run_handles,
    run_labels,
    run_styles,
    tint,
)

SINGLE_MARKERS = ("D", "*", "P", "X", "<", ">", "p", "h")  # up to so many single models are named in the legend
_SEED_ORDERS_DATA = frozenset({"tiny", "tiny_smallest"})  # families whose seed also decides the order of the data
_FAMILY_COLORS = (*PALETTE[0:6:2], *PALETTE[1:6:2])
_FAINTEST = 0.25  # tint of a run's first checkpoint: light, and still seen on white


def model_map(result: xr.Dataset) -> Figure:
    """Two panels: principal components of the map coordinates in sqrt(bits/byte), and t-SNE.

    In the PCA panel both axes have one scale, and squared distance in the full space is KL (arXiv 2505.15353,
    section 2). A run is a path from light (first checkpoint, open circle) to full colour (last one, black-rimmed
    circle). Models outside any run are dark marks, a few of them named, or coloured by family when there are no runs.
    Models without coordinates are left out. The t-SNE panel is drawn only when the result has it; its axes mean
    nothing and carry no ticks.

    Raises
    ------
    KlrayError
        When no model has PCA coordinates.
    """
    panels = [name for name in ("map_pca", "map_tsne") if has_points(result, name)]
    if "map_pca" not in panels:
        raise KlrayError(
            "a model map was asked for, but no model of this result has coordinates in 'map_pca': "
            "check which models the analysis excluded, then analyze again"
        )
    all_runs = trajectories(result)
    located = np.isfinite(two_columns(result["map_pca"].values)).all(1)
    drawn = [
        (run, style, label)
        for run, style, label in zip(all_runs, run_styles(all_runs), run_labels(all_runs), strict=True)
        if located[run.models].any()
    ]
    singles = single_models(result, all_runs)
    groups = _single_groups(result, singles[located[singles]], bool(drawn))
    figure = new_figure(3.9)
    handles: list[Artist] = list(run_handles([entry[0] for entry in drawn], [entry[1] for entry in drawn]))
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        points = two_columns(result[panel].values)
        for run, style, label in drawn:
            _draw_run(axes, points[run.models], style, label, end_points=6 if len(drawn) <= MAX_RUNS_IN_LEGEND else 4)
        single_handles = [_draw_singles(axes, points, *group) for group in groups]
        if panel == "map_pca":
            shares = _variance_shares(result, points)
            x_label, y_label = (f"PC {i + 1}, {share:.0%} of variance [√(bits/byte)]" for i, share in enumerate(shares))
            dress(axes, x_label, y_label)
            handles += single_handles
        else:
            dress(axes, "t-SNE 1", "t-SNE 2")
            axes.set_xticks([])
            axes.set_yticks([])
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.08)
    if drawn:
        handles += [_mark("w", MUTED, 5, "first checkpoint"), _mark(MUTED, "k", 6, "last checkpoint")]
    legend_below(figure, handles)
    return figure


def model_map_caption(result: xr.Dataset) -> str:
    """What the figure shows, as one paragraph of plain text."""
    runs = trajectories(result)
    own = own_output(result)
    missing = int((own & ~np.isfinite(two_columns(result["map_pca"].values)).all(1)).sum())
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


def _variance_shares(result: xr.Dataset, points: np.ndarray) -> np.ndarray:
    """Share of the models' variance along each of the two axes, (2,): squared distance is KL, so it sums to KL / 2K."""
    located = np.flatnonzero(np.isfinite(points).all(1))
    total = float(result["kl"].isel(model=located, other=located).sum()) / (2 * located.size)
    along = ((points[located] - points[located].mean(0)) ** 2).sum(0)
    return along / total if total > 0 else np.zeros(2)


def _mark(face: str, edge: str, size: float, label: str) -> Line2D:
    return Line2D([], [], ls="", marker="o", mfc=face, mec=edge, ms=size, label=label)


def _draw_run(axes: Axes, path: np.ndarray, style: RunStyle, label: str, end_points: float) -> None:
    path = path[np.isfinite(path).all(1)]
    if not len(path):
        return
    shades = [tint(style.color, strength) for strength in np.linspace(_FAINTEST, 1, len(path))]
    segments = np.stack([path[:-1], path[1:]], axis=1)
    axes.add_collection(LineCollection(list(segments), colors=shades[1:], linewidths=1.2, zorder=2))
    axes.scatter(path[:, 0], path[:, 1], s=5, c=shades, marker=style.marker, linewidths=0, zorder=3, label=label)
    axes.plot(*path[0], marker="o", mfc="white", mec=style.color, mew=1.2, ms=end_points - 1, zorder=4)
    axes.plot(*path[-1], marker="o", mfc=style.color, mec="black", mew=1.0, ms=end_points, zorder=5)


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
        return [(np.array([position]), plain(name), marker, INK) for position, name, marker in marks]
    families = strings(result, "family")[singles]
    names_found, counts = np.unique(families[families != ""], return_counts=True)
    shown = [] if with_runs else list(names_found[np.argsort(-counts, kind="stable")][: len(_FAMILY_COLORS)])
    groups = [(singles[families == name], plain(name), "D", _FAMILY_COLORS[shown.index(name)]) for name in shown]
    groups.append((singles[~np.isin(families, shown)], "other models" if shown else "single models", "D", MUTED))
    return [group for group in groups if group[0].size]


def _draw_singles(axes: Axes, points: np.ndarray, members: np.ndarray, label: str, marker: str, color: str) -> Line2D:
    """Draw one group of `_single_groups`; return its legend entry."""
    size = 26 if members.size <= 100 else 8
    axes.scatter(
        points[members, 0],
        points[members, 1],
        s=size,
        marker=marker,
        color=color,
        edgecolor="white",
        linewidths=0.4,
        zorder=3,
        label=label,
    )
    return Line2D([], [], ls="", marker=marker, color=color, ms=5, label=label)
