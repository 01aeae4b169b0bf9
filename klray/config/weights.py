"""Group ``weights``: what klray weights measures exactly."""

from dataclasses import dataclass
from enum import Enum

from klray.config.scoring import check_above_zero


class Align(Enum):
    """What is matched by permutation before distances are measured once more."""

    none = "none"
    units = "units"  # hidden units of the MLPs and attention heads
    residual = "residual"  # these, and the residual stream


@dataclass
class WeightsConfig:
    """What klray weights measures; windows are those of ``analysis``."""

    name: str = "weights"  # of the result, which klray analyze takes as analysis.weights
    align: Align = Align.none
    memory_gigabytes: float = 8.0  # of the window: its checkpoints and one more, as they are stored


def weights_memory_bytes(config: WeightsConfig) -> int:
    """The budget in bytes."""
    check_above_zero("weights", config, "memory_gigabytes")
    return int(config.memory_gigabytes * 1e9)
