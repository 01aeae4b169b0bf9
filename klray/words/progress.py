"""Progress of long work: a bar on a terminal; elsewhere a log line at the beginning, now and then, and at the end."""

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

import tqdm

from klray.words.numbers import counted

log = logging.getLogger("klray")

LOG_EVERY_SECONDS = 15.0
# Before both of these the rate is noise: workers that start together finish their first units together.
ESTIMATE_AFTER_UNITS = 3
ESTIMATE_AFTER_SECONDS = 10.0
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class Progress:
    """Counts units of work and shows rate and remaining time.

    Both are measured from the first finished unit on, because what comes before it is mostly start-up, and are shown
    once `ESTIMATE_AFTER_UNITS` more are done and `ESTIMATE_AFTER_SECONDS` have passed since.

    Parameters
    ----------
    total : units of work
    what : what is being done, such as ``score``
    unit : what one unit is called, such as ``checkpoint``
    stream : where the bar goes when it is a terminal of a known width; log lines otherwise
    clock : seconds that only grow
    """

    def __init__(
        self,
        total: int,
        what: str,
        unit: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.what, self.unit = total, what, unit
        self.done = 0
        self._note = ""
        self._clock = clock
        stream = stream if stream is not None else sys.stderr
        self._bar = (
            tqdm.tqdm(total=total, desc=what, file=stream, dynamic_ncols=True, bar_format=_BAR)
            if _has_width(stream)
            else None
        )
        self._start = self._logged = clock()
        self._first: tuple[float, int] | None = None  # when the first units were done, and how many they were
        if self._bar is None and total:
            log.info("%s: %s to do", what, counted(total, unit))

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.done:
            self._log()

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count finished units; ``note`` is shown beside them."""
        self.done += units
        self._note = note
        now = self._clock()
        if self._first is None and self.done:
            self._first = now, self.done
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(self._details(now)), refresh=False)
            self._bar.update(units)
        elif now - self._logged >= LOG_EVERY_SECONDS and self.done < self.total:
            self._log()

    @property
    def rate(self) -> float | None:
        """Units a second, from the first finished unit on; None before it is more than noise."""
        return self._rate(self._clock())

    def _rate(self, now: float) -> float | None:
        if self._first is None:
            return None
        first, before = self._first
        seconds, units = now - first, self.done - before
        return units / seconds if units >= ESTIMATE_AFTER_UNITS and seconds >= ESTIMATE_AFTER_SECONDS else None

    def _log(self) -> None:
        now = self._logged = self._clock()
        parts = [
            f"{self.done:,} of {counted(self.total, self.unit)}",
            f"{now - self._start:.0f} s",
            *self._details(now),
        ]
        log.info("%s: %s", self.what, ", ".join(parts))

    def _details(self, now: float) -> list[str]:
        """Rate, remaining time and note, as far as there are any."""
        details = [self._note] if self._note else []
        rate = self._rate(now)
        if rate is None:
            return details
        left = [f"{(self.total - self.done) / rate:.0f} s left"] if self.done < self.total else []
        return [f"{rate:.2f} {self.unit}s/s", *left, *details]


class Stages:
    """Progress of work in stages: called with what is being done, how much of it is done, and of how much."""

    def __init__(self, what: str):
        self.what = what
        self._now: tuple[str, Progress] | None = None

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, *_: object) -> None:
        if self._now:
            self._now[1].__exit__()

    def __call__(self, units: str, done: int, total: int) -> None:
        """``done`` of ``total`` units, such as ``columns``, are through."""
        if self._now is None or self._now[0] != units:
            self.__exit__()
            self._now = units, Progress(total, self.what, units.removesuffix("s"))
        self._now[1].advance(done - self._now[1].done)


def _has_width(stream: TextIO) -> bool:
    """Whether a bar can be drawn on ``stream``: a pseudo-terminal that nobody gave a size has 0 columns."""
    if not stream.isatty():
        return False
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):
        return False
