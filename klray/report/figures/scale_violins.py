"""The scale of KL: a violin for each setting, arXiv:2505.15353, Figure 3."""

import math

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from klray.analysis.scale.measuring import scale_rows, setting_kl
from klray.analysis.scale.published_settings import SOURCE
from klray.errors import KlrayError
from klray.report.figures import style
from klray.report.figures.plate import Plate

_SHAPE_PAIRS = 5  # fewer are drawn as marks alone
_HALF = 0.38  # of a violin's height
_PUBLISHED = "#D55E00"


def scale_violins(result: xr.Dataset) -> Figure:
    """KL of every setting's pairs on a logarithmic axis: a violin of its density in ln KL, its quartiles and median.

    Settings with fewer than 5 pairs show the pairs. Published medians are marks, published ranges are bars. A KL of 0
    has no place on the axis. KlrayError when no setting has a pair with a KL above 0.
    """
    drawn = [(row, kl[kl > 0]) for row in scale_rows(result) if (kl := setting_kl(result, row.setting)).size]
    drawn = [(row, kl) for row, kl in drawn if kl.size]
    if not drawn:
        raise KlrayError("the scale was to be drawn, but no setting has a pair with a KL above 0: score more models")
    figure = style.new_figure(1.2 + 0.42 * len(drawn))
    axes = figure.subplots()
    axes.set_xscale("log")
    for place, (row, kl) in enumerate(drawn):
        if kl.size >= _SHAPE_PAIRS and kl[-1] > kl[0]:
            grid, density = _density(np.log(kl))
            half = _HALF * density / density.max()
            axes.fill_between(np.exp(grid), place - half, place + half, color=style.PALETTE[1], alpha=0.45, lw=0)
            lower, upper = np.quantile(kl, [0.25, 0.75])
            axes.plot([lower, upper], [place, place], color=style.PALETTE[0], lw=3, solid_capstyle="butt")
        else:
            axes.plot(kl, np.full(kl.size, place), ls="", marker="|", ms=9, color=style.PALETTE[0])
        if row.median > 0:
            axes.plot(row.median, place, ls="", marker="o", ms=5, mfc="white", mec=style.PALETTE[0], mew=1.2, zorder=4)
        if not math.isnan(row.published_low):
            if row.published_low < row.published_high:
                box = (row.published_low, place - 0.09), row.published_high - row.published_low, 0.18
                axes.add_patch(Rectangle(*box, color=_PUBLISHED, alpha=0.6, lw=0, zorder=3))
            else:
                axes.plot(row.published_low, place, ls="", marker="D", ms=5, color=_PUBLISHED, zorder=5)
    style.dress(axes, "KL divergence (bits/byte)", "")
    names = [f"{style.plain(row.setting)}  (n = {row.n:,})" for row, _ in drawn]
    axes.set_yticks(range(len(drawn)), names, fontsize=style.LABEL_POINTS, color=style.INK)
    style.plain_log_ticks(axes.xaxis, subs=(1.0,))
    axes.tick_params(axis="x", labelsize=style.TICK_POINTS)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    median = {"marker": "o", "ms": 5, "mfc": "white", "mec": style.PALETTE[0], "mew": 1.2, "ls": ""}
    handles = [style.entry("median", **median), style.entry("quartiles", color=style.PALETTE[0], lw=3)]
    if any(not math.isnan(row.published_low) for row, _ in drawn):
        ranges = any(row.published_low < row.published_high for row, _ in drawn)
        label = "published (bar: range)" if ranges else "published"
        handles.append(style.entry(label, mark="D", ms=5, color=_PUBLISHED))
    style.legend_below(figure, handles)
    return figure


def scale_violins_caption(result: xr.Dataset) -> str:
    """What the figure shows, as one paragraph of plain text."""
    of = f" on texts of {result.attrs['domain']}" if result.attrs.get("domain") else ""
    empty = [row.setting for row in scale_rows(result) if not row.n]
    missing = f" No pairs: {', '.join(empty)}." if empty else ""
    drawn = [row for row in scale_rows(result) if row.n and not math.isnan(row.published_low)]
    if any(row.published_low < row.published_high for row in drawn):
        published = f" Diamonds and bars in orange: published medians and ranges ({SOURCE})."
    else:
        published = f" Diamonds in orange: published medians ({SOURCE})." if drawn else ""
    return (
        f"KL divergence of the pairs in each setting{of}, with the number of pairs; violins are densities in ln KL; "
        f"of fewer than {_SHAPE_PAIRS} pairs each is a tick.{published}{missing}"
    )


def _density(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian kernel density (bandwidth by Silverman's rule) of sorted values on a grid from smallest to largest."""
    spread = min(np.std(values), (np.quantile(values, 0.75) - np.quantile(values, 0.25)) / 1.34) or np.std(values)
    width = 0.9 * spread * len(values) ** -0.2
    grid = np.linspace(values[0], values[-1], 200)
    density = np.zeros(len(grid))
    for start in range(0, len(values), 4096):
        density += np.exp(-0.5 * ((grid[:, None] - values[None, start : start + 4096]) / width) ** 2).sum(axis=1)
    return grid, density


PLATE = Plate(
    "scale",
    "The scale",
    "Violin plot, on a logarithmic axis, of the KL of the pairs in each setting in bits per byte, with medians, "
    "quartiles and published values.",
    scale_violins,
    scale_violins_caption,
)
