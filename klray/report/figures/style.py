"""One look for every figure: sizes, colours of runs, legends, and how a figure becomes files."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, StrMethodFormatter
from PIL import Image

from klray.analysis.runs import Run
from klray.words.numbers import counted
from klray.words.outside import printable

WIDTH_INCHES = 7.0  # two columns of most proceedings
DPI = 220
LABEL_POINTS = 9.0
TICK_POINTS = 8.0
INK = "#222222"
MUTED = "#6b6b6b"

# Okabe & Ito (2008), without yellow and black; neighbours are related hues, so two seeds of one size look related.
PALETTE = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#5A5A5A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
MAX_RUNS_IN_LEGEND = 14
MAX_LABEL_CHARACTERS = 40


@dataclass(frozen=True)
class RunStyle:
    """How one run is drawn and named in every figure. Runs of one ``group`` share a colour."""

    color: str
    marker: str
    line: str
    group: str
    label: str


def run_styles(runs: Sequence[Run]) -> list[RunStyle]:
    """A style for each run: a colour and marker of its own for up to 7 runs, else a colour for each family and size.

    Within a group that shares a colour, markers and line patterns cycle. Beyond 7 groups the colours come from
    viridis, in the order of the groups (by family and number of parameters).
    """
    names, labels = [f"{run.family} {run.size}".strip() or run.name for run in runs], run_labels(runs)
    groups = list(dict.fromkeys(names))
    if len(runs) <= len(PALETTE):
        looks = zip(PALETTE, MARKERS, names, labels, strict=False)
        return [RunStyle(color, marker, "-", *named) for color, marker, *named in looks]
    if len(groups) <= len(PALETTE):
        colors = list(PALETTE[: len(groups)])
    else:
        viridis = matplotlib.colormaps["viridis"]
        colors = [matplotlib.colors.to_hex(viridis(0.9 * i / (len(groups) - 1))) for i in range(len(groups))]
    styles, seen = [], dict.fromkeys(groups, 0)
    for name, label in zip(names, labels, strict=True):
        place = seen[name]
        seen[name] += 1
        color = colors[groups.index(name)]
        styles.append(RunStyle(color, MARKERS[place % len(MARKERS)], LINES[place % len(LINES)], name, label))
    return styles


def run_labels(runs: Sequence[Run]) -> list[str]:
    """`short_names` as matplotlib draws them."""
    return [plain(name) for name in short_names(runs)]


def short_names(runs: Sequence[Run]) -> list[str]:
    """Names of the runs as they stand in figures: the last part of a path, the last two if one is not enough.

    Whole paths never appear: the name of a local run is its folder, which is nobody else's business.
    """
    for parts in (1, 2):
        labels = [printable("/".join(run.name.rsplit("/", parts)[-parts:]), MAX_LABEL_CHARACTERS) for run in runs]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label} ({i + 1})" for i, label in enumerate(labels)]


def run_blocks(runs: Sequence[Run]) -> list[str]:
    """What to name each run on an axis: its own label, or its group's when there are too many runs to name."""
    few = len(runs) <= MAX_RUNS_IN_LEGEND
    return [style.label if few else plain(style.group) for style in run_styles(runs)]


def plain(text: str) -> str:
    """``text`` as matplotlib shall draw it: literally. "$" opens no formula, a leading "_" does not hide a label."""
    clean = printable(text, MAX_LABEL_CHARACTERS).replace("$", r"\$")
    return f" {clean}" if clean.startswith("_") else clean


def literal(label: str) -> str:
    """The text that `plain` made ``label`` of."""
    return label.replace(r"\$", "$").removeprefix(" ")


def tint(color: str, strength: float) -> tuple[float, float, float]:
    """``color`` mixed with white: 1 is the colour itself, 0 is white."""
    red, green, blue = (1 - strength * (1 - channel) for channel in to_rgb(color))
    return red, green, blue


