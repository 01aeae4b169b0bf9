"""Sweeps: score what a store lacks, on Ray actors, whatever happens to some of them.

Empty: a scorer's process must not import PyTorch, and a model's process must not import Ray.
"""
