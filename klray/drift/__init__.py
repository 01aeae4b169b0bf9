"""Drift in weight space: how far the parameters of each run move, from sketches in a store or from its checkpoints."""

from klray.drift.columns import Sketches, drift_bytes, exact_drift, exponents, sketched_drift
from klray.drift.exact import Measured, as_dataset, is_exact, measure_run

__all__ = [
    "Measured",
    "Sketches",
    "as_dataset",
    "drift_bytes",
    "exact_drift",
    "exponents",
    "is_exact",
    "measure_run",
    "sketched_drift",
]
