"""Processes of a campaign, forked in milliseconds from a server that has imported the campaign's module."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator
from multiprocessing import forkserver

CONTEXT = multiprocessing.get_context("forkserver")


@contextlib.contextmanager
def forked_from(*modules: str) -> Iterator[None]:
    """A server that has imported these, for the length of the context.

    A process has one such server, and it keeps what it began with: without this, processes that klray forks for models
    would come from a server without PyTorch after a campaign, and those of a campaign from one without its module.
    """
    _end_server()
    CONTEXT.set_forkserver_preload(list(modules))
    try:
        yield
    finally:
        _end_server()


def _end_server() -> None:
    forkserver._forkserver._stop()  # as the tests of multiprocessing do: there is no public way
