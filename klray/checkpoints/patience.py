"""Pauses that a hub asks for, kept by everybody who asks it for files."""

from __future__ import annotations

import logging
import random
import threading
import time

log = logging.getLogger("klray")

SPREAD = 0.1  # share of a pause by which those who wait come back at different times


class Patience:
    """One pause for all downloads of this process; a sweep has one for all its actors (``klray.sweep``)."""

    def __init__(self) -> None:
        self._until = 0.0
        self._lock = threading.Lock()

    def pause(self, seconds: float) -> None:
        """Let nobody ask the hub for anything before ``seconds`` have passed."""
        with self._lock:
            self._until = max(self._until, time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds until the hub may be asked; 0 when it may be now."""
        with self._lock:
            return max(0.0, self._until - time.monotonic())

    def wait(self) -> None:
        """Return when the hub may be asked."""
        while (left := self.left()) > 0:
            log.info("the hub wants to be left alone for %.0f s more", left)
            time.sleep(left * (1 + random.uniform(0, SPREAD)))  # noqa: S311 - not cryptography
