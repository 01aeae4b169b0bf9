"""Group ``adopt``: published log-likelihoods that ``klray adopt`` takes into a store."""

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

from klray.errors import KlrayError


class Inner(Enum):
    """What the inner numbers of a nested file are."""

    steps = "steps"  # of runs
    layers = "layers"  # of models, by the logit lens


@dataclass
class AdoptConfig:
    """Which file, and what it does not say of itself. Its texts are ``texts``."""

    path: str | None = None  # pickle, NPZ, JSON or Parquet
    name: str = "published"  # of the publication: what others published is told from it by this
    precision: str = "unknown"  # in which the models were scored, such as float16
    quantization: str = "none"  # int8, fp4 or nf4, if they were quantised
    family: str = ""  # default: what the file says, else the name
    repository: str = "{}"  # how a model is called on its hub, such as EleutherAI/pythia-{}; {} is its name in the file
    inner: Inner | None = None  # of files with values by numbers: steps or layers


def adopt_inner(config: AdoptConfig) -> Literal["", "steps", "layers"]:
    """What the inner numbers of the file are; "" where nobody says."""
    if config.inner is None:
        return ""
    return "steps" if config.inner is Inner.steps else "layers"


def adopt_path(config: AdoptConfig) -> Path:
    """The file; it has no default."""
    if not config.path:
        raise KlrayError("no file was named: set adopt.path= to published log-likelihoods, such as a pickle or NPZ")
    if "{}" not in config.repository:
        raise KlrayError(f"adopt.repository={config.repository}: needs {{}}, where a model's name in the file goes")
    for key in ("name", "precision", "quantization"):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value := getattr(config, key)):
            raise KlrayError(f"adopt.{key}={value}: use letters, digits, dots, dashes and underscores")
    return Path(config.path).expanduser()
