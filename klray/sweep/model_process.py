"""A process for each architecture: models are loaded and scored in a child of the worker, which keeps downloads going.

What an architecture leaves behind (memory that allocators keep, kernels, caches of libraries) ends with its process.
New ones are forked from a server that has imported PyTorch and used none of it, in some 0.05 s.
"""

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import connection, forkserver, util
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from klray.checkpoints import Checkpoint, architecture
from klray.errors import CheckpointError, KlrayError
from klray.sweep.limits import Limits, limits_of
from klray.sweep.processes import safe_environment, socket_folder, with_environment
from klray.sweep.replies import DeviceError
from klray.sweep.settings import Computed, Computing, ScoringSettings
from klray.texts import TextSet

log = logging.getLogger("klray")

_READ, _COMPUTED, _FAILED, _TRIED = "read", "computed", "failed", "tried"
_TRY_SECONDS = 300.0  # the libraries' imports and a small product, on a busy machine
_LOOK_SECONDS = 0.2  # between two looks at what a process takes
_IMPORTS = ("klray.sweep.preload", "klray.sweep.device", "klray.sweep.model_process")
_SOCKET = "pymp-12345678/listener-12345678"  # as multiprocessing names the server's


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
        self._context = multiprocessing.get_context("forkserver")
        # A child imports the main module, too, which for a Ray worker is Ray's.
        self._context.set_forkserver_preload([*_IMPORTS, *(name for name in ("ray",) if name in sys.modules)])
        _start_server()  # its imports go on while the first checkpoint is fetched
        self._architecture = ""
        self._process: Any = None
        self._pipe: connection.Connection | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that has the model now."""
        return self._process.pid if self._process is not None else None

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
            pipe = self._for(" ".join(map(architecture, directories)))
            pipe.send(question)
            while (answer := self._answer(pipe, limits, begun))[0] == _READ:
                pending.pop()()
            kind, value = answer
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise CheckpointError(f"the process of its model {self._ended()}", "worker_died") from error
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
            pipe = self._pipe or self._for("")
            pipe.send(_TRIED)
            if not pipe.poll(_TRY_SECONDS):
                self.close()
                raise DeviceError(f"no answer of PyTorch within {_TRY_SECONDS:.0f} s")
            kind, value = pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise DeviceError(f"the process that tried it {self._ended()}") from error
        if kind == _FAILED:
            raise value
        found: tuple[str, int] = value
        return found

    def close(self) -> None:
        """End the process, and with it whatever it holds."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _answer(self, pipe: connection.Connection, limits: Limits, begun: float) -> tuple[str, Any]:
        """What the process says next, unless it takes more than it may."""
        while not pipe.poll(_LOOK_SECONDS):
            limits.check(self._process.pid, begun)
        answer: tuple[str, Any] = pipe.recv()
        return answer

    def _for(self, wanted: str) -> connection.Connection:
        """The pipe to a process that has had no other architecture; none that has only tried the device."""
        if self._pipe is not None and not self._architecture:
            self._architecture = wanted
        if self._pipe is None or wanted != self._architecture:
            self.close()
            self._pipe, theirs = self._context.Pipe()
            process = self._context.Process(
                target=_serve, args=(theirs, *self._arguments), name="klray-model", daemon=True
            )
            try:
                process.start()
            finally:
                theirs.close()
            self._process = process
            self._architecture = wanted
        return self._pipe

    def _ended(self) -> str:
        """How the process ended, in words; it is gone after this."""
        if self._process is None:  # the server it is forked from was ended meanwhile
            self.close()
            return "could not be started"
        self._process.join(timeout=10)
        code = self._process.exitcode
        self.close()
        if code is not None and code < 0:
            return f"was killed by signal {-code} ({signal.Signals(-code).name})"
        return f"ended with exit code {code}"


def _start_server() -> None:
    """Start the server that processes are forked from, with a socket whose name is short enough."""
    before, tempfile.tempdir = tempfile.tempdir, socket_folder(_SOCKET)
    try:
        util.get_temp_dir()  # of mode 0700, kept for this process
    finally:
        tempfile.tempdir = before
    with with_environment(safe_environment()):
        forkserver.ensure_running()


def _serve(
    pipe: connection.Connection,
    settings: ScoringSettings,
    text_set: TextSet,
    make: Callable[[ScoringSettings, TextSet], Any],
) -> None:
    """Answer until the worker is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
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
            say(_FAILED, _sendable(error))
        else:
            say(_COMPUTED, computed)


def _compute(settings: ScoringSettings, text_set: TextSet) -> Computing:
    from klray.sweep.model import Compute  # noqa: PLC0415 - in the child alone: its parent takes no PyTorch

    return Compute(settings, text_set)


def _tried(device: str) -> tuple[str, int]:
    from klray.sweep.device import tried  # noqa: PLC0415 - as above

    return tried(device)


def _sendable(error: Exception) -> Exception:
    """An error as another process can raise it; a RuntimeError if it has no pickle. An unexpected one has the words of
    its traceback as a note.
    """
    if not isinstance(error, KlrayError):
        error.add_note(traceback.format_exc())
    try:
        if type(ForkingPickler.loads(ForkingPickler.dumps(error))) is type(error):
            return error
    except Exception:
        log.debug("%s cannot be sent", type(error).__name__, exc_info=True)
    return RuntimeError(f"{type(error).__name__}: {error}")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
