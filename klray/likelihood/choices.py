"""How a checkpoint can be scored: the names of precisions, quantisations and the logit lens. No PyTorch in here."""

from typing import Literal

from klray.errors import KlrayError, needed

Dtype = Literal["float32", "bfloat16", "float16", "float64", "auto"]
NONE = "none"
QUANTIZATIONS = (NONE, "int8", "fp4", "nf4")
LOGIT = "logit"


def check_quantization(name: str) -> None:
    """Raise KlrayError unless ``name`` is one of ``QUANTIZATIONS``."""
    if name not in QUANTIZATIONS:
        known = f"{', '.join(QUANTIZATIONS[:-1])} or {QUANTIZATIONS[-1]}"
        raise KlrayError(f"scoring.quantization={name}: there is no such quantisation; write {known}")


def lacks_quantization(name: str) -> str:
    """What to do about a missing library without which nothing is quantised; "" if all that ``name`` needs is there."""
    # transformers wants accelerate, too, to quantise with bitsandbytes
    return "" if name == NONE else needed(f"scoring.quantization={name}", "bitsandbytes", "accelerate")


def lacks_accelerate() -> str:
    """What to do about a missing accelerate, which spreads a model over several GPUs; "" if it is there."""
    return needed("a model on several GPUs (ray.gpus_per_worker above 1)", "accelerate")
