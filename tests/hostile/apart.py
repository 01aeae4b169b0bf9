"""Work for a process of its own, in a module that such a process imports at once."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable

from klray.errors import CheckpointError


def takes_memory(tell: Callable[[str], None]) -> None:
    tell("it begins")
    taken = bytearray(10**9)
    for start in range(0, len(taken), 4096):
        taken[start] = 1
    waits(tell)


def waits(tell: Callable[[str], None]) -> None:
    threading.Event().wait()


def warns_and_tells(tell: Callable[[str], None]) -> str:
    tell("half")
    logging.getLogger("klray").warning("one thing")
    return "done"


def is_refused(tell: Callable[[str], None]) -> None:
    raise CheckpointError("no", "not_causal")


def is_killed(tell: Callable[[str], None]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
