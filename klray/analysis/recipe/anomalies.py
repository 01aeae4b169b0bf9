"""Anomalous checkpoints, found by the KL between the checkpoints of a run.

Shapes: T = saved checkpoints of a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

NEIGHBOURS = 5  # others on each side that tell what is typical
MAX_WIDTH = 3  # checkpoints in a row that may be off together
_MIN_NEIGHBOURS = 4  # fewer tell nothing
_MIN_RATIO = 1.5  # of 158 clean checkpoints of the embedded families the largest has 0.98
_DEVIATIONS = 5.0  # robust standard deviations, 1.4826 MAD


@dataclass(frozen=True)
class Anomaly:
    """A checkpoint that is off its run's path, whose neighbours are not; KL in bits/byte.

    ``kl_before`` and ``kl_after`` lead to the nearest checkpoints on both sides that are on the path, ``kl_across``
    joins these two past it, and ``typical`` is the median of the consecutive KL nearby. ``ratio`` is that of
    `find_anomalies`, and ``typical_ratio`` the median of those nearby.
    """

    model: str
    step: int
    kl_before: float
    kl_after: float
    kl_across: float
    typical: float
    ratio: float
    typical_ratio: float

    @property
    def evidence(self) -> str:
        """What speaks against it, for a reader."""
        return (
            f"KL of {self.kl_before:.3g} and {self.kl_after:.3g} bits/byte to the checkpoints around it, which are "
            f"{self.kl_across:.3g} apart; {self.typical:.3g} between consecutive ones is typical nearby"
        )


def find_anomalies(labels: Sequence[str], steps: np.ndarray, kl: np.ndarray) -> list[Anomaly]:
    """Checkpoints of a run with a sudden spike of KL to both sides, in the order of their steps.

    The statistic is a ratio. Above stands the smaller KL of the two that lead to the neighbours; below stands the KL
    between these neighbours, or, if that is larger, the smaller KL of the two that lead from them further out. On a
    path of fractional Brownian motion, KL ~ |t - s|^c with any exponent c, the ratio is at most 1 whatever the spacing
    of the steps: early powers of two and missing checkpoints need no care. A checkpoint is found where its ratio
    exceeds 1.5, and the median of the ratios nearby (5 before, 5 after, without its own) by 5 robust standard
    deviations (1.4826 MAD).

    Up to 3 checkpoints in a row are found if each of them is off in this sense from the two around them. What has been
    found is left out and the rest is looked at again, the largest ratio first, so that an anomaly does not hide
    another. The first and the last checkpoint are never found: on one side nothing tells whether they are off.

    ``labels`` (T,) are names; ``kl`` (T, T) is in bits/byte, NaN for what is left out, which is passed over.
    """
    path = [t for t in range(len(labels)) if np.isfinite(kl[t, t])]
    found = []
    width = 1
    while width <= MAX_WIDTH:
        block = _most_anomalous(kl[np.ix_(path, path)], width)
        if block is None:
            width += 1
            continue
        place, ratio, typical_ratio = block
        members, before, after = path[place : place + width], path[place - 1], path[place + width]
        del path[place : place + width]
        consecutive = np.array([kl[a, b] for a, b in pairwise(path)])
        consecutive[place - 1] = 0  # across the block: of no ordinary spacing
        typical = float(np.median(_near(consecutive, place - 1, place)))
        for t in members:
            nearby = (float(kl[before, t]), float(kl[t, after]), float(kl[before, after]), typical)
            found.append(Anomaly(labels[t], int(steps[t]), *nearby, ratio, typical_ratio))
        width = 1
    return sorted(found, key=lambda anomaly: anomaly.step)


def _most_anomalous(kl: np.ndarray, width: int) -> tuple[int, float, float] | None:
    """Where the most anomalous ``width`` checkpoints in a row begin, their ratio and the typical one, or None."""
    ratios = _ratios(kl, width)
    for place in np.argsort(-ratios, kind="stable"):
        if ratios[place] <= _MIN_RATIO:
            return None
        # Without the block: it would be an outlying neighbour of those beside it.
        rest = np.delete(np.arange(len(kl)), np.s_[place : place + width])
        near = _near(_ratios(kl[np.ix_(rest, rest)], width), place - width + 1, place)
        if len(near) < _MIN_NEIGHBOURS:
            continue
        centre = float(np.median(near))
        if ratios[place] > centre + _DEVIATIONS * 1.4826 * float(np.median(np.abs(near - centre))):
            return int(place), float(ratios[place]), centre
    return None


def _ratios(kl: np.ndarray, width: int) -> np.ndarray:
    """(T,) ratio of the block of ``width`` checkpoints that begins at each; 0 where none is, or where nothing moves."""
    ratios = np.zeros(len(kl))
    for place in range(1, len(kl) - width):
        floor = _floor(kl, place - 1, place + width)
        if floor > 0:
            ratios[place] = kl[place : place + width, [place - 1, place + width]].min() / floor
    return ratios


def _floor(kl: np.ndarray, left: int, right: int) -> float:
    """KL between two neighbours of a block, or, if that is larger, the smaller one that leads from them further out.

    The latter counts where the neighbours are the same model twice, or are off themselves in the same way.
    """
    outward = [kl[left - 1, left]] if left > 0 else []
    outward += [kl[right, right + 1]] if right + 1 < len(kl) else []
    return float(max(kl[left, right], min(outward, default=0.0)))


def _near(values: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The positive among 5 values before ``start``, 5 from ``stop`` on, and those between."""
    near = values[max(0, start - NEIGHBOURS) : stop + NEIGHBOURS]
    found: np.ndarray = near[near > 0]
    return found
