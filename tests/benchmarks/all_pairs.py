"""All pairs of 1,018 models on 10,000 texts in float64, beside SciPy's pair loop and a plain matrix product."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import pdist

import klray
from tests.benchmarks.machine import seconds, table


def main() -> str:
    """Measure and return the table."""
    generator = np.random.default_rng(0)
    values = generator.normal(-700, 200, (1, 10_000)) + generator.normal(0, 20, (1018, 10_000))
    text_bytes = np.full(10_000, 900)
    product = seconds(lambda: values @ values.T)
    rows = [("all pairs, 1,018 x 10,000", "seconds", "x one GEMM")]
    for name, work in (
        ("one GEMM (numpy)", lambda: values @ values.T),
        ("scipy pdist sqeuclidean", lambda: pdist(values, "sqeuclidean")),
        ("klray.kl_divergence", lambda: klray.kl_divergence(values, text_bytes)),
        ("klray.kl_standard_error", lambda: klray.kl_standard_error(values, text_bytes)),
    ):
        taken = seconds(work, repeats=1 if "pdist" in name else 3)
        rows.append((name, f"{taken:.3f}", f"{taken / product:.1f}"))
    return table("All pairs", rows)
