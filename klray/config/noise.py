"""Group ``noise``: what klray noise measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from klray.config.scoring import DTYPES, Dtype
from klray.errors import KlrayError
from klray.measure.noise import Ways, available_devices
from klray.sweep.settings import ScoringSettings


@dataclass
class NoiseConfig:
    """What klray noise measures."""

    models: int = 4  # so many of the selected checkpoints, at equal distances
    dtypes: list[Dtype] = field(default_factory=lambda: list(Dtype))  # scoring.dtype is always among them
    devices: list[str] = field(default_factory=list)  # default: the CPU and, where there is one, a GPU
    # default: one text per forward (1), a quarter of what klray score takes, and that
    tokens_per_batch: list[int] = field(default_factory=list)
    path: str | None = None  # of a JSON file to be written


def noise_ways(config: NoiseConfig, settings: ScoringSettings) -> Ways:
    """In which ways checkpoints are scored to measure their noise; the first precision is that of ``klray score``."""
    if config.models < 1:
        raise KlrayError(f"noise.models={config.models}: must be 1 or more")
    if settings.quantization != "none":
        raise KlrayError(
            f"scoring.quantization={settings.quantization}: klray noise compares with float64, in which nothing is "
            "quantised; measure the model as it is, with scoring.quantization=none"
        )
    budgets = config.tokens_per_batch
    if not budgets and settings.tokens_per_batch is not None:
        budgets = [1, max(1, settings.tokens_per_batch // 4), settings.tokens_per_batch]
    return Ways(
        dtypes=tuple(dict.fromkeys([settings.dtype, *(DTYPES[dtype] for dtype in config.dtypes)])),
        devices=available_devices(config.devices),
        budgets=tuple(budgets),
        threads=settings.threads,
    )


def noise_path(config: NoiseConfig) -> Path | None:
    """Where the noise floor is to be written; None: nowhere. Looked at first, because measuring takes long."""
    if config.path is None:
        return None
    path = Path(config.path).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        found = "is a folder" if path.is_dir() else f"would be in {path.parent}, which is no folder"
        raise KlrayError(f"noise.path={config.path}: it {found}; name a JSON file in a folder that is there")
    return path
