"""Figures of a "trajectory" result, of a scale and of a noise floor, drawn with matplotlib's object-oriented interface.

Each function takes the result Dataset (`noise_floor`: a NoiseFloor) and returns a `matplotlib.figure.Figure`, or raises
`klray.errors.KlrayError` when there is nothing to draw. Runs keep their colour through all figures; titles belong in
captions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import xarray as xr
from matplotlib.figure import Figure

from klray.figures.consecutive import consecutive_kl, consecutive_kl_caption
from klray.figures.exponents import diffusion_exponents, diffusion_exponents_caption
from klray.figures.heatmap import kl_heatmap, kl_heatmap_caption
from klray.figures.maps import model_map, model_map_caption
from klray.figures.noise import noise_floor
from klray.figures.scale import scale_violins, scale_violins_caption
from klray.figures.style import save

__all__ = [
    "PLATES",
    "Plate",
    "consecutive_kl",
    "diffusion_exponents",
    "kl_heatmap",
    "model_map",
    "noise_floor",
    "save",
    "scale_violins",
    "scale_violins_caption",
]


@dataclass(frozen=True)
class Plate:
    """A figure as a report prints it: file name, heading, text alternative, and the functions that draw and explain."""

    name: str
    heading: str
    alternative: str
    draw: Callable[[xr.Dataset], Figure]
    caption: Callable[[xr.Dataset], str]


PLATES = (
    Plate(
        "model_map",
        "Map of the models",
        "Scatter plots of the models by principal components and by t-SNE, with each training run as a path.",
        model_map,
        model_map_caption,
    ),
    Plate(
        "consecutive_kl",
        "KL between consecutive checkpoints",
        "Line plot, logarithmic on both axes, of the KL to the previous checkpoint in bits per byte by training step, "
        "one line for each run.",
        consecutive_kl,
        consecutive_kl_caption,
    ),
    Plate(
        "diffusion_exponents",
        "Diffusion exponents",
        "Line plots of the diffusion exponent and of the R squared of its fit by the start step of the window, one "
        "line for each run.",
        diffusion_exponents,
        diffusion_exponents_caption,
    ),
    Plate(
        "kl_heatmap",
        "KL between all pairs",
        "Heat map of the KL divergence in bits per byte between all pairs of models, ordered by run and step.",
        kl_heatmap,
        kl_heatmap_caption,
    ),
)
