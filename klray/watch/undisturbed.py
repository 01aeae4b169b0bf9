"""Scoring in the middle of a training: nothing of the training in the scores, and nothing of the scoring in it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Python's, NumPy's and PyTorch's global generators, on the CPU and on every GPU in use, are after as before."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)


@contextmanager
def own_forward(model: Any) -> Iterator[None]:
    """The model's own forward pass inside, without the autocast that accelerate wraps it in for bf16 or fp16 training.

    accelerate puts a function in the place of ``model.forward`` that switches autocast on again, wherever it is called.
    """
    wrapped = vars(model).get("forward")
    original = vars(model).get("_original_forward")
    if wrapped is None or original is None:
        yield
        return
    model.forward = original
    try:
        yield
    finally:
        model.forward = wrapped
