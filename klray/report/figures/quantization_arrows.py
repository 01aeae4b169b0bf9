"""Quantisation on the map: an arrow from each model to each of its quantised selves."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from klray.analysis.facts import strings
from klray.analysis.pairs import relative_divergence
from klray.analysis.relatives import unquantised
from klray.analysis.scale.published_settings import AUTHORS, setting_named
from klray.errors import KlrayError
from klray.report.figures.panels import COLORS, arrow, draw_panels, marks, on_map
from klray.report.figures.plate import Plate
from klray.report.figures.style import LINES, MARKERS, MUTED, entry, legend_below, new_figure, plain
from klray.words.numbers import counted, significant


def quantization_arrows(result: xr.Dataset) -> Figure:
    """Two panels, PCA in sqrt(bits/byte) and t-SNE: all models in grey, and arrows to the quantised ones.

    Each way of quantising has a colour, a marker and a line pattern. KlrayError when no quantised model is on the map
    together with its unquantised self.
    """
    pairs = _pairs(result)
    if not pairs:
        raise KlrayError(
            "arrows from models to their quantised selves were asked for, but no quantised model of this result is on "
            "the map together with its unquantised self: score the same checkpoints without quantisation too"
        )
    figure = new_figure(3.9)

    def draw(axes: Axes, points: np.ndarray) -> None:
        marks(axes, points, s=7, color="0.78", linewidths=0, zorder=1)
        for number, (_, selves, quantised) in enumerate(pairs):
            color = COLORS[number % len(COLORS)]
            for start, end in zip(points[selves], points[quantised], strict=True):
                arrow(axes, start, end, color, LINES[number % len(LINES)])
            marks(axes, points[selves], s=17, facecolors="w", edgecolors=MUTED, linewidths=1, zorder=2)
            marker = MARKERS[1 + number % 6]
            marks(axes, points[quantised], s=13, marker=marker, color=color, linewidths=0, zorder=4)

        # Whoever is far from every arrow is out of sight: a run's first descent would leave no room for them.
        members = points[np.concatenate([np.concatenate([selves, quantised]) for _, selves, quantised in pairs])]
        low, high = members.min(axis=0), members.max(axis=0)
        half = 0.58 * float((high - low).max()) or 1.0
        x, y = (low + high) / 2
        axes.set_xlim(x - half, x + half)
        axes.set_ylim(y - half, y + half)
        axes.xaxis.set_major_locator(MaxNLocator(5))  # more numbers of this length would touch

    draw_panels(figure, result, "map", draw, box=True)
    looks = [{"color": COLORS[at % 7], "ls": LINES[at % 4], "marker": MARKERS[1 + at % 6]} for at in range(len(pairs))]
    handles = [entry("unquantised", mark="o", mfc="w", mec=MUTED, ms=4.5)]
    handles += [entry(plain(name), ms=4.5, **look) for (name, *_), look in zip(pairs, looks, strict=True)]
    handles.append(entry("other models", mark="o", color="0.78", ms=3.5))
    legend_below(figure, handles)
    return figure


def quantization_arrows_caption(result: xr.Dataset) -> str:
    """What the figure shows, as one paragraph of plain text."""
    medians = [
        f"{name} {significant(float(np.nanmedian(relative_divergence(result, quantised, selves)[0])))} "
        f"({counted(len(selves), 'model')})"
        for name, selves, quantised in _pairs(result)
    ]
    eight, four = (setting_named(name).published_words() for name in ("8-bit", "4-bit"))
    return (
        "Quantisation: arrows lead from each model to its quantised selves, in the part of the map where they are. "
        f"Median KL along the arrows in bits/byte: {', '.join(medians)}. Published medians: {eight} for 8 bits and "
        f"{four} for 4 bits ({AUTHORS}). An arrow's length on a map shows only the part of the KL that lies in its two "
        "dimensions."
    )


def _pairs(result: xr.Dataset) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """For each way of quantising its name, and positions of the unquantised and the quantised, both on the map."""
    of = unquantised(result)
    located = on_map(result, "map_pca")
    chosen = (of >= 0) & located
    chosen[chosen] = located[of[chosen]]
    names = strings(result, "quantization")
    found = [(str(name), np.flatnonzero(chosen & (names == name))) for name in np.unique(names[chosen])]
    return [(name, of[quantised], quantised) for name, quantised in found]


PLATE = Plate(
    "quantization_arrows",
    "Quantisation",
    "Scatter plots of the models by principal components and by t-SNE, with arrows from each model to its "
    "quantised selves.",
    quantization_arrows,
    quantization_arrows_caption,
    lambda result: bool((unquantised(result) >= 0).any()),
)
