"""Trajectories of training runs on the map, coloured by training step, with warm-up and what follows told apart."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from klray.analysis.facts import quantised, recorded
from klray.analysis.runs import Run, trajectories
from klray.errors import KlrayError
from klray.report.figures.panels import draw_panels, has_points, marks, on_map
from klray.report.figures.plate import Plate
from klray.report.figures.style import INK, MARKERS, MUTED, TICK_POINTS, entry, legend_below, new_figure, run_labels
from klray.words.numbers import counted

MAX_MARKERS = len(MARKERS)
_COLORS = "viridis"  # even in lightness, and told apart without red and green
_BRIGHTEST = 0.93  # the palest yellow is not seen on white


def training_paths(result: xr.Dataset) -> Figure:
    """Two panels, PCA in sqrt(bits/byte) and t-SNE: each run a path, each checkpoint coloured by its step, log scale.

    Checkpoints before the end of warm-up (the smallest step by which the recipe scores texts) are open, joined by a
    dotted line; later ones are filled, joined by a full line. Up to 7 runs have markers of their own. KlrayError when
    no run has two checkpoints on the map.
    """
    runs = _located(result)
    if not runs:
        raise KlrayError(
            "trajectories of training runs were asked for, but no run of this result has two checkpoints with "
            "coordinates in 'map_pca': score more steps of a run, publish, and analyze again"
        )
    last = max(int(run.steps.max()) for run in runs)
    norm = LogNorm(1, max(last, 1) + 1)  # of step + 1: runs begin at step 0
    colors = matplotlib.colors.LinearSegmentedColormap.from_list(
        "steps", matplotlib.colormaps[_COLORS](np.linspace(0, _BRIGHTEST, 256))
    )
    warm_up = warm_up_end(result)
    markers, size = (MARKERS, 15) if len(runs) <= MAX_MARKERS else (("o",), 7)
    figure = new_figure(3.9)

    def draw(axes: Axes, points: np.ndarray) -> None:
        for number, run in enumerate(runs):
            path = points[run.models]
            early = run.steps < warm_up
            for a, b in pairwise(range(len(path))):
                axes.plot(path[[a, b], 0], path[[a, b], 1], color="0.72", lw=0.8, ls=":" if early[b] else "-", zorder=2)
            shades = colors(norm(run.steps + 1.0))
            for chosen, faces in ((early, np.full_like(shades, 1.0)), (~early, shades)):
                look = {"facecolors": faces[chosen], "edgecolors": shades[chosen], "linewidths": 0.9, "zorder": 3}
                marks(axes, path[chosen], s=size, marker=markers[number % len(markers)], **look)

    panels = draw_panels(figure, result, "map", draw)
    bar = figure.colorbar(ScalarMappable(norm, colors), ax=panels, shrink=0.85, pad=0.02, aspect=28)
    ticks = [0, *(10**power for power in range(len(str(last))) if 10**power <= last)]
    bar.set_ticks([tick + 1 for tick in ticks], labels=[f"{tick:,}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.set_label("Training step (log scale)", fontsize=TICK_POINTS, color=INK)
    bar.ax.tick_params(labelsize=TICK_POINTS, colors=INK)
    handles = []
    if len(runs) <= MAX_MARKERS:
        named = zip(markers, run_labels(runs), strict=False)
        handles = [entry(label, mark=marker, color=MUTED, ms=4.5) for marker, label in named]
    if any((run.steps < warm_up).any() for run in runs):
        mark = {"color": "0.6", "marker": "o", "mec": MUTED, "ms": 4.5}
        handles += [entry(f"before step {warm_up:,}", ls=":", mfc="w", **mark), entry("after", mfc=MUTED, **mark)]
    legend_below(figure, handles)
    return figure


def training_paths_caption(result: xr.Dataset) -> str:
    """What the figure shows, as one paragraph of plain text."""
    runs = _located(result)
    warm_up = warm_up_end(result)
    sentences = [
        f"Trajectories of {counted(len(runs), 'training run')}, coloured by training step. "
        "Left: principal components of the map coordinates, in which squared distance is KL."
    ]
    if has_points(result, "map_tsne"):
        perplexity = result["map_tsne"].attrs.get("perplexity")
        used = f" (perplexity {perplexity:.3g})" if perplexity is not None else ""
        sentences.append(f"Right: t-SNE{used}, which keeps neighbourhoods but not distances.")
    if any((run.steps < warm_up).any() for run in runs):
        sentences.append(
            f"Open marks and dotted lines: before step {warm_up:,}, when learning-rate warm-up and the first descent "
            "dominate; filled marks and full lines: after."
        )
    return " ".join(sentences)


def warm_up_end(result: xr.Dataset) -> int:
    """The smallest step after warm-up, by which the recipe scores texts; 0 when the result does not say."""
    return int(recorded(result, "recipe", {}).get("min_step", 0))


def _located(result: xr.Dataset) -> list[Run]:
    """Runs with two checkpoints or more on the map, cut to these; quantised runs have a figure of their own."""
    drawn = on_map(result, "map_pca") & ~quantised(result)
    found = [run.at(drawn[run.models]) for run in trajectories(result) if drawn[run.models].sum() > 1]
    several = Counter(run.run for run in found)  # a run whose variants are not drawn needs nothing that sets it apart
    return [run if several[run.run] > 1 else replace(run, name=run.run) for run in found]


PLATE = Plate(
    "training_paths",
    "Trajectories by training step",
    "Scatter plots of the checkpoints by principal components and by t-SNE, each run a path, coloured by training "
    "step on a logarithmic scale, with warm-up in open marks.",
    training_paths,
    training_paths_caption,
    lambda result: bool(trajectories(result)),
)
