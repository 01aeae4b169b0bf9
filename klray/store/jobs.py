"""Heartbeats: what each running job says of itself, so that whoever reads the store sees what goes on and how fast.

Each job writes one object of its own, again and again, and once more when it ends. Nobody waits for the claims of a job
that has fallen silent; whether a column is there is said by its commit alone. What cannot be read, or is none, is
passed over.
"""

import dataclasses
import logging
import math
import re
from datetime import UTC, datetime
from typing import Final

from klray.errors import StoreError
from klray.store import layout
from klray.store.fields import bounded, form, names, record
from klray.store.objects import Listed, Objects
from klray.store.seal import read_parsed, sealed, unsealed
from klray.words.outside import printable, sentence
from klray.words.secrets import without_secrets

log = logging.getLogger("klray")

BEAT_SECONDS: Final = 30.0  # between two words of a job
SILENT_SECONDS: Final = 5 * BEAT_SECONDS  # then it is taken to have died, or to have no way to the store
JOB_BYTES: Final = 8192
MOST_JOBS: Final = 256  # that are read: those who spoke last
MOST: Final = 2**53
LONGEST_SECONDS: Final = 3.2e8  # ten years: a time left above it is none
AHEAD_SECONDS: Final = 3600.0  # of the store's clock before this machine's; what was written later says no time
RUNNING: Final = "running"
STATES: Final = (
    RUNNING,
    "done",
    "failed",
    "interrupted",
)  # failed: it ended with an error, not with a failed checkpoint
JOB = re.compile(r"[0-9a-f]{32}")
PROCESS = re.compile(r"|[0-9a-f]{16}:[1-9]\d{0,8}:\d{1,20}")


@dataclasses.dataclass(frozen=True)
class Job:
    """What a job says of itself; counts are of this job alone."""

    job: str  # 32 hex digits: all workers of a sweep have the same
    host: str  # of the driver
    family: str
    state: str
    started: str  # ISO 8601, UTC, by the clock of the host: for people
    asked: int  # checkpoints that lacked a column when it began
    done: int = 0  # of these: scored, taken over, committed by other jobs, or failed
    scored: int = 0
    failed: int = 0
    elsewhere: int = 0  # committed by other jobs meanwhile
    workers: int = 0  # at work, or ready for it
    tokens: int = 0
    seconds: float = 0.0  # since it began
    rate: float = 0.0  # checkpoints a second, from the first one on; 0: not known yet
    waiting: float = 0.0  # share of the workers' time in which they waited for downloads
    summary: str = ""  # one sentence, at the end
    process: str = ""  # of the driver: a hash of its machine, its number there, when it began; "": not known

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None: not known, above ten years, or it is at its end."""
        left = self.asked - self.done
        return left / self.rate if self.state == RUNNING and self.rate * LONGEST_SECONDS > left else None


@dataclasses.dataclass(frozen=True)
class Heard:
    """A job as it was last heard of, and how long ago: by the clocks of the store and of this machine.

    What is of a time to come by more than an hour was never heard: its file's time was set by hand.
    """

    job: Job
    seconds_ago: float

    @property
    def alive(self) -> bool:
        """Whether it runs, as far as can be known from here."""
        return self.job.state == RUNNING and self.seconds_ago < SILENT_SECONDS


def beat(objects: Objects, job: Job) -> None:
    """Write what a job says of itself. Raises StoreError, OSError: the place cannot be written to."""
    objects.put(layout.job_path(job.job), sealed(dataclasses.asdict(job)))


def job_beats(objects: Objects) -> dict[str, Listed]:
    """What is listed of each job's heartbeat, from one listing. None is read."""
    found = {layout.job_id(path): there for path, there in objects.listing(layout.JOBS).items()}
    return {job: there for job, there in found.items() if job is not None}


def heard_job(objects: Objects, job: str) -> Job | None:
    """What one job says of itself; None if it says nothing, or what is there is no heartbeat."""
    found = [each for _, each in read_parsed(objects, [layout.job_path(job)], _job, JOB_BYTES)]
    return found[0] if found and isinstance(found[0], Job) else None


def heard_jobs(objects: Objects) -> list[Heard]:
    """Jobs that the store was told of, those first that spoke last; at most `MOST_JOBS` are read.

    Whatever is wrong with a heartbeat, or with all of them, stops nobody: it is passed over, and said in the log.
    """
    try:
        latest = sorted(job_beats(objects).items(), key=lambda each: each[1].written, reverse=True)[:MOST_JOBS]
        written = {layout.job_path(job): there.written for job, there in latest}
        found = list(read_parsed(objects, list(written), _job, JOB_BYTES))
    except (StoreError, OSError) as error:
        log.warning("store %s: what jobs say cannot be read (%s); the rest can", objects.url, error)
        return []
    now = datetime.now(UTC)
    if odd := [path for path, job in found if isinstance(job, Exception)]:
        log.warning("store %s: %d heartbeats are none (such as %s), passed over", objects.url, len(odd), odd[0])
    return [
        Heard(job, max(0.0, ago))
        for path, job in found
        if not isinstance(job, Exception) and (ago := (now - written[path]).total_seconds()) > -AHEAD_SECONDS
    ]


def fit_job(job: Job) -> Job:
    """The same, with words that can be shown and kept, and without secrets: the store will be read by others."""
    host, family = printable(job.host, 200), printable(job.family, 200)
    return dataclasses.replace(job, host=host, family=family, summary=sentence(without_secrets(job.summary)))


def _job(path: str, body: bytes) -> Job:
    """The job in the object at ``path``; ValueError if it is none."""
    job = record(Job, unsealed(body))
    form(JOB, job=job.job)
    form(PROCESS, process=job.process)
    if layout.job_path(job.job) != path:
        raise ValueError(f"it is the heartbeat of {job.job}")
    names(host=job.host, family=job.family, started=job.started, summary=job.summary)
    if job.state not in STATES:
        raise ValueError("its state is none")
    bounded(
        MOST, **{name: getattr(job, name) for name in ("asked", "scored", "failed", "elsewhere", "workers", "tokens")}
    )
    bounded(job.asked, done=job.done)
    if not all(math.isfinite(value) and 0 <= value <= MOST for value in (job.seconds, job.rate, job.waiting)):
        raise ValueError("its seconds, rate or share of waiting is no such number")
    return job
