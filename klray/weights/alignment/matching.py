"""Matching: the permutations of one checkpoint's hidden units that bring it nearest to another checkpoint."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from klray.weights.alignment.symmetry import Symmetry, permute
from klray.weights.windows import squared_distance

# A bound: symmetries that do not share a tensor settle in one sweep, those with the residual stream in a few.
SWEEPS = 50


def align(
    reference: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], symmetries: Sequence[Symmetry]
) -> dict[str, torch.Tensor]:
    """``other`` with its units permuted, as near to ``reference`` as found; its outputs are those of ``other``.

    A permutation P changes ||a - P b||^2 only by -2 <a, P b>, which is a linear assignment problem for one symmetry
    while the others rest: it is solved exactly, symmetry by symmetry, until a sweep changes nothing (the weight
    matching of Ainsworth et al., arXiv:2209.04836). Every step brings the two nearer, so that the end is at most as
    far as the beginning; it is a local minimum where symmetries share tensors.

    Both have the same names and shapes.
    """
    current = dict(other)
    for _ in range(SWEEPS):
        moved = False
        for symmetry in symmetries:
            gain = _products(reference, current, symmetry)
            _, order = linear_sum_assignment(gain, maximize=True)
            stay = float(np.trace(gain))
            better = float(gain[np.arange(symmetry.units), order].sum()) - stay
            # Equal units may be exchanged for ever: only what is more than the rounding of the products counts.
            if better > 1e-9 * float(np.abs(gain).sum()) / symmetry.units:
                current = permute(current, symmetry, order)
                moved = True
        if not moved:
            break
    return current


def aligned_squared_distance(
    reference: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], symmetries: Sequence[Symmetry]
) -> float:
    """||a - P b||^2 with the permutations P that ``align`` finds; float64, in the square of the parameters' unit."""
    return squared_distance(reference, align(reference, other, symmetries))


def _products(
    reference: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], symmetry: Symmetry
) -> np.ndarray:
    """(units, units) float64: the inner product of unit i of ``reference`` with unit j of ``other``, over all axes."""
    total = np.zeros((symmetry.units, symmetry.units))
    for axis in symmetry.axes:
        a, b = (
            named[axis.tensor].narrow(axis.axis, axis.start, axis.length).movedim(axis.axis, 0).double()
            for named in (reference, other)
        )
        total += (a.reshape(symmetry.units, -1) @ b.reshape(symmetry.units, -1).T).numpy()
    return total
