"""Anomalous checkpoints, found by the KL between the checkpoints of a run.

Shapes: T = saved checkpoints of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NEIGHBOURS = 5  # consecutive pairs on each side that tell what is typical
_MIN_NEIGHBOURS = 4  # fewer tell nothing
_FACTOR = 3.0
_DEVIATIONS = 5.0


@dataclass(frozen=True)
class Anomaly:
    """A checkpoint that leaves its run's path and comes back; KL in bits/byte.

    ``kl_before`` and ``kl_after`` lead to the saved checkpoints on both sides, ``kl_across`` joins these two past it,
    and ``typical`` is the median of the consecutive KL nearby.
    """

    model: str
    step: int
    kl_before: float
    kl_after: float
    kl_across: float
    typical: float


def find_anomalies(labels: Sequence[str], steps: np.ndarray, kl: np.ndarray) -> list[Anomaly]:
    """Checkpoints of a run with a sudden spike of consecutive KL on both sides.

    The smaller of the two must exceed the typical consecutive KL (the median of up to 5 others before and 5 after) by
    a factor of 3 and by 5 robust standard deviations of its logarithm (1.4826 MAD), and the checkpoints on both sides
    must be closer to each other than to this one: a run that moves on, however fast, gets away from where it was.

    Parameters
    ----------
    labels : (T,) names of the checkpoints
    steps : (T,)
    kl : (T, T) bits/byte; NaN for what is left out
    """
    consecutive = np.diagonal(kl, 1)
    found = []
    for t in range(1, len(labels) - 1):
        before, after, across = float(consecutive[t - 1]), float(consecutive[t]), float(kl[t - 1, t + 1])
        earlier, later = slice(max(0, t - 1 - NEIGHBOURS), t - 1), slice(t + 1, t + 1 + NEIGHBOURS)
        near = np.concatenate([consecutive[earlier], consecutive[later]])
        near = np.log(near[near > 0])
        if len(near) < _MIN_NEIGHBOURS or not across < min(before, after):
            continue
        typical = float(np.median(near))
        spread = 1.4826 * float(np.median(np.abs(near - typical)))
        if np.log(min(before, after)) - typical > max(np.log(_FACTOR), _DEVIATIONS * spread):
            found.append(Anomaly(labels[t], int(steps[t]), before, after, across, float(np.exp(typical))))
    return found
