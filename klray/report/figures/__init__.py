"""Figures of a "trajectory" result, of a scale and of a noise floor, drawn with matplotlib's object-oriented interface.

A file for each figure, and in it the function that draws, the one that explains, and the plate that a report prints.
The first takes the result Dataset (`noise_marks`: a NoiseFloor) and returns a `matplotlib.figure.Figure`, or raises
`klray.errors.KlrayError` when there is nothing to draw. Runs keep their colour through all figures; titles belong in
captions.
"""

import contextlib
import importlib

# matplotlib follows a file matplotlibrc of the working directory when it is imported; before 3.11 it runs code in it.
with contextlib.chdir("/"):
    importlib.import_module("matplotlib")

from klray.report.figures import (
    consecutive_kl,
    diffusion_exponents,
    kl_heatmap,
    layer_threads,
    lineage_edges,
    model_map,
    quantization_arrows,
    training_paths,
    weight_exponents,
)

# Of a "trajectory" result, in the order of the page. The scale and the KL between layers have plates of their own.
PLATES = (
    model_map.PLATE,
    training_paths.PLATE,
    quantization_arrows.PLATE,
    lineage_edges.PLATE,
    layer_threads.PLATE,
    consecutive_kl.PLATE,
    diffusion_exponents.PLATE,
    weight_exponents.PLATE,
    kl_heatmap.PLATE,
)
