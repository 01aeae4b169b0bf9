"""What all workers of a sweep share while it runs: the pauses that the hub asks for, and what they say for its log."""

import logging
import time
import uuid
from typing import Any

import ray
import ray.exceptions

from klray.checkpoints import Patience
from klray.words.heard import LONGEST_WARNING, kind_of
from klray.words.outside import printable
from klray.words.secrets import without_secrets

log = logging.getLogger("klray")

MOST_LINES = 500  # that nobody has fetched yet; what is said beyond is lost
SAME_SECONDS = 30.0  # between two lines of one kind

Line = tuple[str, str, str]  # host, label of the checkpoint, words


class Board(Patience):
    """The actor on the driver's node that all workers know. Ray starts it again where it ends: it is empty then."""

    def __init__(self) -> None:
        super().__init__()
        self._name = uuid.uuid4().hex
        self._lines: list[Line] = []

    def say(self, line: Line) -> None:
        """Keep a line until it is fetched."""
        if len(self._lines) < MOST_LINES:
            self._lines.append(line)

    def said(self) -> tuple[str, list[Line]]:
        """What was said since this was asked last; before it a name, which is another after each start."""
        found, self._lines = self._lines, []
        return self._name, found


class Sent(logging.Handler):
    """Hands what klray tells in a worker to the ``board``, a handle of a `Board`: not what it warns of, which is told
    with the checkpoint.
    """

    def __init__(self, board: Any, host: str):
        super().__init__(logging.INFO)
        self._board, self._host = board, host
        self.checkpoint = ""  # that is scored
        self._last: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line, unless one of its kind was sent just now."""
        if record.levelno >= logging.WARNING:
            return
        text = printable(without_secrets(" ".join(record.getMessage().split())), LONGEST_WARNING)
        kind, now = kind_of(text), time.monotonic()
        if now - self._last.get(kind, -SAME_SECONDS) >= SAME_SECONDS:
            self._last[kind] = now
            self._board.say.remote((self._host, self.checkpoint, text))


class Posted:
    """A `Board` as the driver of the sweep ``job`` has it; ``where`` is Ray's scheduling strategy for it."""

    def __init__(self, where: Any, job: str):
        self.handle: Any = ray.remote(Board).options(num_cpus=0, max_restarts=-1, scheduling_strategy=where).remote()
        self._job = job
        self._asked: Any = None
        self._name = ""
        self._last: dict[str, float] = {}  # when a line of each kind was told

    def relay(self) -> None:
        """Log what workers have said by now: of each kind one line now and then, the others for machines."""
        name, lines = self._name, list[Line]()
        try:
            if self._asked is not None:
                name, lines = ray.get(self._asked, timeout=0)
            self._asked = self.handle.said.remote()
        except ray.exceptions.GetTimeoutError:
            return
        except ray.exceptions.RayError:
            self._asked = None  # it starts again
        if self._name not in ("", name):
            log.warning(
                "the actor that holds the hub's pauses had ended and runs again; workers kept their own meanwhile"
            )
        self._name = name
        for host, checkpoint, text in lines:
            kind, now = kind_of(text), time.monotonic()
            level = logging.INFO if now - self._last.get(kind, -SAME_SECONDS) >= SAME_SECONDS else logging.DEBUG
            if level == logging.INFO:
                self._last[kind] = now
            log.log(level, "%s", text, extra={"host": host, "checkpoint": checkpoint, "job": self._job})

    def close(self) -> None:
        """End it."""
        ray.kill(self.handle)
