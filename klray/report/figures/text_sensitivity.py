"""How much KL depends on the texts: KL of pairs on two halves of them, and how far off fewer texts are."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from klray.errors import KlrayError
from klray.report.figures import style
from klray.report.figures.plate import Plate


def text_sensitivity(result: xr.Dataset) -> Figure:
    """Left: KL in bits/byte on one half of the texts over that on the other, a mark for each pair. Right: the median of
    |KL / KL of all texts - 1| over the number of texts, of random parts and of domains.

    ``result`` is one of ``measure_scale``. KlrayError when it has no parts of the texts.
    """
    if "part" not in result.coords:
        raise KlrayError(
            "KL on parts of the texts was to be drawn, but this result has none: it takes three pairs and 32 texts; "
            "run klray scale"
        )
    figure = style.new_figure(3.4)
    left, right = figure.subplots(1, 2)
    halves, settings = result["half_kl"].values, [str(each) for each in result["half_setting"].values]
    shown = np.flatnonzero((halves > 0).all(axis=1))
    halves, settings = halves[shown], [settings[at] for at in shown]
    if not settings:
        raise KlrayError("KL on two halves of the texts was to be drawn, but no pair has both above 0")
    names = list(dict.fromkeys(settings))
    for number, name in enumerate(names):
        one, other = halves[[each == name for each in settings]].T
        hue = number % len(style.PALETTE)
        shape = style.MARKERS[(number + number // len(style.PALETTE)) % len(style.MARKERS)]
        look = {"marker": shape, "color": style.PALETTE[hue]}
        left.plot(one, other, ls="", ms=3.2, mew=0, alpha=0.8, label=style.plain(name), **look)
    ends = [halves.min() / 1.5, halves.max() * 1.5]
    left.plot(ends, ends, color=style.MUTED, lw=0.9, ls=(0, (4, 3)), zorder=0)
    texts, off = result["part_texts"].values, result["part_deviation"].values
    random = np.array([str(each).startswith("1/") for each in result["part"].values]) & (off > 0)
    right.plot(texts[random], off[random], marker="o", ms=4, color=style.PALETTE[0])
    if random.any():
        right.plot(
            texts[random], off[random][0] * (texts[random][0] / texts[random]) ** 0.5, color=style.MUTED, lw=0.9, ls=":"
        )
    for name, of, far in zip(result["part"].values, texts, off, strict=True):
        if not str(name).startswith("1/") and far > 0:
            right.plot(of, far, ls="", marker="D", ms=4.5, color=style.PALETTE[2])
            right.annotate(
                style.plain(str(name)), (of, far), xytext=(5, 0), textcoords="offset points", fontsize=style.TICK_POINTS
            )
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
    style.dress(left, "KL on half of the texts (bits/byte)", "KL on the other half (bits/byte)")
    style.dress(right, "texts", "off by, median")
    for axis in (right.xaxis, right.yaxis):
        style.plain_log_ticks(axis)
    style.legend_below(figure, left.get_legend_handles_labels()[0])
    return figure


def text_sensitivity_caption(result: xr.Dataset) -> str:
    """What the figure shows, as one paragraph of plain text."""
    return (
        f"Left: KL of {result.sizes['half_pair']:,} pairs of the settings on two random halves of the texts; equal on "
        "the dashed line. Right: how far the KL on a part of the texts is from that on all of them, in the median over "
        "pairs; dots are random parts, diamonds domains. The dotted line falls with the square root of the number."
    )


PLATE = Plate(
    "text_sensitivity",
    "How many texts",
    "Two plots with logarithmic axes: the KL of pairs on two halves of the texts against each other, and how far the "
    "KL on fewer texts is from that on all.",
    text_sensitivity,
    text_sensitivity_caption,
)
