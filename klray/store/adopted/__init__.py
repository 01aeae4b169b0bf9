"""Log-likelihoods that others published, as columns of a store.

pickles   a pickle of arrays, read without running anything
files     models and values of a file: pickle, NPZ, JSON, Parquet
parquet   tables: the only door to pyarrow
adopting  what a file holds, looked at, as columns
"""
