"""A process for each architecture: models are loaded and scored in a child of the worker, which keeps downloads going.

What an architecture leaves behind (memory that allocators keep, kernels, caches of libraries) ends with its process.
New ones are forked from a server that has imported PyTorch and used none of it, in some 0.05 s.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing import connection, forkserver
from pathlib import Path
from types import TracebackType
from typing import Any

from klray.checkpoints import Checkpoint, architecture
from klray.errors import CheckpointError
from klray.scoring import Computed, ScoringSettings
from klray.texts import TextSet

log = logging.getLogger("klray")

_READ, _COMPUTED, _FAILED = "read", "computed", "failed"
_IMPORTS = ("klray.preload", "klray.processes")


class ModelProcess:
    """Scores as ``klray.compute.Compute`` does, in a process that is replaced when another architecture comes."""

    def __init__(self, settings: ScoringSettings, text_set: TextSet):
        self._arguments = (settings, text_set)
        self._context = multiprocessing.get_context("forkserver")
        # A child imports the main module, too, which for a Ray worker is Ray's.
        self._context.set_forkserver_preload([*_IMPORTS, *(name for name in ("ray",) if name in sys.modules)])
        forkserver.ensure_running()  # its imports go on while the first checkpoint is fetched
        self._architecture = ""
        self._process: Any = None
        self._pipe: connection.Connection | None = None

    def __enter__(self) -> ModelProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Of the process that has the model now."""
        return self._process.pid if self._process is not None else None

    def score(self, checkpoint: Checkpoint, directory: Path, read: Callable[[], None]) -> Computed:
        """As ``klray.scoring.Computing.score``; CheckpointError (worker_died) if the process ends before its answer."""
        pending = [read]
        try:
            pipe = self._for(architecture(directory))
            pipe.send((checkpoint, directory))
            while True:
                kind, value = pipe.recv()
                if kind == _READ:
                    pending.pop()()
                elif kind == _COMPUTED:
                    computed: Computed = value
                    return computed
                else:
                    error, trace = pickle.loads(value)  # noqa: S301 - what our own child wrote
                    log.debug("%s", trace)
                    raise error
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise CheckpointError(f"the process of its model {self._ended()}", "worker_died") from error
        finally:
            for each in pending:
                each()

    def close(self) -> None:
        """End the process, and with it whatever it holds."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _for(self, wanted: str) -> connection.Connection:
        """The pipe to a process that has had no other architecture."""
        if self._pipe is None or wanted != self._architecture:
            self.close()
            self._pipe, theirs = self._context.Pipe()
            self._process = self._context.Process(
                target=_serve, args=(theirs, *self._arguments), name="klray-model", daemon=True
            )
            self._process.start()
            theirs.close()
            self._architecture = wanted
        return self._pipe

    def _ended(self) -> str:
        """How the process ended, in words; it is gone after this."""
        self._process.join(timeout=10)
        code = self._process.exitcode
        self.close()
        if code is not None and code < 0:
            return f"was killed by signal {-code} ({signal.Signals(-code).name})"
        return f"ended with exit code {code}"


def _serve(pipe: connection.Connection, settings: ScoringSettings, text_set: TextSet) -> None:
    """Answer until the worker is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    compute: Any = None
    lock = threading.Lock()

    def say(kind: str, value: object = None) -> None:
        with lock:  # files may be done with on another thread
            pipe.send((kind, value))

    while True:
        try:
            checkpoint, directory = pipe.recv()
        except EOFError:
            return
        try:
            compute = compute or importlib.import_module("klray.compute").Compute(settings, text_set)
            computed = compute.score(checkpoint, directory, partial(say, _READ))
        except Exception as error:  # noqa: BLE001 - the worker decides
            say(_FAILED, _pickled(error))
        else:
            say(_COMPUTED, computed)


def _pickled(error: Exception) -> bytes:
    """An error and its traceback in words; one that cannot be pickled and read again, as a RuntimeError."""
    trace = traceback.format_exc()
    with contextlib.suppress(Exception):
        found = pickle.dumps((error, trace))
        pickle.loads(found)  # noqa: S301 - our own
        return found
    return pickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), trace))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
