"""Alignment: two checkpoints' hidden units matched by permutation, so that drift modulo that symmetry can be measured.

What a permutation of hidden units changes in the weights changes nothing in the outputs. ``symmetry`` says which
units a model can permute, ``matching`` finds the permutation of one checkpoint that brings it nearest to another.
"""
