"""The KL divergence of every pair of models as one picture."""

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from klray.analysis.facts import facts, own_output, quantised, strings
from klray.analysis.runs import single_models, trajectories
from klray.errors import KlrayError
from klray.report.figures import style
from klray.report.figures.plate import Plate
from klray.words.numbers import counted, significant

MAX_MODELS = 1500  # about the pixels across the picture: more could not be seen
_LOWEST_QUANTILE = 0.002  # a few almost identical pairs would otherwise use up the log scale
_SMALLEST_NAMED = 0.025  # share of the axis that a block needs for its name


def kl_heatmap(result: xr.Dataset) -> Figure:
    """KL of all pairs in bits/byte, logarithmic colours: by run and step, then models outside runs.

    These are single models, quantised ones, and layers. White lines separate all of them and the runs, or the sizes
    when there are too many runs to name. More than `MAX_MODELS` models are thinned evenly within that order. Pairs
    without a KL are grey; pairs below the 0.2 % quantile, the diagonal among them, take the darkest colour. KlrayError
    when no pair of models has a KL above zero.
    """
    order, blocks = ordered(result)
    kl = result["kl"].isel(model=order, other=order).values
    low, high = color_limits(kl)
    if not high > 0:
        raise KlrayError(
            "a KL heat map was asked for, but no pair of models of this result has a KL above 0: "
            "check which models the analysis excluded, or score at least two that differ"
        )
    colors = matplotlib.colormaps["viridis"].with_extremes(bad="0.68")
    figure = style.new_figure(5.8, layout="compressed")
    axes = figure.add_subplot()
    image = axes.imshow(
        np.where(np.isfinite(kl), np.maximum(kl, low), np.nan),
        norm=LogNorm(low, high),
        cmap=colors,
        extent=(0, len(order), len(order), 0),
        rasterized=True,
    )
    edges = np.cumsum([0, *(size for _, size in blocks)])
    for edge in edges[1:-1]:
        axes.axhline(edge, color="white", lw=1.0)
        axes.axvline(edge, color="white", lw=1.0)
    named = [i for i, (_, size) in enumerate(blocks) if size >= _SMALLEST_NAMED * len(order)]
    middles = [(edges[i] + edges[i + 1]) / 2 for i in named]
    names = [blocks[i][0] for i in named]
    axes.set_xticks(middles, names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(middles, names)
    axes.tick_params(labelsize=style.TICK_POINTS, colors=style.INK, length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02, extend="min" if kl[kl < low].size else "neither")
    bar.set_label("KL divergence (bits/byte)", fontsize=style.LABEL_POINTS, color=style.INK)
    bar.ax.tick_params(labelsize=style.TICK_POINTS, colors=style.INK)
    style.plain_log_ticks(bar.ax.yaxis)
    bar.outline.set_visible(False)
    return figure


def kl_heatmap_caption(result: xr.Dataset) -> str:
    """What the figure shows, as one paragraph of plain text."""
    total = result.attrs.get("of_models", result.sizes["model"])
    order, _ = ordered(result)
    kl = result["kl"].isel(model=order, other=order).values
    low, _ = color_limits(kl)
    sentences = ["KL divergence of every pair of models, on a logarithmic colour scale."]
    if low > 0:
        below = int((kl[~np.eye(len(kl), dtype=bool)] < low).sum())
        whose = f"the diagonal and {below:,} of the other pairs" if below else "the diagonal"
        sentences.append(
            f"The scale starts at {significant(low, 2)} bits/byte: everything below it ({whose}) has one colour, the "
            "darkest, and differences there are not visible."
        )
    runs = trajectories(result)
    if runs:
        blocks = "runs" if len(runs) <= style.MAX_RUNS_IN_LEGEND else "sizes"
        sentences.append(
            f"Models are ordered by run and, within a run, by step (downwards and to the right); white lines separate "
            f"the {blocks}."
        )
    if any(run.superseded.size for run in runs):
        sentences.append(
            "Checkpoints whose step was scored again come after the runs, in which the last scoring stands."
        )
    if single_models(result, runs).size:
        sentences.append("Models outside any run are ordered by family and number of parameters.")
        if not own_output(result).all():
            sentences.append("Layers under a lens come last, by lens and model, each model's from first to last.")
    if total > len(order):
        sentences.append(f"Of {total:,} models, {len(order):,} are shown, taken evenly in that order.")
    without = int(result["excluded"].values.astype(bool).sum())
    if without:
        sentences.append(f"Grey: pairs without a KL (excluded: {counted(without, 'model')}).")
    return " ".join(sentences)


def color_limits(kl: np.ndarray) -> tuple[float, float]:
    """Lower and upper end of the colour scale for these pairs, in bits/byte; zeros when none has a KL above zero."""
    positive = kl[np.isfinite(kl) & (kl > 0)]
    if not positive.size:
        return 0.0, 0.0
    low, high = float(np.quantile(positive, _LOWEST_QUANTILE)), float(positive.max())
    return (low, high) if low < high else (low / 2, high * 2)


def ordered(result: xr.Dataset, most: int = MAX_MODELS) -> tuple[np.ndarray, list[tuple[str, int]]]:
    """Model positions in drawing order, thinned to ``most``, and the (name, size) of the blocks that they form."""
    runs = trajectories(result)
    singles = single_models(result, runs)
    family, parameters = strings(result, "family")[singles], result["parameters"].values[singles]
    singles = singles[np.lexsort((parameters, family))]
    own = own_output(result)[singles]
    changed = quantised(result)
    layers = singles[~own]
    keys, lenses = (strings(result, name)[layers] for name in ("key", "lens"))
    layers = layers[np.lexsort((facts(result, "layer", 0)[layers], keys, lenses))]
    again = np.concatenate([np.empty(0, np.int64), *(run.superseded for run in runs)])
    apart = {
        "scored again": again,
        "single models": singles[own & ~changed[singles]],
        "quantised": singles[own & changed[singles]],
        "layers": layers,
    }
    apart = {name: part for name, part in apart.items() if part.size}
    names, parts = [*style.run_blocks(runs), *apart], [*(run.models for run in runs), *apart.values()]
    blocks = list(dict.fromkeys(names))
    block = np.repeat([blocks.index(name) for name in names], [len(part) for part in parts])
    order = np.concatenate(parts)[np.argsort(block, kind="stable")]
    block = np.sort(block)
    if order.size > most:
        taken = np.linspace(0, order.size - 1, most).round().astype(int)
        order, block = order[taken], block[taken]
    sizes = np.bincount(block, minlength=len(blocks))
    return order, [(name, int(size)) for name, size in zip(blocks, sizes, strict=True) if size]


PLATE = Plate(
    "kl_heatmap",
    "KL between all pairs",
    "Heat map of the KL divergence in bits per byte between all pairs of models, ordered by run and step.",
    kl_heatmap,
    kl_heatmap_caption,
    of_matrix=True,
)
