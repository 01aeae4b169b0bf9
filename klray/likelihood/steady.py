"""Whether a model is the same each time that it is run.

RWKV's own code divides some parameters before its first pass: such a model is another one after a pass, and so is every
copy that shares its parameters. Reformer's draws random numbers, and gives a text another number each time.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from klray.errors import CheckpointError

_TOKENS = 8


def run_once(model: Any) -> bool:
    """Run a short forward pass of ``model`` itself, in eval mode; whether that changed its parameters, also where it
    failed half way. What it raises is raised again when texts are scored.
    """
    before = _versions(model)
    with suppress(Exception), torch.no_grad():
        model(input_ids=torch.arange(_TOKENS, device=next(model.parameters()).device)[None], use_cache=False)
    return _versions(model) != before


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Raise CheckpointError (load_failed) if the parameters of ``model`` are changed inside."""
    before = _versions(model)
    yield
    if _versions(model) != before:
        raise CheckpointError(
            f"{type(model).__name__} changes its parameters when it is run, and another pass is one of another model: "
            "load it anew, and call it once in eval mode before it is scored",
            "load_failed",
        )


def randomness(device: torch.device) -> torch.Tensor:
    """State of the generators that a model on ``device`` may draw from."""
    own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return torch.cat([torch.get_rng_state(), *own])


def _versions(model: Any) -> list[int]:
    """How often each parameter was written to."""
    return [parameter._version for parameter in model.parameters()]
