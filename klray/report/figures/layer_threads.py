"""Layers on a map of their own: each model a thread from its embedding to its last layer."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from klray.analysis.facts import own_output, strings
from klray.errors import KlrayError
from klray.report.figures.layer_columns import latest_models, look
from klray.report.figures.panels import dress_panel, has_points, marks, on_map, panels_of, two_columns, write_beside
from klray.report.figures.plate import Plate
from klray.report.figures.style import INK, LABEL_POINTS, MUTED, entry, legend_below, new_figure, plain, tint

MAX_LENSES = 3
_FAINTEST = 0.3


def layer_threads(result: xr.Dataset) -> Figure:
    """A row of two panels, PCA in sqrt(bits/byte) and t-SNE, for each lens: the layers 0..L of a model joined.

    A thread is light at layer 0, the embedding's output (open circle), and in full colour at layer L, the model's own
    output (black-rimmed). Of a training run the last checkpoints are drawn, and up to 7 models in all. KlrayError when
    no model has two layers on the map.
    """
    drawn = _threads(result)
    if not drawn:
        raise KlrayError(
            "threads through the layers of a model were asked for, but no model of this result has two layers with "
            "coordinates in 'map_layers_pca': score with a lens, publish, and analyze again"
        )
    panels = panels_of(result, "map_layers")
    lenses = list(drawn)[:MAX_LENSES]
    figure = new_figure(0.6 + 3.3 * len(lenses))
    labels = list(dict.fromkeys(name for lens in lenses for name, _ in drawn[lens]))
    layers = result["layer"].values
    for row, lens in enumerate(lenses):
        for column, name in enumerate(panels):
            axes = figure.add_subplot(len(lenses), len(panels), row * len(panels) + column + 1)
            points = two_columns(result[name].values)
            for label, members in drawn[lens]:
                (color, marker), path = look(labels.index(label)), points[members]
                shades = [tint(color, strength) for strength in np.linspace(_FAINTEST, 1, len(members))]
                for a in range(len(members) - 1):
                    axes.plot(path[a : a + 2, 0], path[a : a + 2, 1], color=shades[a + 1], lw=1.2, zorder=2)
                marks(axes, path, s=16, marker=marker, c=shades, linewidths=0, zorder=3)
                axes.plot(*path[0], marker="o", mfc="w", mec=color, mew=1.2, ms=5, zorder=4)
                axes.plot(*path[-1], marker=marker, mfc=color, mec="k", mew=1.0, ms=6, zorder=5)
            if len(drawn[lens]) == 1:
                for member in drawn[lens][0][1]:
                    write_beside(axes, points[member], str(layers[member]))
            dress_panel(axes, name, margin=0.1)
            title = " lens ".join(lens.split("-", 1)) if "-" in lens else f"{lens} lens"
            axes.set_title(plain(title), fontsize=LABEL_POINTS, color=INK, loc="left")
    looks = [(plain(label), *look(at)) for at, label in enumerate(labels)]
    handles = [entry(label, color=color, marker=marker, lw=1.4, ms=4) for label, color, marker in looks]
    handles.append(entry("layer 0 (embedding)", mark="o", mfc="w", mec=MUTED, ms=5))
    handles.append(entry("last layer", mark="o", mfc=MUTED, mec="k", ms=6))
    legend_below(figure, handles)
    return figure


def layer_threads_caption(result: xr.Dataset) -> str:
    """What the figure shows, as one paragraph of plain text."""
    drawn = _threads(result)
    rows = _located(result)
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


def _located(result: xr.Dataset) -> np.ndarray:
    return ~own_output(result) & on_map(result, "map_layers_pca")


def _threads(result: xr.Dataset) -> dict[str, list[tuple[str, np.ndarray]]]:
    """For each lens the models to be drawn: name, and positions of their layers in order."""
    if not has_points(result, "map_layers_pca"):
        return {}
    lenses, located = strings(result, "lens"), _located(result)
    found = {}
    for lens in np.unique(lenses[located]).tolist():
        models = latest_models(result, np.flatnonzero(located & (lenses == lens)))
        threads = [(name, column) for name, columns in models for column in columns if len(column) > 1]
        if threads:
            found[lens] = threads
    return found


PLATE = Plate(
    "layer_threads",
    "Layers",
    "Scatter plots of the layers of models by principal components and by t-SNE, one row for each lens, with the "
    "layers of a model joined in order.",
    layer_threads,
    layer_threads_caption,
    lambda result: has_points(result, "map_layers_pca"),
)
