"""Exponents of KL and of weights, side by side: Figure 5 of arXiv 2505.15353."""

import xarray as xr
from matplotlib.figure import Figure

from klray.analysis.runs import trajectories
from klray.analysis.runs_table import exponent_windows, weight_windows
from klray.errors import KlrayError
from klray.report.figures import style
from klray.report.figures.plate import Plate


def kl_and_weights(result: xr.Dataset) -> Figure:
    """c_q (left) and c_w (right) by the step where the window starts, on one scale, a line for each run.

    c_w is of exact weight distances where the result has them, else of weight sketches; what was aligned by
    permutation is drawn thin and dotted. The dashed line at 1 is ordinary diffusion. KlrayError when no window has a
    c_w.
    """
    runs = trajectories(result)
    styles = style.run_styles(runs)
    found = [
        (look, exponent_windows(result, run), weight_windows(result, run))
        for run, look in zip(runs, styles, strict=True)
    ]
    if not any(weights[0].size for *_, weights in found):
        raise KlrayError(
            "exponents of weights were asked for, but no window of this result has one: score with "
            "scoring.sketch=65536 or run klray weights, then klray analyze; analysis.window= and "
            "analysis.min_step= must fit the runs"
        )
    figure = style.new_figure(3.2)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    points = style.mark_points(len(runs), few=3.0)
    top = 1.15
    for look, of_kl, of_weights in found:
        for axes, (start, exponent, _) in ((left, of_kl), (right, of_weights)):
            style.draw_windows(axes, start, exponent, look, points)
            top = max([top, *(exponent + 0.05)])
    aligned = [(look, weight_windows(result, run, "aligned")) for run, look in zip(runs, styles, strict=True)]
    for look, (start, exponent, _) in aligned:
        right.plot(start, exponent, color=look.color, ls=":", lw=1.0)
        top = max([top, *(exponent + 0.05)])
    handles = style.run_handles(styles)
    for axes, title in ((left, "KL, $c_q$"), (right, "Weights, $c_w$")):
        ordinary = style.ordinary_diffusion(axes)
        axes.set_title(title, fontsize=style.LABEL_POINTS, color=style.INK)
        style.dress_windows(axes, "Diffusion exponent" if axes is left else "")
    lowest = min((float(v.min()) for _, *pair in found for _, v, _ in pair if v.size), default=0.0)
    left.set_ylim(min(0.0, lowest - 0.05), top)
    handles.append(ordinary)
    if any(windows[0].size for _, windows in aligned):
        handles.append(style.entry("aligned by permutation", color=style.MUTED, ls=":", lw=1.0))
    style.legend_below(figure, handles)
    return figure


def kl_and_weights_caption(result: xr.Dataset) -> str:
    """What the figure shows, as one paragraph of plain text."""
    error = result["exponent_weights"].attrs.get("relative_error") if "exponent_weights" in result else None
    exact = "exponent_weights_exact" in result and bool(result["exponent_weights_exact"].notnull().any())
    if exact:
        source = "exact distances of the stored parameters"
    else:
        source = "weight sketches" + (f", whose squared distances are right to {100 * error:.2g} %" if error else "")
    dotted = ""
    if exact and "exponent_weights_aligned" in result and bool(result["exponent_weights_aligned"].notnull().any()):
        moved = abs(result["exponent_weights_aligned"] - result["exponent_weights_exact"]).max()
        same = ", and lies on the line of the run, because it changes no exponent by 0.001" if moved < 1e-3 else ""
        dotted = f" Dotted: after hidden units were matched by permutation{same}."
    return (
        f"Diffusion exponents in the same windows: c_q of KL (left) and c_w of squared weight distance (right), from "
        f"{source}. At 1 the path diffuses as a random walk does; the fractal dimensions of the paths are 2/c_q and "
        "2/c_w. The paper has c_w near 1 and c_q near 0.2 for Pythia."
        f"{dotted}"
    )


PLATE = Plate(
    "kl_and_weight_exponents",
    "Exponents of KL and of weights",
    "Two line plots side by side: the diffusion exponents of KL and of squared weight distance by the start step "
    "of the window, one line for each run.",
    kl_and_weights,
    kl_and_weights_caption,
)