def new_figure(height_inches: float, layout: Literal["constrained", "compressed"] = "constrained") -> Figure:
    """An empty figure of the common width with its own Agg canvas, apart from any pyplot state."""
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, x_label: str, y_label: str, grid: bool = True) -> None:
    """Labels, tick sizes and spines in the common style."""
    axes.set_xlabel(x_label, fontsize=LABEL_POINTS, color=INK)
    axes.set_ylabel(y_label, fontsize=LABEL_POINTS, color=INK)
    axes.tick_params(labelsize=TICK_POINTS, colors=INK, width=0.6, length=3)
    axes.tick_params(which="minor", width=0.4, length=1.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_linewidth(0.6)
    if grid:
        axes.grid(which="major", color="0.90", linewidth=0.6)
        axes.set_axisbelow(True)


def plain_log_ticks(axis: Axis, subs: tuple[float, ...] = (1.0, 2.0, 5.0)) -> None:
    """Ticks of a logarithmic axis as plain numbers at ``subs`` times the powers of ten: 0.01, 0.02, 0.05, 0.1."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(LogLocator(subs="auto"))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def entry(label: str, **look: Any) -> Line2D:
    """A legend entry that looks so; ``mark`` is a marker without a line."""
    if "mark" in look:
        look |= {"ls": "", "marker": look.pop("mark")}
    return Line2D([], [], label=label, **look)


def mark_points(n_runs: int, few: float = 3.2) -> float:
    """Size of a checkpoint's mark: ``few`` points, less where there are many runs."""
    return few if n_runs <= MAX_RUNS_IN_LEGEND else 1.5


def draw_windows(axes: Axes, start: np.ndarray, values: np.ndarray, style: RunStyle, points: float) -> None:
    """What a run's windows have, by the step where they start."""
    look: dict[str, Any] = {"color": style.color, "ls": style.line, "marker": style.marker, "ms": points}
    axes.plot(start, values, lw=1.2, mew=0, label=style.label, **look)


def dress_windows(axes: Axes, y_label: str) -> None:
    """An axis of steps where windows start."""
    dress(axes, "Training step at the start of the window", y_label)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def ordinary_diffusion(axes: Axes) -> Line2D:
    """The dashed line where an exponent is 1."""
    return axes.axhline(1.0, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1, label="ordinary diffusion, c = 1")


def run_handles(styles: Sequence[RunStyle]) -> list[Artist]:
    """Legend entries, one a run, or one a group when there are more than `MAX_RUNS_IN_LEGEND` runs."""
    if len(styles) <= MAX_RUNS_IN_LEGEND:
        return [entry(each.label, color=each.color, marker=each.marker, ls=each.line, lw=1.4, ms=4) for each in styles]
    groups = [style.group for style in styles]
    return [
        entry(f"{plain(group)} ({counted(groups.count(group), 'run')})", color=styles[groups.index(group)].color, lw=2)
        for group in dict.fromkeys(groups)
    ]


def legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """A legend under the axes, where it hides no data."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    fitting = max(1, min(4, 100 // (longest + 6)))
    rows = max(1, -(-len(handles) // fitting))
    figure.legend(
        handles=list(handles),
        loc="outside lower center",
        ncols=-(-len(handles) // rows),
        fontsize=TICK_POINTS,
        frameon=False,
        labelcolor=INK,
        handlelength=2.2,
        columnspacing=1.6,
    )


def smaller(png: bytes, most_bytes: int) -> bytes:
    """The picture with half of the pixels on each side, in 256 colours, as often as it takes to fit."""
    while len(png) > most_bytes:
        with Image.open(io.BytesIO(png)) as picture:
            half = picture.convert("RGB").resize((max(picture.width // 2, 1), max(picture.height // 2, 1)))
        body = io.BytesIO()
        half.quantize(256).save(body, format="png", optimize=True)
        png = body.getvalue()
    return png


def save(figure: Figure, directory: Path, name: str) -> bytes:
    """Write ``name``.png and ``name``.pdf (embedded TrueType fonts) into ``directory``; return the PNG's bytes.

    The same figure gives the same bytes: neither file carries a date.
    """
    directory.mkdir(parents=True, exist_ok=True)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    (directory / f"{name}.png").write_bytes(image.getvalue())
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(directory / f"{name}.pdf", facecolor="white", metadata={"CreationDate": None})
    return image.getvalue()
