"""How checkpoints are scored, on which cluster, and what comes of one.

Defaults of the config's groups ``scoring`` and ``ray``; light, since help on the command line comes from them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from klray.errors import KlrayError
from klray.likelihood.choices import NONE, Dtype

if TYPE_CHECKING:
    import numpy as np

    from klray.checkpoints import Checkpoint
    from klray.store import Identity


CACHE_GIGABYTES = 20.0  # of checkpoints on the disk of one worker


@dataclasses.dataclass(frozen=True)
class ScoringSettings:
    """How checkpoints are scored; ``dtype``, ``quantization`` and ``lens`` are part of a column's identity."""

    dtype: Dtype = "float32"
    quantization: str = NONE
    device: str = "cpu"
    threads: int = 1  # CPU threads of one worker: fixed, because they decide the last bits
    tokens_per_batch: int | None = None  # None: what suits the device
    cache_dir: str = ""
    cache_bytes: int = int(CACHE_GIGABYTES * 1e9)  # of one worker
    lens: str = NONE  # "logit" or the name of a tuned lens: a row for every layer
    lens_folder: str = ""  # of a tuned lens, where every worker can read it
    lens_norm: str | None = None  # path to the final norm, where it cannot be found
    allow_unused: tuple[str, ...] = ()  # patterns of stored tensors that a model need not take
    allow_lost: int = 0  # texts of which the tokens may lack something
    sketch: int = 65_536  # buckets of the weight sketch, 0 for none; no part of a column's identity
    limit_seconds: float | None = None  # of one checkpoint; None: in proportion to its files and the texts
    limit_bytes: float | None = None  # memory of one checkpoint's process; None: as above

    def identity(self, checkpoint: "Checkpoint", text_set: str) -> "Identity":
        """Identity of the column that these settings give for ``checkpoint``."""
        return self.identity_of(checkpoint.repository, checkpoint.commit, text_set)

    def identity_of(self, repository: str, commit: str, text_set: str) -> "Identity":
        """The same, of a repository's commit."""
        from klray.store import Identity  # noqa: PLC0415 - the store's libraries take a second, and help needs none

        return Identity(repository, commit, text_set, self.dtype, self.quantization, self.lens)


LOCAL = "local"


@dataclasses.dataclass
class RaySettings:
    """The Ray cluster that scores: the config's group ``ray``. Not frozen, because what Hydra composes is not."""

    # None: the cluster whose job this is, else one of this machine, for the length of the run; "local": always the
    # latter; "auto" or host:port: one that runs
    address: str | None = None
    workers: int | None = None  # None: as many as the cluster has, or can grow to
    # A share of one, or several for a model that is too large for one; None: where the cluster has GPUs one, or of a
    # large one a share, if all models are small (klray.sweep.gpu_share); else none
    gpus_per_worker: float | None = None
    memory_gigabytes: float | None = None  # that a node must have free for each worker; None: not asked for
    accelerator: str | None = None  # Ray's name of the kind of GPU, such as H100
    labels: Any = None  # of nodes, by name, as Ray's label selectors
    resources: Any = None  # custom ones of each worker, by name
    # Counters and gauges for Prometheus. A cluster of klray's own then opens the port of Ray's exporter on 127.0.0.1,
    # which wants no token; one that is joined exports as it was started to.
    metrics: bool = False
    max_attempts: int = 2  # of one checkpoint, when the process that scores it dies

    def __post_init__(self) -> None:
        for name, value in (("workers", self.workers), ("max_attempts", self.max_attempts)):
            if value is not None and value < 1:
                raise KlrayError(f"ray.{name}={value}: must be 1 or more")
        for name, value in (("labels", self.labels), ("resources", self.resources)):
            if value is not None and not isinstance(value, Mapping):
                raise KlrayError(f"ray.{name}={value}: write names and values, as in 'ray.{name}={{name: value}}'")
        if self.memory_gigabytes is not None and self.memory_gigabytes <= 0:
            raise KlrayError(f"ray.memory_gigabytes={self.memory_gigabytes:g}: must be above 0")


@dataclasses.dataclass(frozen=True, eq=False)
class Computed:
    """What a model gives for the N texts."""

    log_likelihood: "np.ndarray"  # (layers, N) float64, nats; one row, the model's own output, without a lens
    layers: tuple[int, ...]  # their numbers: (-1,) without a lens, else 0 to L
    n_tokens: "np.ndarray"  # (N,) int64 tokens counted in each text
    facts: Mapping[str, Any]  # what is known of the model and of how it was scored
    # Seconds: load_seconds, score_seconds, sketch_seconds, and start_seconds where a process was started for it
    timings: Mapping[str, float]
    weight_sketch: "np.ndarray | None"  # (buckets,) float32, if one was taken


class Computing(Protocol):
    """What scores a checkpoint from its folder, here or in a process of its own."""

    def score(self, checkpoint: "Checkpoint", directory: Path, read: Callable[[], None]) -> Computed:
        """Score the texts; ``read`` is called once, as soon as the folder's files are needed no longer, come what may.

        Raises CheckpointError if this checkpoint cannot be scored.
        """
