"""Sweeps: score what a store lacks, on Ray actors, whatever happens to some of them."""

from klray.sweep.sweeping import SweepReport, missing, sweep

__all__ = ["SweepReport", "missing", "sweep"]
