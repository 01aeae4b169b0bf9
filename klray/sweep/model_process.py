"""A process for each architecture: models are loaded and scored in a child of the worker, which keeps downloads going.

What an architecture leaves behind (memory that allocators keep, kernels, caches of libraries) ends with its process.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import Any

from klray.checkpoints import Checkpoint, architecture
from klray.errors import CheckpointError
from klray.sweep.child import BROKEN, Child, end_with_parent, sendable
from klray.sweep.limits import Limits, limits_of
from klray.sweep.replies import DeviceError
from klray.sweep.settings import Computed, Computing, ScoringSettings
from klray.texts import TextSet

_READ, _COMPUTED, _FAILED, _TRIED = "read", "computed", "failed", "tried"
# The libraries' imports and a small product, on a busy machine
_TRYING = Limits(seconds=300.0, memory=math.inf, size="")


class ModelProcess:
    """Scores as ``klray.sweep.model.Compute`` does, in a process that is replaced when another architecture comes.

    ``make`` is called there for what is asked, in place of ``Compute``: an object with another ``score``.
    """

    def __init__(
        self,
        settings: ScoringSettings,
        text_set: TextSet,
        make: Callable[[ScoringSettings, TextSet], Any] | None = None,
    ):
        self._arguments = (settings, text_set, make or _compute)
        self._architecture = ""
        self._child = Child()

    @property
    def pid(self) -> int | None:
        """Of the process that has the model now."""
        return self._child.pid

    def score(self, checkpoint: Checkpoint, directory: Path, read: Callable[[], None]) -> Computed:
        """As ``Computing.score``; CheckpointError (worker_died) if the process ends before its answer, (limit_exceeded)
        if it is ended because it took more seconds or memory than ``limits_of`` gives the checkpoint.
        """
        begun, before = time.monotonic(), self.pid
        limits = limits_of(checkpoint, self._arguments[1], self._arguments[0])
        computed: Computed = self.ask((checkpoint, directory), [directory], limits, read)
        if self.pid == before:
            return computed
        started = time.monotonic() - begun - computed.timings["load_seconds"] - computed.timings["score_seconds"]
        return replace(computed, timings={**computed.timings, "start_seconds": started})

    def ask(
        self,
        question: tuple[Any, ...],
        directories: Sequence[Path],
        limits: Limits,
        read: Callable[[], None] = lambda: None,
    ) -> Any:
        """What ``score(*question, read)`` returns in the process, which has had no others than these architectures.

        Raises as ``score`` here does.
        """
        pending = [read]
        begun = time.monotonic()
        try:
            wanted = " ".join(map(architecture, directories))
            if self.pid is None or self._architecture not in (wanted, ""):  # one that tried the device has had none
                self._child.start(_serve, *self._arguments)
            self._architecture = wanted
            self._child.ask(question)
            while (answer := self._child.answer(limits, begun))[0] == _READ:
                pending.pop()()
            kind, value = answer
        except BROKEN as error:
            raise CheckpointError(f"the process of its model {self._child.ended()}", "worker_died") from error
        except BaseException:
            self.close()  # its answer, still to come, is to nothing that will be asked
            raise
        finally:
            for each in pending:
                each()
        if kind == _FAILED:
            if isinstance(value, CheckpointError) and value.reason == "timed_out":
                self.close()  # what took so long goes on in it
            raise value
        return value

    def try_device(self) -> tuple[str, int]:
        """Name and bytes of memory of the device, once a process has the lens and a product on the device is right.

        Raises DeviceError; KlrayError as ``load_lens``; what PyTorch raises.
        """
        try:
            if self.pid is None:
                self._architecture = ""
                self._child.start(_serve, *self._arguments)
            self._child.ask(_TRIED)
            kind, value = self._child.answer(_TRYING, time.monotonic())
        except CheckpointError as error:
            self.close()
            raise DeviceError(f"no answer of PyTorch within {_TRYING.seconds:.0f} s") from error
        except BROKEN as error:
            raise DeviceError(f"the process that tried it {self._child.ended()}") from error
        if kind == _FAILED:
            raise value
        found: tuple[str, int] = value
        return found

    def close(self) -> None:
        """End the process, and with it whatever it holds."""
        self._child.close()


def _serve(
    pipe: connection.Connection,
    settings: ScoringSettings,
    text_set: TextSet,
    make: Callable[[ScoringSettings, TextSet], Any],
) -> None:
    """Answer until the worker is gone."""
    end_with_parent()
    compute: Any = None
    lock = threading.Lock()

    def say(kind: str, value: object = None) -> None:
        with lock:  # files may be done with on another thread
            pipe.send((kind, value))

    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        try:
            compute = compute or make(settings, text_set)
            if asked == _TRIED:
                say(_TRIED, _tried(settings.device))
                continue
            computed = compute.score(*asked, partial(say, _READ))
        except Exception as error:  # noqa: BLE001 - it is raised in the worker, by which it is recorded
            say(_FAILED, sendable(error))
        else:
            say(_COMPUTED, computed)


def _compute(settings: ScoringSettings, text_set: TextSet) -> Computing:
    from klray.sweep.model import Compute  # noqa: PLC0415 - in the child alone: its parent takes no PyTorch

    return Compute(settings, text_set)


def _tried(device: str) -> tuple[str, int]:
    from klray.sweep.device import tried  # noqa: PLC0415 - as above

    return tried(device)
