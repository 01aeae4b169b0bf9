"""Architectures of transformers, built tiny: what klray scores of each against one text per forward in float64.

``python -m tests.architectures [NAME ...]`` prints the table of docs/measurements.md.
"""
