"""A checkpoint's tensors read as they are stored, in a process of its own, for which this module is all it imports."""

from collections.abc import Callable
from pathlib import Path

from klray.checkpoints.tensors import stored_tensors
from klray.weights.parameters import parameters


def read(directory: Path, _: Callable[..., None]) -> int:
    """How many numbers the parameters in a checkpoint's folder have, each of which was copied into memory."""
    copies = [tensor.detach().clone() for tensor in parameters(stored_tensors(directory)).values()]
    return sum(each.numel() for each in copies)
