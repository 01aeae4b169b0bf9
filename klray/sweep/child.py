"""A process of its own for what may take more than it should: it answers through a pipe, and is held to limits.

It is forked from a server that has imported PyTorch and used none of it, in some 0.05 s. What it leaves behind (memory
that allocators keep, kernels, caches of libraries) ends with it.
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
from collections.abc import Callable
from multiprocessing import connection, forkserver, util
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from klray.errors import CheckpointError, KlrayError
from klray.sweep.limits import Limits
from klray.sweep.processes import safe_environment, socket_folder, with_environment
from klray.words.heard import heard

log = logging.getLogger("klray")

Result = TypeVar("Result")
Tell = Callable[..., None]

BROKEN = (EOFError, BrokenPipeError, ConnectionResetError)  # what asking a process raises that has ended
_TOLD, _WARNED, _DONE, _FAILED = "told", "warned", "done", "failed"
_LOOK_SECONDS = 0.2  # between two looks at what a process takes
_IMPORTS = ("klray.sweep.preload", "klray.sweep.device", "klray.sweep.model_process")
_SOCKET = "pymp-12345678/listener-12345678"  # as multiprocessing names the server's


class Child:
    """A process, or none as yet; the server that it is forked from is started with this."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        # A child imports the main module, too, which for a Ray worker is Ray's.
        self._context.set_forkserver_preload([*_IMPORTS, *(name for name in ("ray",) if name in sys.modules)])
        _start_server()  # its imports go on while the first checkpoint is fetched
        self._process: Any = None
        self._pipe: connection.Connection | None = None

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        return self._process.pid if self._process is not None else None

    def start(self, target: Callable[..., None], *arguments: Any) -> None:
        """End the process that there is, and have another call ``target`` with its end of the pipe and these."""
        self.close()
        self._pipe, theirs = self._context.Pipe()
        process = self._context.Process(target=target, args=(theirs, *arguments), name="klray-model", daemon=True)
        try:
            process.start()
        finally:
            theirs.close()
        self._process = process

    def ask(self, question: object) -> None:
        """Send something. Raises one of `BROKEN` if the process has ended."""
        if self._pipe is None:
            raise EOFError
        self._pipe.send(question)

    def answer(self, limits: Limits, begun: float) -> tuple[str, Any]:
        """What the process, asked at ``begun``, says next.

        Raises CheckpointError (limit_exceeded): it has taken more than ``limits``; one of `BROKEN`: it has ended.
        """
        if self._pipe is None:
            raise EOFError
        limits.check(self._process.pid, begun)
        while not self._pipe.poll(_LOOK_SECONDS):
            limits.check(self._process.pid, begun)
        answer: tuple[str, Any] = self._pipe.recv()
        return answer

    def close(self) -> None:
        """End the process, and with it whatever it holds."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def ended(self) -> str:
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


def apart(work: Callable[[Tell], Result], limits: Limits, told: Tell = lambda *facts: None) -> Result:
    """What ``work`` returns, called in a process of its own; ``told`` gets what it tells meanwhile.

    Warnings are said here. Raises what it raised; CheckpointError (limit_exceeded) if it was ended because it took more
    than ``limits``, (worker_died) if it ended before its answer.
    """
    child = Child()
    try:
        begun = time.monotonic()
        child.start(_work, work)
        while (answer := child.answer(limits, begun))[0] in (_TOLD, _WARNED):
            if answer[0] == _WARNED:
                log.warning("%s", answer[1])
            else:
                told(*answer[1])
    except BROKEN as error:
        raise CheckpointError(f"the process of its model {child.ended()}", "worker_died") from error
    finally:
        child.close()
    kind, value = answer
    if kind == _FAILED:
        raise value
    result: Result = value
    return result


def _work(pipe: connection.Connection, work: Callable[[Tell], object]) -> None:
    end_with_parent()
    with heard() as warned:
        try:
            kind, value = _DONE, work(lambda *facts: pipe.send((_TOLD, facts)))
        except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
            kind, value = _FAILED, sendable(error)
        for text in warned.take():
            pipe.send((_WARNED, text))
        pipe.send((kind, value))


def end_with_parent() -> None:
    """End this process when the one that started it ends, whatever it is doing."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _start_server() -> None:
    """Start the server that processes are forked from, with a socket whose name is short enough."""
    before, tempfile.tempdir = tempfile.tempdir, socket_folder(_SOCKET)
    try:
        util.get_temp_dir()  # of mode 0700, kept for this process
    finally:
        tempfile.tempdir = before
    with with_environment(safe_environment()):
        forkserver.ensure_running()


def sendable(error: Exception) -> Exception:
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
