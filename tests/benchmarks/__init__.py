"""Benchmarks: each prints one table, with peers measured in the same run."""
