"""Lineage on the map: an edge from each parent to each of its fine-tuned children."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from klray.analysis.pairs import relative_divergence
from klray.analysis.relatives import parents
from klray.analysis.scale.published_settings import AUTHORS, setting_named
from klray.errors import KlrayError
from klray.report.figures.panels import COLORS, arrow, draw_panels, has_points, marks, on_map, panels_of
from klray.report.figures.plate import Plate
from klray.report.figures.style import MARKERS, MUTED, entry, legend_below, new_figure, plain
from klray.words.numbers import significant

MAX_NAMED = 6  # roots that are told apart; further ones are grey


def lineage(result: xr.Dataset) -> Figure:
    """Two panels, PCA in sqrt(bits/byte) and t-SNE: models that were never fine-tuned, their children, theirs.

    Descendants of one root share its colour and marker; a root is rimmed black, and edges lead from parent to child.
    KlrayError when no fine-tuned model is on the map together with its parent.
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
            size, rim, width, order = (44, "k", 1.1, 4) if first else (20, "w", 0.5, 3)
            rims = {"edgecolors": rim, "linewidths": width, "zorder": order}
            marks(axes, points[[member]], s=size, marker=marker, color=color, **rims)

    draw_panels(figure, result, _stem(result), draw)
    told = [*((names[root], *_style(at)) for at, root in enumerate(shown[:MAX_NAMED])), ("other roots", MUTED, "o")]
    told = told if len(shown) > MAX_NAMED else told[:-1]
    handles = [entry(label, mark=marker, color=color, mec="k", ms=5.5) for label, color, marker in told]
    handles.append(entry("parent to fine-tuned child", color=MUTED, marker=">", ms=4))
    legend_below(figure, handles)
    return figure


def lineage_caption(result: xr.Dataset) -> str:
    """What the figure shows, as one paragraph of plain text."""
    of = _family(result)
    children = np.flatnonzero(of >= 0)
    median = significant(float(np.nanmedian(relative_divergence(result, children, of[children])[0])))
    tsne = f"{_stem(result)}_tsne"
    sentences = [
        f"Fine-tuning: edges lead from parents to {len(children):,} fine-tuned children; models of one origin share "
        f"colour and marker, and the origin is rimmed black. Median KL from parent to child: {median} "
        f"bits/byte (published: {setting_named('fine-tuning').published_words()}, {AUTHORS})."
    ]
    if has_points(result, tsne):
        used = result[tsne].attrs.get("perplexity")
        sentences.append(
            "Left: principal components; right: t-SNE" + (f" with perplexity {used:.3g}." if used is not None else ".")
        )
    return " ".join(sentences)


def _stem(result: xr.Dataset) -> str:
    return "map_lineage" if panels_of(result, "map_lineage") else "map"


def _family(result: xr.Dataset) -> np.ndarray:
    """(K,) position of the parent, -1 where it or the model is not on the map."""
    of = parents(result)
    located = on_map(result, f"{_stem(result)}_pca")
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


PLATE = Plate(
    "lineage",
    "Fine-tuning",
    "Scatter plots by principal components and by t-SNE of fine-tuned models and their parents, with an edge from "
    "each parent to each child.",
    lineage,
    lineage_caption,
    lambda result: bool((parents(result) >= 0).any()),
)
