"""Exact squared distances of each checkpoint of a run to those before it, each checkpoint read once.

Shapes: T = checkpoints of a run, W = checkpoints before it that each is compared with.
"""

from collections import deque
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch

from klray.errors import KlrayError
from klray.weights.parameters import fingerprint, parameters

Named = Mapping[str, torch.Tensor]
Distance = Callable[[Named, Named], float]

_AT_ONCE = 2**20  # entries: 8 MiB of float64, twice


def window_bytes(checkpoint_bytes: int, window: int, aligned: bool = False) -> int:
    """Bytes that a window holds at most: W + 1 parameter sets as they are stored, and the parts being subtracted.

    A copy of one set that is being permuted comes on top where distances are ``aligned``, in float32 or wider: twice
    what a 16-bit file holds, and as much again for the products of one matching.
    """
    return (window + 1) * checkpoint_bytes + 3 * 8 * _AT_ONCE + (6 * checkpoint_bytes if aligned else 0)


def squared_distance(one: Named, other: Named) -> float:
    """||a - b||^2 over all parameters, the stored values, subtracted and summed in float64."""
    total = 0.0
    for name, tensor in one.items():
        a, b = tensor.reshape(-1), other[name].reshape(-1)
        for start in range(0, len(a), _AT_ONCE):
            difference = a[start : start + _AT_ONCE].double() - b[start : start + _AT_ONCE].double()
            total += float(difference @ difference)
    return total


class WindowDistances:
    """The last W parameter sets of a run, and the squared distances (T, T) that they gave so far.

    Give it each checkpoint once, in the order of its steps: it keeps a copy until W others came after it.
    ``distances`` maps a name to what is measured between two sets; the first one is ``squared_distance``.
    """

    def __init__(self, window: int, distances: Mapping[str, Distance] | None = None):
        self.distances: dict[str, Distance] = {"raw": squared_distance, **(distances or {})}
        self._kept: deque[tuple[str, dict[str, torch.Tensor]]] = deque(maxlen=window)
        self._print = ""
        self._rows: dict[str, list[list[float]]] = {name: [] for name in self.distances}

    def add(self, label: str, stored: Named) -> None:
        """Compare a checkpoint, called ``label`` in messages, with those before it, and keep a copy of it.

        Raises KlrayError if its parameters have other names or shapes than those before, or are stored as integers.
        """
        named = parameters(stored)
        print_ = fingerprint(named)
        if self._print and print_ != self._print:
            before = self._kept[-1][1]
            unlike = sorted(
                name
                for name in before.keys() | named.keys()
                if name not in before or name not in named or before[name].shape != named[name].shape
            )
            raise KlrayError(
                f"{label} and {self._kept[-1][0]} are not comparable: {len(unlike)} parameters have other names or "
                f"shapes ({', '.join(unlike[:3])}); give each architecture as a run of its own"
            )
        self._print = print_
        copy = {name: tensor.detach().clone() for name, tensor in named.items()}
        for name, distance in self.distances.items():
            self._rows[name].append([distance(copy, earlier) for _, earlier in self._kept])
        self._kept.append((label, copy))

    def matrix(self, name: str = "raw") -> npt.NDArray[np.float64]:
        """Squared distances (T, T), symmetric; NaN for pairs that were never in one window."""
        rows = self._rows[name]
        found = np.full((len(rows), len(rows)), np.nan)
        np.fill_diagonal(found, 0.0)
        for later, values in enumerate(rows):
            for back, value in enumerate(reversed(values), start=1):
                found[later, later - back] = found[later - back, later] = value
        return found
