"""Groups ``scoring`` and ``plan``: how checkpoints are scored, and at which rates what that costs is estimated."""

import os
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from klray.config.choices import one_of
from klray.errors import KlrayError
from klray.likelihood import choices
from klray.sweep.settings import CACHE_GIGABYTES, ScoringSettings


class Dtype(Enum):
    """Of the parameters and the arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


DTYPES: dict[Dtype, choices.Dtype] = {Dtype.float32: "float32", Dtype.bfloat16: "bfloat16", Dtype.float16: "float16"}
DEFAULT_DTYPE = Dtype(ScoringSettings.dtype)


@dataclass
class ScoringConfig:
    """How checkpoints are scored."""

    dtype: Dtype = DEFAULT_DTYPE
    lens: str = ScoringSettings.lens  # logit, or the folder of a tuned lens (klray lens): every layer is scored
    quantization: str = one_of(ScoringSettings.quantization, *choices.QUANTIZATIONS)  # by bitsandbytes
    threads: int = ScoringSettings.threads  # CPU threads of one worker
    tokens_per_batch: int | None = ScoringSettings.tokens_per_batch  # default: 1,024 on a CPU, 16,384 on a GPU
    cache_dir: str | None = None  # downloaded checkpoints; default below the user's cache folder
    cache_gigabytes: float = CACHE_GIGABYTES  # of one worker
    # Patterns of stored tensors that a model need not take, such as model.extra.*; you know that they change nothing
    allow_unused: list[str] = field(default_factory=list)
    # What one checkpoint may take before its process is ended; default: in proportion to its files and the texts
    limit_seconds: float | None = ScoringSettings.limit_seconds
    limit_gigabytes: float | None = None
    allow_lost: int = ScoringSettings.allow_lost  # texts that the tokens of a model may hold in part
    # Buckets of the weight sketch kept with a column, a multiple of 64; 0: none
    sketch: int = ScoringSettings.sketch


@dataclass
class PlanConfig:
    """The rates of klray plan's estimate."""

    # What one worker reaches. Default: 40 % of an H100's peak in scoring.dtype; of CPU cores for the embedded family,
    # and where this machine is to score and has no GPU.
    device_tflops: float | None = None
    gigabits: float = 10.0  # 1e9 bits a second, of the link to the hub that all workers share
    bytes_per_token: float = 4.0  # of text
    kl: float | None = None  # bits/byte: how many texts measure it with plan.standard_error
    standard_error: float | None = None  # bits/byte, wanted of plan.kl


def check_above_zero(group: str, config: object, *names: str) -> None:
    """KlrayError where one of these keys of a group has a value that is not above 0."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise KlrayError(f"{group}.{name}={value}: must be above 0")


def cache_home() -> Path:
    """Where klray keeps what can be made again: $XDG_CACHE_HOME/klray, or ~/.cache/klray."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "klray"
