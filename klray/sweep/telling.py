"""What a sweep tells while it runs: its progress, its heartbeat in the store, and metrics. All of it is one tally's."""

import dataclasses
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Protocol

from klray.errors import StoreError
from klray.store import Store
from klray.store.jobs import BEAT_SECONDS, RUNNING, Job, fit_job
from klray.sweep.deaths import this_process
from klray.words.numbers import counted
from klray.words.progress import Progress

log = logging.getLogger("klray")

WAITING = "waiting"


@dataclasses.dataclass
class Tally:
    """What has come of the works so far."""

    scored: int = 0
    taken_over: int = 0  # of these
    elsewhere: int = 0
    failed: int = 0
    tokens: int = 0
    bytes: int = 0  # of checkpoints that were scored
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)  # of those that failed
    seconds: Counter[str] = dataclasses.field(
        default_factory=Counter
    )  # of workers: waiting, loading, scoring, committing

    @property
    def done(self) -> int:
        """Works at their end."""
        return self.scored + self.elsewhere + self.failed

    @property
    def waiting(self) -> float:
        """Share of the workers' time in which they waited for files."""
        return self.seconds[WAITING] / sum(self.seconds.values()) if self.seconds[WAITING] else 0.0


class Metering(Protocol):
    """What keeps metrics (``klray.sweep.metrics.Meters``)."""

    def tell(self, name: str, values: float | Mapping[str, float]) -> None:
        """The metric's value so far, or its values by its tag."""


class Telling:
    """Tells of one sweep, for the length of the context: of ``asked`` works as ``progress`` counts them.

    A store that takes no heartbeat, or is away for a while, is said once and stops nothing.
    """

    def __init__(
        self,
        store: Store,
        progress: Progress,
        job: str,
        family: str,
        asked: int,
        meters: Metering | None = None,
        every: float = BEAT_SECONDS,
    ):
        self._store, self._progress, self._meters, self._every = store, progress, meters, every
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self._job = fit_job(Job(job, socket.gethostname(), family, RUNNING, started, asked, process=this_process()))
        self._start = time.monotonic()
        self._over, self._refused = threading.Event(), False
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def __enter__(self) -> "Telling":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        job = self._now
        state = "done" if kind is None else "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
        words = f"{counted(job.scored, 'checkpoint')} scored, {job.failed} failed, {job.elsewhere} by other jobs"
        job = fit_job(dataclasses.replace(job, state=state, workers=0, summary=str(error or "") or words))
        self._beat(job)
        summary = dataclasses.asdict(job)
        log.info("job %s: %s, %s", job.job[:8], state, words, extra={"job": job.job, "summary": summary})

    def tell(self, tally: Tally, queue: int, workers: Mapping[str, int]) -> None:
        """How far the sweep is: ``queue`` works that nobody has begun, ``workers`` by what they do."""
        done = tally.done
        self._job = dataclasses.replace(
            self._job,
            done=min(done, self._job.asked),
            scored=tally.scored,
            failed=tally.failed,
            elsewhere=tally.elsewhere,
            workers=workers.get("working", 0) + workers.get("idle", 0),
            tokens=tally.tokens,
            waiting=tally.waiting,
        )
        if new := done - self._progress.done:
            self._progress.advance(new, note(tally))
        if self._meters is not None:
            for name, values in metric_values(tally, queue, workers).items():
                self._meters.tell(name, values)

    @property
    def _now(self) -> Job:
        seconds = time.monotonic() - self._start
        return dataclasses.replace(self._job, seconds=seconds, rate=self._progress.rate or 0.0)

    def _beat_on(self) -> None:
        self._beat(self._now)
        while not self._over.wait(self._every):
            self._beat(self._now)

    def _beat(self, job: Job) -> None:
        try:
            self._store.beat(job)
        except (StoreError, OSError) as error:
            if not self._refused:
                log.warning("klray status will not show this job, which goes on: %s", error)
            self._refused = True


def note(tally: Tally) -> str:
    """What stands in the line of progress."""
    failed = f", {tally.failed} failed" if tally.failed else ""
    waiting = f", {tally.waiting:.0%} of the time waiting for downloads" if tally.waiting >= 0.005 else ""
    return f"{tally.tokens:,} tokens{failed}{waiting}"


def metric_values(tally: Tally, queue: int, workers: Mapping[str, int]) -> dict[str, Any]:
    """Values of the metrics, by their names in ``klray.sweep.metrics``."""
    outcomes = {name: getattr(tally, name) for name in ("taken_over", "elsewhere", "failed")}
    return {
        "klray_checkpoints": {"scored": tally.scored - tally.taken_over, **outcomes},
        "klray_failures": dict(tally.reasons),
        "klray_tokens": tally.tokens,
        "klray_bytes": tally.bytes,
        "klray_seconds": dict(tally.seconds),
        "klray_queue": queue,
        "klray_workers": dict(workers),
    }
