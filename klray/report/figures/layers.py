"""Layers on a map of their own: each model a thread from its embedding to its last layer."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from klray.analysis.facts import own_output, strings
from klray.errors import KlrayError
from klray.report.figures.panels import COLORS, has_points, two_columns, write_beside
from klray.report.figures.style import INK, LABEL_POINTS, MARKERS, MUTED, dress, legend_below, new_figure, plain, tint

MAX_THREADS = 7  # of one lens that are drawn and told apart
MAX_LENSES = 3
_FAINTEST = 0.3


def layer_threads(result: xr.Dataset) -> Figure:
    """A row of two panels, PCA in sqrt(bits/byte) and t-SNE, for each lens: the layers 0..L of a model joined.

    A thread is light at layer 0, the embedding's output (open circle), and in full colour at layer L, the model's own
    output (black-rimmed). Of a training run the last checkpoints are drawn, and up to 7 models in all.

    Raises
    ------
    KlrayError
        No model has two layers on the map.
    """
    drawn = _threads(result)
    if not drawn:
        raise KlrayError(
            "threads through the layers of a model were asked for, but no model of this result has two layers with "
            "coordinates in 'map_layers_pca': score with a lens, publish, and analyze again"
        )
    panels = [name for name in ("map_layers_pca", "map_layers_tsne") if has_points(result, name)]
    lenses = list(drawn)[:MAX_LENSES]
    figure = new_figure(0.6 + 3.3 * len(lenses))
    labels = list(dict.fromkeys(name for lens in lenses for name, _ in drawn[lens]))
    layers = result["layer"].values
    for row, lens in enumerate(lenses):
        for column, name in enumerate(panels):
            axes = figure.add_subplot(len(lenses), len(panels), row * len(panels) + column + 1)
            points = two_columns(result[name].values)
            for label, members in drawn[lens]:
                at = labels.index(label) % len(COLORS)
                color, path = COLORS[at], points[members]
                shades = [tint(color, strength) for strength in np.linspace(_FAINTEST, 1, len(members))]
                for a in range(len(members) - 1):
                    axes.plot(path[a : a + 2, 0], path[a : a + 2, 1], color=shades[a + 1], lw=1.2, zorder=2)
                axes.scatter(path[:, 0], path[:, 1], s=16, marker=MARKERS[at], c=shades, linewidths=0, zorder=3)
                axes.plot(*path[0], marker="o", mfc="w", mec=color, mew=1.2, ms=5, zorder=4)
                axes.plot(*path[-1], marker=MARKERS[at], mfc=color, mec="k", mew=1.0, ms=6, zorder=5)
            if len(drawn[lens]) == 1:
                for member in drawn[lens][0][1]:
                    write_beside(axes, points[member], str(layers[member]))
            if name.endswith("_pca"):
                dress(axes, "PC 1 [√(bits/byte)]", "PC 2 [√(bits/byte)]")
            else:
                dress(axes, "t-SNE 1", "t-SNE 2")
                axes.set_xticks([])
                axes.set_yticks([])
            axes.set_title(
                plain(" lens ".join(lens.split("-", 1)) if "-" in lens else f"{lens} lens"),
                fontsize=LABEL_POINTS,
                color=INK,
                loc="left",
            )
            axes.set_aspect("equal", adjustable="datalim")
            axes.margins(0.1)
    handles = [
        Line2D([], [], color=COLORS[at % 7], marker=MARKERS[at % 7], lw=1.4, ms=4, label=plain(label))
        for at, label in enumerate(labels)
    ]
    handles.append(Line2D([], [], ls="", marker="o", mfc="w", mec=MUTED, ms=5, label="layer 0 (embedding)"))
    handles.append(Line2D([], [], ls="", marker="o", mfc=MUTED, mec="k", ms=6, label="last layer"))
    legend_below(figure, handles)
    return figure


def layer_threads_caption(result: xr.Dataset) -> str:
    """What the figure shows, as one paragraph of plain text."""
    drawn = _threads(result)
    rows = ~own_output(result) & np.isfinite(two_columns(result["map_layers_pca"].values)).all(1)
    models = len(set(zip(strings(result, "key")[rows], strings(result, "lens")[rows], strict=True)))
    shown = sum(len(threads) for threads in list(drawn.values())[:MAX_LENSES])
    sentences = [
        "Layers: each thread joins the layers of one model under a lens, from the embedding's output (layer 0, light, "
        "open circle) to the model's own output (full colour, black rim). Left: principal components, in which squared "
        "distance is KL; right: t-SNE. Every lens has a map of its own, apart from that of the models."
    ]
    if shown < models:
        sentences.append(f"{shown:,} of {models:,} models are drawn: of each run the last checkpoints.")
    return " ".join(sentences)


def shows_layers(result: xr.Dataset) -> bool:
    """Whether the result has layers under a lens on a map."""
    return has_points(result, "map_layers_pca")


def _threads(result: xr.Dataset) -> dict[str, list[tuple[str, np.ndarray]]]:
    """For each lens the models to be drawn: name, and positions of their layers in order."""
    if not shows_layers(result):
        return {}
    located = ~own_output(result) & np.isfinite(two_columns(result["map_layers_pca"].values)).all(1)
    lenses, keys, repositories = (strings(result, name) for name in ("lens", "key", "repository"))
    layers, steps = result["layer"].values, result["step"].values
    found = {}
    for lens in np.unique(lenses[located]):
        # Of each repository the last step first, then the last but one of each, and so on.
        latest: dict[str, list[str]] = {}
        rows = np.flatnonzero(located & (lenses == lens))
        for row in rows[np.argsort(-steps[rows], kind="stable")]:
            of = latest.setdefault(repositories[row], [])
            if keys[row] not in of:
                of.append(keys[row])
        ranked = sorted((place, key) for of in latest.values() for place, key in enumerate(of))
        threads = []
        for _, key in ranked[:MAX_THREADS]:
            members = rows[keys[rows] == key]
            members = members[np.argsort(layers[members])]
            if len(members) > 1:
                name = str(result["repository"].values[members[0]]).rsplit("/", 1)[-1]
                revision = str(result["revision"].values[members[0]])
                threads.append((str(result["repository"].values[members[0]]), revision, f"{name}@{revision}", members))
        if threads:  # in the order of the figure of the KL to the final layer, so that a model's colour is the same
            threads.sort(key=lambda thread: thread[:2])
            found[str(lens)] = [(label, members) for _, _, label, members in threads]
    return found
