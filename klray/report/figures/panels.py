"""Side by side: a map by principal components and the same by t-SNE."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from klray.report.figures.style import INK, PALETTE, TICK_POINTS, dress

# The palette with unlike hues first: here neighbours are not related, as two seeds of one size are.
COLORS = (*PALETTE[0:6:2], *PALETTE[1:6:2], PALETTE[6])

Draw = Callable[[Axes, np.ndarray], None]


def two_columns(coordinates: np.ndarray) -> np.ndarray:
    """(K, 2) of (K, n) coordinates: two models span one dimension only, and the second axis is then zero."""
    if coordinates.shape[1] < 2:
        return np.column_stack([coordinates, np.where(np.isfinite(coordinates), 0.0, np.nan)])
    return coordinates[:, :2]


def on_map(result: xr.Dataset, name: str) -> np.ndarray:
    """(K,) bool: the models that have coordinates in the variable."""
    found: np.ndarray = np.isfinite(two_columns(result[name].values)).all(1)
    return found


def has_points(result: xr.Dataset, name: str) -> bool:
    """Whether the result has the variable, and in it a model with coordinates."""
    return name in result and bool(on_map(result, name).any())


def panels_of(result: xr.Dataset, stem: str) -> list[str]:
    """Those of ``stem``_pca and ``stem``_tsne that the result has."""
    return [name for name in (f"{stem}_pca", f"{stem}_tsne") if has_points(result, name)]


def draw_panels(figure: Figure, result: xr.Dataset, stem: str, draw: Draw, box: bool = False) -> list[Axes]:
    """Call ``draw(axes, points (K, 2))`` once for each panel, and dress its axes; each panel has one scale.

    With ``box`` the limits that ``draw`` sets are kept, and the panel is made square for them.
    """
    panels = panels_of(result, stem)
    drawn = []
    for index, name in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        draw(axes, two_columns(result[name].values))
        named = result[name].attrs.get("explained_variance_ratio", [])
        dress_panel(axes, name, [] if isinstance(named, str) else named, box)
        drawn.append(axes)
    return drawn


def dress_panel(axes: Axes, name: str, shares: Sequence[float] = (), box: bool = False, margin: float = 0.08) -> None:
    """Labels and one scale for both axes of the map ``name``; t-SNE's axes mean nothing and carry no ticks."""
    if name.endswith("_pca"):
        shown = [f", {share:.0%} of variance" for share in shares] + ["", ""]
        dress(axes, f"PC 1{shown[0]} [√(bits/byte)]", f"PC 2{shown[1]} [√(bits/byte)]")
    else:
        dress(axes, "t-SNE 1", "t-SNE 2")
        axes.set_xticks([])
        axes.set_yticks([])
    axes.set_aspect("equal", adjustable="box" if box else "datalim")
    axes.margins(margin)


def marks(axes: Axes, points: np.ndarray, **look: Any) -> PathCollection:
    """A mark that looks so at each of the points (n, 2)."""
    return axes.scatter(points[:, 0], points[:, 1], **look)


def write_beside(axes: Axes, point: np.ndarray, text: str) -> None:
    """A small name beside a mark at ``point`` (2,)."""
    place: dict[str, Any] = {"xytext": (4, 4), "textcoords": "offset points"}
    axes.annotate(text, tuple(point.tolist()), fontsize=TICK_POINTS - 1, color=INK, zorder=6, **place)


def arrow(axes: Axes, start: np.ndarray, end: np.ndarray, color: str, line: str = "-") -> None:
    """An arrow from the mark at ``start`` (2,) to the one at ``end`` (2,)."""
    head = {"arrowstyle": "-|>", "mutation_scale": 7, "shrinkA": 2, "shrinkB": 2}
    style = {**head, "lw": 1.0, "color": color, "ls": line}
    axes.annotate("", xy=tuple(end.tolist()), xytext=tuple(start.tolist()), arrowprops=style, zorder=3)
