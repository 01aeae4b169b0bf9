"""klray: measure how language models move.

Public names are loaded when first used, so that ``import klray`` pulls in neither Ray nor Zarr, and
``klray.log_likelihood`` needs PyTorch and NumPy only.
"""

import importlib
from typing import TYPE_CHECKING, Any

from klray.errors import KlrayError, lacks

if TYPE_CHECKING:
    from klray.analysis.diffusion import diffusion_exponent
    from klray.analysis.kl.all_pairs import kl_divergence, kl_standard_error
    from klray.analysis.kl.centering import double_center
    from klray.analysis.kl.layer_kl import layer_kl
    from klray.analysis.scale.placing import place
    from klray.likelihood.lens import layer_log_likelihood
    from klray.likelihood.score import log_likelihood
    from klray.measure.token_kl import token_kl
    from klray.store import open_dataset, open_result
    from klray.watch.callback import KlrayCallback

__version__ = "0.2.0"

_HOME = {
    "KlrayCallback": "klray.watch.callback",
    "diffusion_exponent": "klray.analysis.diffusion",
    "double_center": "klray.analysis.kl.centering",
    "kl_divergence": "klray.analysis.kl.all_pairs",
    "kl_standard_error": "klray.analysis.kl.all_pairs",
    "layer_kl": "klray.analysis.kl.layer_kl",
    "layer_log_likelihood": "klray.likelihood.lens",
    "log_likelihood": "klray.likelihood.score",
    "open_dataset": "klray.store",
    "open_result": "klray.store",
    "place": "klray.analysis.scale.placing",
    "token_kl": "klray.measure.token_kl",
}

__all__ = sorted(_HOME)

_ROOMS = {
    "layers": "klray.analysis.kl.layer_kl",
    "pairs": "klray.analysis.kl.chosen_pairs",
    "relatives": "klray.analysis.relatives",
    "texts": "klray.texts",
    "watch": "klray.watch",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS and name not in _HOME:
        raise AttributeError(f"module 'klray' has no attribute {name!r}")
    try:
        module = importlib.import_module(_ROOMS.get(name) or _HOME[name])
    except ModuleNotFoundError as error:
        raise KlrayError(f"klray.{name}: {lacks(error)}") from error
    return module if name in _ROOMS else getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])
