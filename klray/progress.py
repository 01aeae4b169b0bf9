"""Progress of long work: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import TextIO

import tqdm

log = logging.getLogger("klray")

LOG_EVERY_SECONDS = 15.0


class Progress:
    """Counts units of work and shows rate and remaining time.

    Parameters
    ----------
    total : units of work
    what : what is being done, such as ``score``
    unit : what one unit is called, such as ``checkpoint``
    stream : where the bar goes when it is a terminal; log lines otherwise
    """

    def __init__(self, total: int, what: str, unit: str, stream: TextIO | None = None):
        self.total, self.what, self.unit = total, what, unit
        self.done = 0
        self._note = ""
        stream = stream if stream is not None else sys.stderr
        self._bar = (
            tqdm.tqdm(total=total, desc=what, unit=f" {unit}", file=stream, dynamic_ncols=True, smoothing=0.1)
            if stream.isatty()
            else None
        )
        self._start = self._logged = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.done:
            self._log()

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count finished units; ``note`` is shown beside them."""
        self.done += units
        self._note = note
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(units)
        elif time.monotonic() - self._logged >= LOG_EVERY_SECONDS and self.done < self.total:
            self._log()

    def _log(self) -> None:
        self._logged = time.monotonic()
        seconds = self._logged - self._start
        rate = self.done / seconds if seconds > 0 else 0.0
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate and self.done < self.total else ""
        note = f", {self._note}" if self._note else ""
        log.info("%s: %d of %d %ss, %.2f/s%s%s", self.what, self.done, self.total, self.unit, rate, left, note)
