"""Whether a job that holds a claim has died: by its heartbeat in the store, or by its process on this machine.

A claim is a courtesy, so whoever is wrong here scores a checkpoint twice at worst.
"""

import functools
import hashlib
import logging
import math
import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Protocol

from klray.errors import StoreError
from klray.store.jobs import BEAT_SECONDS, RUNNING, SILENT_SECONDS, Job
from klray.store.objects import Listed
from klray.words.numbers import rough_duration

log = logging.getLogger("klray")

QUIET_SECONDS = 2 * BEAT_SECONDS  # of a running job, after which its last word is read again: it may be its end


class Heartbeats(Protocol):
    """What is asked of a ``Store``."""

    def job_beats(self) -> dict[str, Listed]:
        """What is listed of each job's heartbeat."""

    def heard_job(self, job: str) -> Job | None:
        """What a job says of itself, None if that cannot be read."""


class Deaths:
    """What the job ``own`` knows of other jobs' ends.

    How long another is silent is the time from its last beat to the own one, both by the store's clock. So a job that
    has no heartbeat there is never dead, and nobody is silent to a job whose own cannot be written.
    """

    def __init__(self, store: Heartbeats, own: str):
        self._store, self._own = store, own
        self._said: dict[str, tuple[str, Job | None]] = {}  # by job: mark of the beat that was read, and its words
        self._silent: dict[str, float] = {}  # seconds, as of the last look
        self._told: set[str] = set()

    def among(self, jobs: Set[str]) -> frozenset[str]:
        """Those of ``jobs`` that have ended or died, from one listing, and a request for each whose last word is new
        and may be its end.
        """
        try:
            beats = self._store.job_beats()
            whys = {job: self._why(job, beats) for job in jobs & beats.keys()}
        except (StoreError, OSError) as error:
            log.debug("what other jobs say cannot be read: %s", error)
            return frozenset()
        dead = {job: why for job, why in whys.items() if why}
        for job in dead.keys() - self._told:
            log.info("job %s %s: what it had claimed is free", job[:8], dead[job])
        self._told |= dead.keys()
        return frozenset(dead)

    def left(self, job: str) -> float:
        """Seconds until ``job`` is known to have died, should it have."""
        return SILENT_SECONDS + BEAT_SECONDS - self._silent.get(job, -math.inf)

    def _why(self, job: str, beats: Mapping[str, Listed]) -> str:
        beat, own = beats[job], beats.get(self._own)
        if own is not None:
            self._silent[job] = (own.written - beat.written).total_seconds()
        silent = self._silent.get(job, 0.0)
        if silent >= SILENT_SECONDS:
            return f"has said nothing for {rough_duration(silent)}"
        mark, said = self._said.get(job, ("", None))
        if not mark or (silent > QUIET_SECONDS and mark != beat.mark):
            said = self._store.heard_job(job)
            self._said[job] = beat.mark, said
        if said is None:
            return ""
        if said.state != RUNNING:
            return f"on {said.host} has ended"
        return f"on {said.host} has died" if is_gone(said.process) else ""


def this_process() -> str:
    """The present one as ``is_gone`` knows it: machine, number and when it began; "" if that is not known."""
    fields = _stat(os.getpid()) if _machine() else []
    return f"{_machine()}:{os.getpid()}:{fields[19]}" if fields else ""


def is_gone(process: str) -> bool:
    """Whether a process was of this machine and has ended."""
    machine, _, number = process.partition(":")
    if not machine or machine != _machine():
        return False
    pid, _, began = number.partition(":")
    try:
        os.kill(int(pid), 0)
        fields = _stat(int(pid))
    except ProcessLookupError:
        return True
    except OSError:  # another user's, of which nothing else is known
        return False
    return bool(fields) and (fields[0] in "ZX" or fields[19] != began)


@functools.cache
def _machine() -> str:
    """Where numbers of processes mean the same: one boot of one machine, one container; "" if that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return hashlib.sha256(f"{boot}{Path('/proc/self/ns/pid').readlink()}".encode()).hexdigest()[:16]
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """State of a process and what follows it in /proc; [] if that cannot be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(") ")[2].split()
    except OSError:
        return []
