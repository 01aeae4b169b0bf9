"""Imported by the server that model processes are forked from: PyTorch and transformers, without using them."""

from klray.likelihood import loading
from klray.sweep import model  # noqa: F401

loading.import_early()
