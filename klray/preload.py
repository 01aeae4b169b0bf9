"""Imported by the server that model processes are forked from: PyTorch and transformers, without using them."""

from klray import compute, models

__all__ = ["compute"]

models.import_early()
