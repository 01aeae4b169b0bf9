"""Imported by the server that model processes are forked from: PyTorch and transformers, without using them."""

from klray.likelihood import loading
from klray.sweep import model

__all__ = ["model"]

loading.import_early()
