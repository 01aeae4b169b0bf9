"""A figure as a report prints it."""

from collections.abc import Callable
from dataclasses import dataclass

import xarray as xr
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plate:
    """File name, heading and text alternative of a figure, and the functions that draw and explain it.

    A report passes over a plate that does not apply: nobody would look for it in a result without such models.
    """

    name: str
    heading: str
    alternative: str
    draw: Callable[[xr.Dataset], Figure]
    caption: Callable[[xr.Dataset], str]
    applies: Callable[[xr.Dataset], bool] = lambda _: True
    of_matrix: bool = False  # drawn from the KL of all pairs, or from that of a sample of the models
