"""Group ``scoring``: how checkpoints are scored."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from klray.errors import KlrayError
from klray.likelihood import loading
from klray.likelihood.lens import LOGIT, Lens, load_translators
from klray.likelihood.quantization import check_name
from klray.sweep.settings import ScoringSettings


class Dtype(Enum):
    """Of the parameters and the arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


DTYPES: dict[Dtype, loading.Dtype] = {
    Dtype.float32: "float32",
    Dtype.bfloat16: "bfloat16",
    Dtype.float16: "float16",
}


@dataclass
class ScoringConfig:
    """How checkpoints are scored."""

    dtype: Dtype = Dtype.float32
    lens: str = "none"  # logit, or the folder of a tuned lens (klray lens): every layer is scored
    quantization: str = "none"  # int8, fp4 or nf4, by bitsandbytes
    threads: int = 1  # CPU threads of one worker
    tokens_per_batch: int | None = None  # default: 1,024 on a CPU, 16,384 on a GPU
    cache_dir: str | None = None  # downloaded checkpoints; default below the user's cache folder
    cache_gigabytes: float = 20.0  # of one worker
    sketch: int = 65_536  # buckets of the weight sketch kept with a column, a multiple of 64; 0: none


def scoring_settings(config: ScoringConfig, lens_norm: str | None = None) -> ScoringSettings:
    """How checkpoints are scored; ``lens_norm`` is the path to the final norm, where it cannot be found."""
    check_name(config.quantization)
    for name, value in (
        ("threads", config.threads),
        ("tokens_per_batch", config.tokens_per_batch),
        ("cache_gigabytes", config.cache_gigabytes),
    ):
        if value is not None and value <= 0:
            raise KlrayError(f"scoring.{name}={value}: must be above 0")
    if config.sketch < 0 or config.sketch % 64:
        raise KlrayError(f"scoring.sketch={config.sketch}: a multiple of 64, such as 65536, or 0 for no weight sketch")
    lens, folder = _lens(config.lens)
    cache = Path(config.cache_dir).expanduser() if config.cache_dir else cache_home() / "checkpoints"
    return ScoringSettings(
        dtype=DTYPES[config.dtype],
        quantization=config.quantization,
        threads=config.threads,
        tokens_per_batch=config.tokens_per_batch,
        cache_dir=str(cache.resolve()),
        cache_bytes=int(config.cache_gigabytes * 1e9),
        lens=lens,
        lens_folder=folder,
        lens_norm=lens_norm,
        sketch=config.sketch,
    )


def _lens(asked: str) -> tuple[str, str]:
    """Name of the lens that is asked for, and its folder if it is a tuned one."""
    if asked in ("none", LOGIT):
        return asked, ""
    folder = Path(asked).expanduser().resolve()
    if not folder.is_dir():
        raise KlrayError(f"scoring.lens={asked}: write none, {LOGIT}, or the folder of a tuned lens; {folder} is none")
    return Lens(load_translators(folder)).name, str(folder)


def cache_home() -> Path:
    """Where klray keeps what can be made again: $XDG_CACHE_HOME/klray, or ~/.cache/klray."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "klray"
