"""Seconds and memory that one checkpoint may take, held from outside the process that has its model."""

import re
import time
from dataclasses import dataclass
from pathlib import Path

from klray.checkpoints import Checkpoint
from klray.errors import CheckpointError
from klray.likelihood.choices import NONE
from klray.sweep.settings import ScoringSettings
from klray.texts import TextSet

# By default a checkpoint is given what the slowest and most wasteful of sound ones take, several times over.
_SECONDS = 300.0  # to start a process on a busy machine
_BYTES_PER_SECOND = 5e6  # of its files, read and checked
_SECONDS_PER_TOKEN = 2e-3  # of a recurrent model in plain PyTorch
_OPERATIONS_PER_SECOND = 1e9  # of a core that others share: an idle one reaches 30 times as much
_LENS = 10.0  # times as long, where every layer is read
_BYTES_PER_TOKEN = 4.0  # of text
_BYTES = 3e9  # of PyTorch, transformers and what they keep
_COPIES = 12.0  # of the files: 4-bit weights in fp32, and the tensors that they are made from
_PACKED = 16  # times as many bytes in 16 bits as in the fewest that GGUF has
_TEXT_COPIES = 200.0  # of the texts: strings, ids, positions
BYTES_PER_BATCH_TOKEN = 1e6
BATCH = 16_384  # tokens, where the settings leave it to the device

_MEMORY = re.compile(r"^(?:RssAnon|RssShmem|VmSwap):\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Limits:
    """Of one checkpoint, from when its model's process is asked: wall-clock seconds, and bytes of that process."""

    seconds: float
    memory: float
    size: str  # what they are in proportion to, in words

    def check(self, pid: int, begun: float) -> None:
        """Raise CheckpointError (limit_exceeded) if the process ``pid``, asked at ``begun``, has taken more."""
        if time.monotonic() - begun > self.seconds:
            raise CheckpointError(
                f"it was not through within {self.seconds:,.0f} s{self.size}: its process was ended; if the checkpoint "
                "is sound and this machine slow, set scoring.limit_seconds",
                "limit_exceeded",
            )
        if (taken := memory_of(pid)) > self.memory:
            raise CheckpointError(
                f"its process took {taken / 1e9:.1f} GB of memory, and {self.memory / 1e9:.1f} GB is the limit"
                f"{self.size}: it was ended; if the checkpoint is sound, set scoring.limit_gigabytes",
                "limit_exceeded",
            )


@dataclass(frozen=True)
class Work:
    """What is done with a checkpoint, where that is more or less than to score the texts once."""

    passes: float = 1.0  # so many times as many operations as a forward pass over the texts
    copies: float = 0.0  # of its files in memory, beside those that scoring takes
    logits: float = 0.0  # bytes of logits, and what is made of them, that are in memory at once


SCORING = Work()


def limits_of(
    checkpoint: Checkpoint, text_set: TextSet | None, settings: ScoringSettings, work: Work = SCORING
) -> Limits:
    """The settings' limits, or those in proportion to the bytes of the checkpoint's files, the texts and the work.

    Without texts the files are read, and no more.
    """
    size, text_bytes = _unpacked(checkpoint), float(text_set.n_bytes.sum()) if text_set else 0.0
    seconds, memory, by = settings.limit_seconds, settings.limit_bytes, ""
    if seconds is None or memory is None:
        by = f" (by default, for files of {checkpoint.bytes / 1e6:,.1f} MB and texts of {text_bytes / 1e6:,.1f} MB)"
    if seconds is None:
        a_token = _SECONDS_PER_TOKEN + size / _OPERATIONS_PER_SECOND  # 2 bytes and 2 operations a parameter
        a_text = text_bytes / _BYTES_PER_TOKEN * a_token * (1.0 if settings.lens == NONE else _LENS)
        seconds = _SECONDS + size / _BYTES_PER_SECOND + a_text * work.passes
    if memory is None:
        batch = (settings.tokens_per_batch or BATCH) * BYTES_PER_BATCH_TOKEN if settings.device != "cpu" else 0.0
        memory = _BYTES + (_COPIES + work.copies) * size + _TEXT_COPIES * text_bytes + batch + work.logits
    return Limits(seconds, memory, by)


def _unpacked(checkpoint: Checkpoint) -> int:
    """Bytes of a checkpoint's files; of a GGUF file those of its weights in 16 bits."""
    if not checkpoint.gguf:
        return checkpoint.bytes
    most = _PACKED * checkpoint.bytes  # the number of parameters may be a stranger's word
    return min(most, 2 * checkpoint.parameters) if checkpoint.parameters else most


def memory_of(pid: int) -> float:
    """Bytes of memory that only the process ``pid`` has, as Linux counts them; 0 where that is not told."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    except OSError:
        return 0.0
    return 1024.0 * sum(int(each) for each in _MEMORY.findall(status))
