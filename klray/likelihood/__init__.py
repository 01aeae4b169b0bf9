"""Tokens and a model to the log-likelihood of each text. PyTorch, transformers and NumPy alone.

Empty, so that each process imports what it needs and no more.
"""
