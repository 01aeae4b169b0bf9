"""Group ``noise``: what klray noise measures."""

from dataclasses import dataclass, field
from pathlib import Path

from klray.config.scoring import Dtype
from klray.errors import KlrayError


@dataclass
class NoiseConfig:
    """What klray noise measures."""

    models: int = 4  # so many of the selected checkpoints, at equal distances
    dtypes: list[Dtype] = field(default_factory=lambda: list(Dtype))  # scoring.dtype is always among them
    devices: list[str] = field(default_factory=list)  # default: the CPU and, where there is one, a GPU
    # default: one text per forward (1), a quarter of what klray score takes, and that
    tokens_per_batch: list[int] = field(default_factory=list)
    path: str | None = None  # of a JSON file to be written


def noise_path(config: NoiseConfig) -> Path | None:
    """Where the noise floor is to be written; None: nowhere. Looked at first, because measuring takes long."""
    if config.path is None:
        return None
    path = Path(config.path).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        found = "is a folder" if path.is_dir() else f"would be in {path.parent}, which is no folder"
        raise KlrayError(f"noise.path={config.path}: it {found}; name a JSON file in a folder that is there")
    return path
