"""Lineage on the map: an edge from each parent to each of its fine-tuned children."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from klray.analysis.relatives import parents
from klray.errors import KlrayError
from klray.report.figures.panels import COLORS, arrow, draw_panels, has_points, panels_of, two_columns
from klray.report.figures.style import MARKERS, MUTED, legend_below, new_figure, plain
from klray.words.numbers import significant

MAX_NAMED = 6  # roots that are told apart; further ones are grey


def lineage(result: xr.Dataset) -> Figure:
    """Two panels, PCA in sqrt(bits/byte) and t-SNE: models that were never fine-tuned, their children, theirs.

    Descendants of one root share its colour and marker; a root is rimmed black, and edges lead from parent to child.

    Raises
    ------
    KlrayError
        No fine-tuned model is on the map together with its parent.
    """
    of = _family(result)
    children = np.flatnonzero(of >= 0)
    if not len(children):
        raise KlrayError(
            "edges from parents to fine-tuned children were asked for, but no model of this result is on the map "
            "together with the one that its base_model names: score the parents too"
        )
    members = np.union1d(children, of[children])
    roots = {int(member): _root(int(member), of) for member in members}
    shown = list(dict.fromkeys(roots.values()))
    figure = new_figure(3.9)
    names = [plain(str(name).rsplit("/", 1)[-1]) for name in result["repository"].values]

    def draw(axes: Axes, points: np.ndarray) -> None:
        for child in children:
            color, _ = _style(shown.index(roots[int(child)]))
            arrow(axes, points[of[child]], points[child], color)
        for member in members:
            color, marker = _style(shown.index(roots[int(member)]))
            first = of[member] < 0
            axes.scatter(
                points[member, 0],
                points[member, 1],
                s=44 if first else 20,
                marker=marker,
                color=color,
                edgecolors="k" if first else "w",
                linewidths=1.1 if first else 0.5,
                zorder=4 if first else 3,
            )

    draw_panels(figure, result, _stem(result), draw)
    handles = [
        Line2D([], [], ls="", marker=_style(at)[1], color=_style(at)[0], mec="k", ms=5.5, label=names[root])
        for at, root in enumerate(shown[:MAX_NAMED])
    ]
    if len(shown) > MAX_NAMED:
        handles.append(Line2D([], [], ls="", marker="o", color=MUTED, mec="k", ms=5.5, label="other roots"))
    handles.append(Line2D([], [], color=MUTED, marker=">", ms=4, label="parent to fine-tuned child"))
    legend_below(figure, handles)
    return figure


def lineage_caption(result: xr.Dataset) -> str:
    """What the figure shows, as one paragraph of plain text."""
    of = _family(result)
    children = np.flatnonzero(of >= 0)
    median = significant(float(np.nanmedian(result["kl"].values[of[children], children])))
    tsne = f"{_stem(result)}_tsne"
    sentences = [
        f"Fine-tuning: edges lead from parents to {len(children):,} fine-tuned children; models of one origin share "
        f"colour and marker, and the origin is rimmed black. Median KL from parent to child: {median} "
        "bits/byte (published: 0.40, Kishino et al.)."
    ]
    if has_points(result, tsne):
        used = result[tsne].attrs.get("perplexity")
        sentences.append(
            "Left: principal components; right: t-SNE" + (f" with perplexity {used:.3g}." if used is not None else ".")
        )
    return " ".join(sentences)


def shows_lineage(result: xr.Dataset) -> bool:
    """Whether the result has a fine-tuned model with its parent."""
    return bool((parents(result) >= 0).any())


def _stem(result: xr.Dataset) -> str:
    return "map_lineage" if panels_of(result, "map_lineage") else "map"


def _family(result: xr.Dataset) -> np.ndarray:
    """(K,) position of the parent, -1 where it or the model is not on the map."""
    of = parents(result)
    located = np.isfinite(two_columns(result[f"{_stem(result)}_pca"].values)).all(1)
    of[~located] = -1
    of[(of >= 0) & ~located[of]] = -1
    return of


def _root(member: int, of: np.ndarray) -> int:
    seen = {member}
    while of[member] >= 0 and int(of[member]) not in seen:  # two models may name each other
        member = int(of[member])
        seen.add(member)
    return member


def _style(at: int) -> tuple[str, str]:
    return (COLORS[at], MARKERS[at]) if at < MAX_NAMED else (MUTED, "o")
