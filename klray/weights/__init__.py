"""Weight space: squared distances between checkpoints' parameters, from sketches or exactly, one read of each.

Only checkpoints whose parameters have the same names and shapes are comparable: ``parameters.fingerprint`` says which
do. Empty: distances between sketches need no PyTorch.
"""
