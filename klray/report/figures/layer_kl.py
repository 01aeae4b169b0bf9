"""How far each layer is from the model's own output, by layer, model and lens."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from klray.analysis.facts import strings
from klray.errors import KlrayError
from klray.report.figures.layers import MAX_THREADS
from klray.report.figures.panels import COLORS
from klray.report.figures.style import LINES, MARKERS, MUTED, dress, legend_below, new_figure, plain, plain_log_ticks


def layers_to_final(result: xr.Dataset) -> Figure:
    """KL of each layer to the final one, bits/byte on a logarithmic axis, by layer: a line for each model and lens.

    ``result`` is what ``klray.layers.layer_kl`` gives. Of each repository the last checkpoints are drawn, up to 7
    models in all, each in one colour; each lens has a line pattern. The final layer has a KL of 0 and no mark.

    Raises
    ------
    KlrayError
        No layer is apart from its final one.
    """
    models, lines = _drawn(result)
    if not any((kl > 0).any() for _, _, _, kl in lines):
        raise KlrayError("the KL of layers to the final one was asked for, but no layer differs from it")
    lenses = list(dict.fromkeys(lens for _, lens, _, _ in lines))
    figure = new_figure(4.0)
    axes = figure.subplots()
    axes.set_yscale("log")
    for model, lens, layers, kl in lines:
        at = models.index(model) % len(COLORS)
        above = kl > 0
        pattern = LINES[lenses.index(lens) % len(LINES)]
        axes.plot(
            layers[above],
            kl[above],
            color=COLORS[at],
            marker=MARKERS[at],
            ls=pattern,
            lw=1.4,
            ms=4,
            label=f"{model} {lens}",
        )
    dress(axes, "layer (0: embedding)", "KL to the model's own output (bits/byte)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain_log_ticks(axes.yaxis)
    handles = [
        Line2D([], [], color=COLORS[at % 7], marker=MARKERS[at % 7], lw=1.4, ms=4, label=plain(model))
        for at, model in enumerate(models)
    ]
    handles += [
        Line2D([], [], color=MUTED, ls=LINES[at % len(LINES)], lw=1.4, label=f"{plain(lens)} lens")
        for at, lens in enumerate(lenses)
    ]
    legend_below(figure, handles)
    return figure


def layers_to_final_caption(result: xr.Dataset) -> str:
    """What the figure shows, as one paragraph of plain text."""
    models, _ = _drawn(result)
    known = len(set(zip(*(strings(result, name) for name in ("repository", "revision", "commit")), strict=True)))
    some = (
        f" {len(models):,} of {known:,} models are drawn: of each run the last checkpoints."
        if len(models) < known
        else ""
    )
    return (
        "KL of each layer to the model's own output, as a lens reads it: one line for each model (colour) and lens "
        f"(line pattern). The last layer is the model's own output and has no mark.{some}"
    )


def _drawn(result: xr.Dataset) -> tuple[list[str], list[tuple[str, str, np.ndarray, np.ndarray]]]:
    """Names of the models, and (model, lens, layers, KL) of each line; tuned lenses go by the name "tuned"."""
    repositories, revisions, lenses, keys = (
        strings(result, name) for name in ("repository", "revision", "lens", "key")
    )
    steps, layers, kl = (result[name].values for name in ("step", "layer", "kl_final"))
    # Of each repository the last step first, then the last but one of each, and so on.
    latest: dict[str, list[str]] = {}
    for row in np.argsort(-steps, kind="stable"):
        of = latest.setdefault(repositories[row], [])
        if revisions[row] not in of:
            of.append(revisions[row])
    ranked = sorted(
        (place, repository, revision) for repository, of in latest.items() for place, revision in enumerate(of)
    )
    chosen = sorted((repository, revision) for _, repository, revision in ranked[:MAX_THREADS])
    models, lines = _names(chosen), []
    for model, (repository, revision) in zip(models, chosen, strict=True):
        rows = np.flatnonzero((repositories == repository) & (revisions == revision))
        for key in dict.fromkeys(keys[rows].tolist()):
            of_column = rows[keys[rows] == key]
            of_column = of_column[np.argsort(layers[of_column])]
            lens = lenses[of_column[0]].split("-", 1)[0]
            lines.append((model, str(lens), layers[of_column], kl[of_column]))
    return models, sorted(lines, key=lambda line: (models.index(line[0]), line[1]))


def _names(models: list[tuple[str, str]]) -> list[str]:
    """The last part of each repository with the revision, the last two parts if one is not enough."""
    for parts in (1, 2):
        names = [f"{'/'.join(repository.rsplit('/', parts)[-parts:])}@{revision}" for repository, revision in models]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]
