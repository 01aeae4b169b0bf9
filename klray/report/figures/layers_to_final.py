"""How far each layer is from the model's own output, by layer, model and lens."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from klray.analysis.facts import strings
from klray.errors import KlrayError
from klray.report.figures.layer_columns import latest_models, look
from klray.report.figures.plate import Plate
from klray.report.figures.style import LINES, MUTED, dress, entry, legend_below, new_figure, plain, plain_log_ticks


def layers_to_final(result: xr.Dataset) -> Figure:
    """KL of each layer to the final one, bits/byte on a logarithmic axis, by layer: a line for each model and lens.

    ``result`` is what ``klray.layers.layer_kl`` gives. Of each repository the last checkpoints are drawn, up to 7
    models in all, each in one colour; each lens has a line pattern. The final layer has a KL of 0 and no mark.
    KlrayError when no layer is apart from its final one.
    """
    drawn, lenses = latest_models(result, np.arange(result.sizes["model"])), strings(result, "lens")
    layers, kl = result["layer"].values, result["kl_final"].values
    lines = [
        (at, str(lenses[column[0]]).split("-", 1)[0], column[kl[column] > 0])
        for at, (_, columns) in enumerate(drawn)
        for column in columns
    ]
    if not any(column.size for *_, column in lines):
        raise KlrayError("the KL of layers to the final one was asked for, but no layer differs from it")
    lines.sort(key=lambda line: line[:2])  # "tuned" stands for all tuned lenses
    kinds = list(dict.fromkeys(lens for _, lens, _ in lines))
    patterns = {lens: LINES[at % len(LINES)] for at, lens in enumerate(kinds)}
    figure = new_figure(4.0)
    axes = figure.subplots()
    axes.set_yscale("log")
    for at, lens, column in lines:
        color, marker = look(at)
        label = f"{drawn[at][0]} {lens}"
        axes.plot(layers[column], kl[column], color=color, marker=marker, ls=patterns[lens], lw=1.4, ms=4, label=label)
    dress(axes, "layer (0: embedding)", "KL to the model's own output (bits/byte)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain_log_ticks(axes.yaxis)
    looks = [(plain(name), *look(at)) for at, (name, _) in enumerate(drawn)]
    handles = [entry(name, color=color, marker=marker, lw=1.4, ms=4) for name, color, marker in looks]
    handles += [entry(f"{plain(lens)} lens", color=MUTED, ls=pattern, lw=1.4) for lens, pattern in patterns.items()]
    legend_below(figure, handles)
    return figure


def layers_to_final_caption(result: xr.Dataset) -> str:
    """What the figure shows, as one paragraph of plain text."""
    shown = len(latest_models(result, np.arange(result.sizes["model"])))
    known = len(set(zip(*(strings(result, name) for name in ("repository", "revision", "commit")), strict=True)))
    some = f" {shown:,} of {known:,} models are drawn: of each run the last checkpoints." if shown < known else ""
    return (
        "KL of each layer to the model's own output, as a lens reads it: one line for each model (colour) and lens "
        f"(line pattern). The last layer is the model's own output and has no mark.{some}"
    )


PLATE = Plate(
    "layers_to_final",
    "KL between layers",
    "Line plot, logarithmic in KL, of the KL of each layer to the model's own output in bits per byte by layer, one "
    "line for each model and lens.",
    layers_to_final,
    layers_to_final_caption,
)
