"""What the actor of a worker replies: what it is, what it is not fit for, what became of a checkpoint.

Returned, not raised, so that nothing has to survive unpickling.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from klray.errors import KlrayError, Reason

Fault = Literal[
    "versions",  # other libraries than the driver has
    "folder",  # a folder of the driver's is not there, or is another
    "store",  # it is not the driver's, or cannot be written
    "disk",  # no room for a checkpoint
    "device",  # PyTorch cannot use it
    "lens",
    "start",  # it died, or said nothing, before it was examined
    "scoring",  # what failed there was scored elsewhere
]


class DeviceError(KlrayError):
    """PyTorch cannot use the device of a worker."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a worker is."""

    host: str
    node: str  # Ray's id of the node, 56 hex digits; "" outside Ray
    pid: int


@dataclasses.dataclass(frozen=True)
class WorkerFacts:
    """A worker that is fit for work."""

    place: Place
    device: str  # the GPU's name, or "cpu"
    memory_bytes: int  # of the device
    cache_bytes: int  # that it may use for checkpoints: free on its disk, and no more than the settings give it
    clock: float  # seconds since 1970, when it replied


@dataclasses.dataclass(frozen=True)
class Unfit:
    """A worker that is not: what was found there, and what to do."""

    place: Place
    fault: Fault
    found: str
    cure: str


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why a worker could not score a checkpoint."""

    reason: Reason
    message: str
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Pending:
    """A checkpoint is scored, and its column, of this key, waits in the actor for ``ScorerActor.commit``."""

    key: str
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one checkpoint: a column (this worker's, or another's that stood first)."""

    key: str
    first: bool  # False: another job had committed the same column meanwhile
    tokens: int
    taken_over: bool = False  # the values were there, of a checkpoint with the same files
    warnings: tuple[str, ...] = ()  # of the worker meanwhile
    # Of the worker's time: waiting for files, loading, scoring, committing
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
