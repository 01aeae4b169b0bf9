"""klray: measure how language models move.

Public names are loaded when first used, so that ``import klray`` pulls in neither Ray nor Zarr, and
``klray.log_likelihood`` needs PyTorch and NumPy only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from klray.centering import double_center
    from klray.diffusion import diffusion_exponent
    from klray.divergence import kl_divergence, kl_standard_error
    from klray.layers import layer_kl
    from klray.lens import layer_log_likelihood
    from klray.likelihood import log_likelihood
    from klray.scale import place
    from klray.store import open_dataset, open_result
    from klray.watch.callback import KlrayCallback

__version__ = "0.1.0"

_HOME = {
    "KlrayCallback": "klray.watch.callback",
    "diffusion_exponent": "klray.diffusion",
    "double_center": "klray.centering",
    "kl_divergence": "klray.divergence",
    "kl_standard_error": "klray.divergence",
    "layer_kl": "klray.layers",
    "layer_log_likelihood": "klray.lens",
    "log_likelihood": "klray.likelihood",
    "open_dataset": "klray.store",
    "open_result": "klray.store",
    "place": "klray.scale",
}

__all__ = [
    "KlrayCallback",
    "diffusion_exponent",
    "double_center",
    "kl_divergence",
    "kl_standard_error",
    "layer_kl",
    "layer_log_likelihood",
    "log_likelihood",
    "open_dataset",
    "open_result",
    "place",
]


_ROOMS = ("layers", "pairs", "relatives", "texts", "watch")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"klray.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'klray' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])
