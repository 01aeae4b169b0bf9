"""Alignment: two checkpoints' hidden units matched by permutation, so that drift modulo that symmetry can be measured.

What a permutation of hidden units changes in the weights changes nothing in the outputs. ``symmetries`` says which
units a model can permute, ``align`` finds the permutation of one checkpoint that brings it nearest to another.
"""

from klray.weights.alignment.matching import align, aligned_squared_distance
from klray.weights.alignment.symmetry import Axis, Symmetry, permute, symmetries

__all__ = ["Axis", "Symmetry", "align", "aligned_squared_distance", "permute", "symmetries"]
