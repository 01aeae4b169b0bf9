"""Weight space: squared distances between checkpoints' parameters, from sketches or exactly, one read of each.

Only checkpoints whose parameters have the same names and shapes are comparable: ``fingerprint`` says which do.
"""

from klray.weights.distances import relative_error, squared_distances
from klray.weights.parameters import fingerprint, parameters
from klray.weights.sketch import SKETCH_VERSION, Sketch, sketch
from klray.weights.windows import Windows, window_bytes

__all__ = [
    "SKETCH_VERSION",
    "Sketch",
    "Windows",
    "fingerprint",
    "parameters",
    "relative_error",
    "sketch",
    "squared_distances",
    "window_bytes",
]
