"""The noise floor: how far a checkpoint is from itself."""

from matplotlib.figure import Figure

from klray.analysis.noise_floor import MARGIN, SMALLEST_KL, NoiseFloor
from klray.errors import KlrayError
from klray.report.figures import style

# Attribute of a row, what it is called, marker; in the order of the legend and from top to bottom.
_KINDS = (("plans", "between plans", "o"), ("devices", "between devices", "s"), ("to_float64", "to float64", "D"))


def noise_floor(noise: NoiseFloor) -> Figure:
    """KL between scorings of one checkpoint, bits per byte, by precision: a mark for each checkpoint and kind of pair.

    The dashed line is the smallest KL of interest, the dotted one 100 times below: noise belongs to its left. A KL of 0
    has no place on a logarithmic axis and no mark. KlrayError when nothing was measured, or all is 0.
    """
    marks = [
        (value, place + 0.22 * (kind - 1), kind)
        for place, dtype in enumerate(noise.dtypes)
        for row in noise.rows()
        if row.dtype == dtype
        for kind, (name, _, _) in enumerate(_KINDS)
        if (value := float(getattr(row, name) or 0.0)) > 0
    ]
    if not marks:
        raise KlrayError("a noise floor was to be drawn, but nothing in it was measured; klray noise says why")
    figure = style.new_figure(1.5 + 0.5 * len(noise.dtypes))
    axes = figure.subplots()
    axes.set_xscale("log")
    for kind, (_, label, marker) in enumerate(_KINDS):
        drawn = [(value, place) for value, place, which in marks if which == kind]
        if drawn:
            axes.plot(
                *zip(*drawn, strict=True), ls="", marker=marker, ms=4, mew=0, color=style.PALETTE[2 * kind], label=label
            )
    style.dress(axes, "KL of a checkpoint with itself (bits/byte)", "")
    axes.axvline(SMALLEST_KL, color=style.INK, lw=0.9, ls=(0, (4, 3)))
    axes.axvline(SMALLEST_KL / MARGIN, color=style.MUTED, lw=0.9, ls=(0, (1, 2)))
    axes.set_xlim(right=10 * max(SMALLEST_KL, *(value for value, _, _ in marks)))
    axes.set_yticks(range(len(noise.dtypes)), noise.dtypes, fontsize=style.LABEL_POINTS)
    axes.tick_params(axis="x", labelsize=style.TICK_POINTS)
    axes.set_ylim(len(noise.dtypes) - 0.5, -0.5)
    style.legend_below(
        figure,
        [
            *axes.get_legend_handles_labels()[0],
            style.entry(f"{SMALLEST_KL}: smallest KL of interest", color=style.INK, lw=0.9, ls=(0, (4, 3))),
            style.entry(f"{MARGIN:.0f} times below it", color=style.MUTED, lw=0.9, ls=(0, (1, 2))),
        ],
    )
    return figure
