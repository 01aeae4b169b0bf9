"""How far each checkpoint is from the one before it, along training."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from klray.analysis.runs import Run, trajectories
from klray.analysis.runs_table import Pairs, consecutive_pairs
from klray.analysis.scale.published_settings import AUTHORS, PUBLISHED_SPACING, setting_named
from klray.errors import KlrayError
from klray.report.figures import style
from klray.report.figures.plate import Plate
from klray.words.numbers import counted

_PUBLISHED = [setting_named(name) for name in ("early", "later")]  # of the Pythia checkpoints of arXiv 2505.15353


def consecutive_kl(result: xr.Dataset) -> Figure:
    """KL to the previous saved checkpoint in bits/byte by training step, both axes logarithmic, one line a run.

    The band is +- one standard error (the choice of texts); a bar where a mark has no neighbour of its spacing.
    Filled marks and full lines are pairs at the run's usual spacing (see `Pairs`); open marks and dotted
    lines are pairs at another one. Pairs of different spacing are not comparable, and nothing joins them. Where a run's
    usual spacing is that of the published Pythia runs, 1,000 steps, the published ranges are shaded in grey.
    KlrayError when no run has a consecutive pair with a KL above zero.
    """
    drawn = _drawn(result)
    if not drawn:
        raise KlrayError(
            "a figure of the KL between consecutive checkpoints was asked for, but no run of this result has two "
            "consecutive checkpoints with a KL above 0: score more steps of a run, publish, and analyze again"
        )
    figure = style.new_figure(3.9)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_yscale("log")
    runs = trajectories(result)
    styles = dict(zip((run.name for run in runs), style.run_styles(runs), strict=True))
    for run, pairs in drawn:
        look = styles[run.name]
        _draw_stretches(axes, pairs, look.color)
        comparable = np.where(pairs.usual, pairs.kl, np.nan)
        axes.plot(pairs.step, comparable, color=look.color, ls=look.line, lw=1.3, zorder=3, label=look.label)
        size = style.mark_points(len(drawn))
        mark: dict[str, Any] = {"marker": look.marker, "ms": size, "mec": look.color, "mew": 0.8}
        for usual, face in ((True, look.color), (False, "white")):
            chosen = pairs.usual == usual
            axes.plot(pairs.step[chosen], pairs.kl[chosen], ls="", mfc=face, zorder=4, **mark)
    if _published_applies(drawn):
        beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "left", "va": "center"}
        for setting, shade in zip(_PUBLISHED, ("0.5", "0.7"), strict=True):
            axes.axhspan(setting.low, setting.high, color=shade, alpha=0.15, lw=0, zorder=0)
            middle = np.sqrt(setting.low * setting.high)
            words, size = f"published,\n{setting.name}", style.TICK_POINTS - 1
            axes.text(1.01, middle, words, fontsize=size, color=style.MUTED, **beside)
    style.plain_log_ticks(axes.xaxis, subs=(1.0,))
    style.plain_log_ticks(axes.yaxis)
    style.dress(axes, "Training step", "KL to previous checkpoint (bits/byte)")
    handles = style.run_handles([styles[run.name] for run, _ in drawn])
    if len(drawn) <= style.MAX_RUNS_IN_LEGEND and len({pairs.spacing for _, pairs in drawn}) > 1:
        for handle, (_, pairs) in zip(handles, drawn, strict=True):  # lines of unequal spacing cannot be compared
            handle.set_label(f"{handle.get_label()}, every {pairs.spacing:,}")
    if any((~pairs.usual & np.isfinite(pairs.kl)).any() for _, pairs in drawn):
        handles.append(style.entry("open: other spacing", mark="o", mfc="w", mec=style.MUTED, ms=4))
    style.legend_below(figure, handles)
    return figure


def consecutive_kl_caption(result: xr.Dataset) -> str:
    """What the figure shows, as one paragraph of plain text."""
    drawn = _drawn(result)
    spacings = sorted({pairs.spacing for _, pairs in drawn if pairs.spacing is not None})
    apart = f"{counted(spacings[0], 'step')} apart" if len(spacings) == 1 else "as far apart as is usual in their run"
    unequal = " Lines of different spacing are not comparable." if len(spacings) > 1 else ""
    sentences = [
        "KL divergence of each checkpoint from the one saved before it. Bands: ± one standard error from the choice of "
        f"texts. Filled marks: checkpoints {apart}; open marks: other distances, which are not comparable with them. "
        f"Lines join only pairs of the same distance.{unequal}"
    ]
    early, later = (setting.published_words("–") for setting in _PUBLISHED)
    published = (
        f"{early} bits/byte early and {later} later in training for Pythia checkpoints {PUBLISHED_SPACING:,} steps "
        f"apart ({AUTHORS})"
    )
    if _published_applies(drawn):
        sentences.append(f"Grey: the published ranges, {published}.")
    else:
        sentences.append(f"Published for comparison: {published}; not drawn, because the spacing here is another.")
    zeros = sum(int((consecutive_pairs(result, run).kl <= 0).sum()) for run in trajectories(result))
    if zeros:
        sentences.append(
            f"Without a place on a log axis: {counted(zeros, 'pair')} with a KL of 0 (the same log-likelihoods)."
        )
    return " ".join(sentences)


def _draw_stretches(axes: Axes, pairs: Pairs, color: str) -> None:
    """For each stretch of pairs of one spacing the band, or a bar for a single pair, and a dotted line if unusual."""
    # Log axes: a band that reaches zero goes down to a tenth of the value.
    low = np.maximum(pairs.kl - pairs.standard_error, pairs.kl / 10)
    high = pairs.kl + pairs.standard_error
    spacing = np.where(np.isfinite(pairs.kl), pairs.step - pairs.previous_step, -1)
    for stretch in np.split(np.arange(spacing.size), np.flatnonzero(np.diff(spacing)) + 1):
        if spacing[stretch[0]] < 0:
            continue
        if not pairs.usual[stretch[0]]:
            axes.plot(pairs.step[stretch], pairs.kl[stretch], color=color, ls=":", lw=0.8, alpha=0.7, zorder=3)
        step, bottom, top = pairs.step[stretch], low[stretch], high[stretch]
        if stretch.size > 1:
            axes.fill_between(step, bottom, top, color=color, alpha=0.18, linewidth=0, zorder=2)
        else:
            axes.vlines(step, bottom, top, color=color, alpha=0.35, linewidth=1.5, zorder=2)


def _drawn(result: xr.Dataset) -> list[tuple[Run, Pairs]]:
    pairs = [(run, consecutive_pairs(result, run)) for run in trajectories(result)]
    return [(run, found) for run, found in pairs if (found.kl > 0).any()]


def _published_applies(drawn: list[tuple[Run, Pairs]]) -> bool:
    return any(pairs.spacing == PUBLISHED_SPACING for _, pairs in drawn)


PLATE = Plate(
    "consecutive_kl",
    "KL between consecutive checkpoints",
    "Line plot, logarithmic on both axes, of the KL to the previous checkpoint in bits per byte by training step, "
    "one line for each run.",
    consecutive_kl,
    consecutive_kl_caption,
)
