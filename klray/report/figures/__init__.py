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

from klray.report.figures.consecutive import consecutive_kl, consecutive_kl_caption
from klray.report.figures.exponents import diffusion_exponents, diffusion_exponents_caption
from klray.report.figures.heatmap import kl_heatmap, kl_heatmap_caption
from klray.report.figures.layer_kl import layers_to_final, layers_to_final_caption
from klray.report.figures.layers import layer_threads, layer_threads_caption, shows_layers
from klray.report.figures.lineage import lineage, lineage_caption, shows_lineage
from klray.report.figures.maps import model_map, model_map_caption
from klray.report.figures.noise import noise_floor
from klray.report.figures.quantized import quantization_arrows, quantization_arrows_caption, shows_quantized
from klray.report.figures.scale import scale_violins, scale_violins_caption
from klray.report.figures.steps import shows_runs, training_paths, training_paths_caption
from klray.report.figures.style import save
from klray.report.figures.weights import kl_and_weights, kl_and_weights_caption

__all__ = [
    "LAYERS_TO_FINAL",
    "PLATES",
    "SCALE_VIOLINS",
    "Plate",
    "consecutive_kl",
    "diffusion_exponents",
    "kl_and_weights",
    "kl_heatmap",
    "layer_threads",
    "layers_to_final",
    "layers_to_final_caption",
    "lineage",
    "model_map",
    "noise_floor",
    "quantization_arrows",
    "save",
    "scale_violins",
    "scale_violins_caption",
    "training_paths",
]


@dataclass(frozen=True)
class Plate:
    """A figure as a report prints it: file name, heading, text alternative, and the functions that draw and explain.

    A report passes over a plate that does not apply: nobody would look for it in a result without such models.
    """

    name: str
    heading: str
    alternative: str
    draw: Callable[[xr.Dataset], Figure]
    caption: Callable[[xr.Dataset], str]
    applies: Callable[[xr.Dataset], bool] = lambda _: True


PLATES = (
    Plate(
        "model_map",
        "Map of the models",
        "Scatter plots of the models by principal components and by t-SNE, with each training run as a path.",
        model_map,
        model_map_caption,
    ),
    Plate(
        "training_paths",
        "Trajectories by training step",
        "Scatter plots of the checkpoints by principal components and by t-SNE, each run a path, coloured by training "
        "step on a logarithmic scale, with warm-up in open marks.",
        training_paths,
        training_paths_caption,
        shows_runs,
    ),
    Plate(
        "quantization_arrows",
        "Quantisation",
        "Scatter plots of the models by principal components and by t-SNE, with arrows from each model to its "
        "quantised selves.",
        quantization_arrows,
        quantization_arrows_caption,
        shows_quantized,
    ),
    Plate(
        "lineage",
        "Fine-tuning",
        "Scatter plots by principal components and by t-SNE of fine-tuned models and their parents, with an edge from "
        "each parent to each child.",
        lineage,
        lineage_caption,
        shows_lineage,
    ),
    Plate(
        "layer_threads",
        "Layers",
        "Scatter plots of the layers of models by principal components and by t-SNE, one row for each lens, with the "
        "layers of a model joined in order.",
        layer_threads,
        layer_threads_caption,
        shows_layers,
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
        "kl_and_weight_exponents",
        "Exponents of KL and of weights",
        "Two line plots side by side: the diffusion exponents of KL and of squared weight distance by the start step "
        "of the window, one line for each run.",
        kl_and_weights,
        kl_and_weights_caption,
    ),
    Plate(
        "kl_heatmap",
        "KL between all pairs",
        "Heat map of the KL divergence in bits per byte between all pairs of models, ordered by run and step.",
        kl_heatmap,
        kl_heatmap_caption,
    ),
)

# Of what else a report may have: the scale, and KL between layers.
SCALE_VIOLINS = Plate(
    "scale",
    "The scale",
    "Violin plot, on a logarithmic axis, of the KL of the pairs in each setting in bits per byte, with medians, "
    "quartiles and published values.",
    scale_violins,
    scale_violins_caption,
)
LAYERS_TO_FINAL = Plate(
    "layers_to_final",
    "KL between layers",
    "Line plot, logarithmic in KL, of the KL of each layer to the model's own output in bits per byte by layer, one "
    "line for each model and lens.",
    layers_to_final,
    layers_to_final_caption,
)
