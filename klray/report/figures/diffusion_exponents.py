"""Diffusion exponents along training."""

import xarray as xr
from matplotlib.figure import Figure

from klray.analysis.runs import trajectories
from klray.analysis.runs_table import exponent_windows
from klray.errors import KlrayError
from klray.report.figures import style
from klray.report.figures.plate import Plate


def diffusion_exponents(result: xr.Dataset) -> Figure:
    """c_q by the step where its window starts (arXiv 2505.15353, section 4), one line a run; below it the fits' R^2.

    The dashed line at 1 is ordinary diffusion. KlrayError when no checkpoint starts a window with an exponent.
    """
    runs = trajectories(result)
    found = [(look, exponent_windows(result, run)) for run, look in zip(runs, style.run_styles(runs), strict=True)]
    drawn = [(look, windows) for look, windows in found if windows.start.size]
    if not drawn:
        raise KlrayError(
            f"diffusion exponents were asked for, but no checkpoint of this result has one: a window needs "
            f"{_attr(result, 'window')} further checkpoints of its run after a start at step "
            f"{_attr(result, 'min_step')} or later; score more steps, or analyze with smaller analysis.window= and "
            "analysis.min_step=, as analysis=tiny has them for runs of hundreds of steps"
        )
    figure = style.new_figure(4.3)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, 1])
    for look, (start, exponent, r_squared) in drawn:
        for axes, values in ((upper, exponent), (lower, r_squared)):
            style.draw_windows(axes, start, values, look, style.mark_points(len(drawn)))
    ordinary = style.ordinary_diffusion(upper)
    lowest = min(float(windows.exponent.min()) for _, windows in drawn)
    highest = max(float(windows.exponent.max()) for _, windows in drawn)
    upper.set_ylim(min(0.0, lowest - 0.05), max(1.15, highest + 0.05))
    lower.set_ylim(0, 1.03)
    style.dress(upper, "", "Diffusion exponent $c_q$")
    style.dress_windows(lower, "$R^2$ of the fit")
    figure.align_ylabels([upper, lower])
    style.legend_below(figure, [*style.run_handles([look for look, _ in drawn]), ordinary])
    return figure


def diffusion_exponents_caption(result: xr.Dataset) -> str:
    """What the figure shows, as one paragraph of plain text."""
    window, min_step = _attr(result, "window"), _attr(result, "min_step")
    return (
        f"Diffusion exponent c_q: the slope of ln KL on ln(t − t0) over the {window} checkpoints after the start t0, "
        f"for t0 of at least {min_step}; below, the R² of each fit. Neighbouring windows share most checkpoints. "
        "c_q = 1 is ordinary diffusion, smaller is slower; the fractal dimension of the path is 2/c_q."
    )


def _attr(result: xr.Dataset, name: str) -> str:
    value = result.attrs.get(name)
    return "the required number of" if value is None else f"{int(value):,}"


PLATE = Plate(
    "diffusion_exponents",
    "Diffusion exponents",
    "Line plots of the diffusion exponent and of the R squared of its fit by the start step of the window, one "
    "line for each run.",
    diffusion_exponents,
    diffusion_exponents_caption,
)
