"""The estimate of KL from log-likelihoods against the exact KL of next-token distributions, a mark for each pair."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from klray.errors import KlrayError
from klray.report.figures import style
from klray.report.figures.plate import Plate


def estimate_against_exact(result: xr.Dataset) -> Figure:
    """Estimate over exact KL in bits/byte, both logarithmic, with standard errors; equal on the line.

    ``result`` is one of klray compare. KlrayError when no pair has two numbers above 0.
    """
    exact, estimate = result["exact"].values, result["estimate"].values
    drawn = (exact > 0) & (estimate > 0)
    if not drawn.any():
        raise KlrayError("the estimate was to be drawn against the exact KL, but no pair has both above 0")
    settings = np.array([str(each) for each in result["setting"].values])
    figure = style.new_figure(4.6)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    for number, setting in enumerate(dict.fromkeys(settings[drawn].tolist())):
        of = drawn & (settings == setting)
        x, y = exact[of], estimate[of]
        errors = [np.minimum(result[f"{name}_standard_error"].values[of], 0.9 * each) for name, each in
                  (("exact", x), ("estimate", y))]  # fmt: skip
        axes.errorbar(
            x,
            y,
            xerr=errors[0],
            yerr=errors[1],
            ls="",
            marker=style.MARKERS[number % len(style.MARKERS)],
            ms=4.5,
            mew=0,
            elinewidth=0.6,
            color=style.PALETTE[number % len(style.PALETTE)],
            label=style.plain(setting),
        )
    low, high = (each([exact[drawn], estimate[drawn]]) for each in (np.min, np.max))
    axes.plot([low / 2, high * 2], [low / 2, high * 2], color=style.MUTED, lw=0.9, ls=(0, (4, 3)), zorder=0)
    style.dress(axes, "exact KL of the next token (bits/byte)", "estimate (bits/byte)")
    style.legend_below(figure, axes.get_legend_handles_labels()[0])
    return figure


def estimate_against_exact_caption(result: xr.Dataset) -> str:
    """What the figure shows, as one paragraph of plain text."""
    return (
        f"KL estimated from log-likelihoods against the exact KL of the next token, on {result.sizes['text']:,} texts, "
        "a mark for each pair, with standard errors over texts (cut where they reach 0). On the dashed line the two "
        "are equal; above it the estimate is too large."
    )


PLATE = Plate(
    "estimate_against_exact",
    "Estimate against exact",
    "Scatter plot, both axes logarithmic, of the estimated KL against the exact KL of the next token in bits per byte, "
    "by setting.",
    estimate_against_exact,
    estimate_against_exact_caption,
)
