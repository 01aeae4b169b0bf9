"""Other jobs on the same store, as listings show them: what they committed, what they claim, when a claim is over.

Nothing here is needed for a right store: who is told too late scores a column that another has committed meanwhile.
"""

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from klray.errors import StoreError
from klray.store.objects import Listed
from klray.sweep.deaths import Deaths, Heartbeats
from klray.sweep.queue import Work
from klray.words.numbers import counted, listed, rough_duration

log = logging.getLogger("klray")

LIVES = 3.0  # longest scores of this job, from claim to commit, after which a claim is over
LEAST_SECONDS = 60.0  # of a claim's life
UNSCORED_SECONDS = 900.0  # of a claim's life, until this job has scored anything
HEAR_SECONDS = 10.0  # between two looks at what jobs say that are waited for
AGAIN = 2.0  # lives after which nobody is waited for, whoever has claimed a checkpoint since
# Seconds between two listings, in longest scores: in the ordinary, and while a worker has nothing else to do.
ORDINARY, ORDINARY_BOUNDS = 3.0, (2.0, 30.0)
WAITING, WAITING_BOUNDS = 0.1, (0.2, 10.0)
SHARE = 0.05  # of the time is the most that listings take
HOSTS_NAMED = 3
SHORTEST_SECONDS = 0.05


class Listings(Heartbeats, Protocol):
    """What is asked of a ``Store``."""

    def committed_keys(self) -> set[str]:
        """Keys of all committed columns."""

    def standing_claims(self) -> dict[str, tuple[int, Listed]]:
        """The last turn of every key that is claimed, and what is listed of it."""


@dataclasses.dataclass
class _Claim:
    """A claim of another job as this one has seen it, in seconds of this job's own clock."""

    turn: int
    mark: str
    since: float  # when this claim was first seen
    first: float  # when the checkpoint was first seen to be claimed, by whomever, and has been since
    looked_at: bool = False  # a worker has read it
    job: str = ""  # whose it is, as the worker read


class Others:
    """What other jobs do.

    A claim is over when its job has died, as ``Deaths`` says, and at the latest when this one, ``job``, has seen it for
    ``LIVES`` times its own longest score, by its own clock, which nobody else can turn. A claimed checkpoint is put off
    until nothing else is left, then looked at once: what cannot be read is no claim. Then it waits until it is
    committed, or the claim is over or gone.
    """

    def __init__(self, store: Listings, clock: Callable[[], float] = time.monotonic, job: str = ""):
        self._store, self._clock = store, clock
        self._deaths, self._heard = Deaths(store, job), (-math.inf, frozenset[str]())  # when, and of whom
        self.dead: frozenset[str] = frozenset()  # jobs, of those that were waited for when their words were last heard
        self.committed: frozenset[str] | set[str] = frozenset()
        self.waiting: dict[str, Work] = {}  # put off, by key
        self.longest = 0.0  # seconds from a claim to its commit
        self._claims: dict[str, _Claim] = {}
        self._own: dict[str, float] = {}  # keys that were given to workers of this job, and when
        self._hosts: dict[str, str] = {}
        self._urgent = False
        self._looked = self._took = 0.0
        self.looks = 0
        self._barren, self._over_at = -1, math.inf  # at which look none of those who wait could be had, and until when
        self._ended = threading.Event()
        self._wake = threading.Event()

    def look(self) -> None:
        """List what is committed and claimed now."""
        start = self._clock()
        claims = self._store.standing_claims()  # first: what is committed meanwhile is no longer claimed
        committed = self._store.committed_keys()
        now = self._clock()
        seen = {}
        for key, (turn, each) in claims.items():
            before = self._claims.get(key)
            if key in self._own or key in committed:
                continue
            if before is None:
                seen[key] = _Claim(turn, each.mark, now, now)
            elif before.mark in ("", each.mark):
                seen[key] = dataclasses.replace(before, turn=turn, mark=each.mark)
            else:
                seen[key] = _Claim(turn, each.mark, now, before.first)
        self._hear({each.job for key, each in seen.items() if key in self.waiting and each.job}, now)
        self._claims, self.committed = seen, committed
        self._looked, self._took, self._urgent = now, now - start, False
        self.looks += 1

    @property
    def again(self) -> float:
        """Seconds until ``next`` may have another answer, where somebody is waited for."""
        return max(SHORTEST_SECONDS, self.pause) if self.waiting else math.inf

    @property
    def pause(self) -> float:
        """Seconds until the next look."""
        scores, (least, most) = (WAITING, WAITING_BOUNDS) if self._urgent else (ORDINARY, ORDINARY_BOUNDS)
        seconds = max(least, min(most, scores * self.longest), self._took / SHARE)
        return max(0.0, self._looked + seconds - self._clock())

    def next(self, take: Callable[[], Work | None], gone: Callable[[Work], None]) -> Work | None:
        """The next work of those that ``take`` gives that no other job has, or else one whose claim is over or was
        never looked at; None where all that is left is being scored elsewhere. ``gone`` is told of works that others
        have committed.
        """
        while (work := take()) is not None:
            key = work.identity.key
            if key in self.committed:
                gone(work)
            elif (claim := self._claims.get(key)) is not None and not self._is_over(claim) and key not in self._own:
                self.waiting[key] = work
            else:
                return self._give(work)
        may = self.waiting and (self._barren != self.looks or self._clock() >= self._over_at)
        again = self._among_waiting(gone) if may else None
        if again is None and self.waiting:
            self._hurry()
        return again

    def _among_waiting(self, gone: Callable[[Work], None]) -> Work | None:
        """Of those who wait, the first that may be scored now."""
        done, found, self._over_at = [], None, math.inf
        for key, work in self.waiting.items():
            if key in self.committed:
                done.append(work)
                continue
            claim = self._claims.get(key)
            if claim is None or not claim.looked_at or self._is_over(claim):
                found = work
                break
            self._over_at = min(self._over_at, self._ends(claim))
        for work in done:
            del self.waiting[work.identity.key]
            gone(work)
        self._barren = self.looks if found is None else -1
        if found is None:
            return None
        del self.waiting[found.identity.key]
        return self._give(found)

    def hold(self, work: Work, host: str, job: str = "") -> None:
        """Another job has the work, as a worker was told that was to score it."""
        key, now = work.identity.key, self._clock()
        self._own.pop(key, None)
        claim = self._claims.get(key)
        if claim is None or claim.turn < work.turn:
            claim = self._claims[key] = _Claim(work.turn, "", now, now if claim is None else claim.first)
        claim.looked_at, claim.job = True, job
        self._hosts[key] = host
        self.waiting[key] = work
        self._barren = -1
        self._hurry()

    def end(self, work: Work, scored: bool) -> None:
        """A worker of this job is through with a work; ``scored`` there."""
        since = self._own.pop(work.identity.key, None)
        if scored and since is not None:
            self.longest = max(self.longest, self._clock() - since)

    def ahead(self, works: Sequence[Work], left: int) -> Sequence[Work]:
        """Those of ``works``, the next ones of a worker, that it is to claim and fetch ahead of time, where ``left``
        are left to this job: all, where there are no other jobs; else one, or none where that would leave less than is
        claimed: workers would stand idle at the end. None before the first one is scored.
        """
        others = len(self._claims)
        if not self.longest:
            return ()  # others may be about to begin, too
        if others:
            works = works[:1] if left - others > others + len(self._own) else ()
        for work in works:
            self._own.setdefault(work.identity.key, self._clock())
        return works

    def words(self) -> str:
        """Who is waited for, and how long at most should they have died; "" if nobody is."""
        if not self.waiting:
            return ""
        claims = [claim for key in self.waiting if (claim := self._claims.get(key)) is not None]
        now = self._clock()
        left = max((min(self._ends(each) - now, self._deaths.left(each.job)) for each in claims), default=0.0)
        hosts = sorted({self._hosts[key] for key in self.waiting if key in self._hosts})
        on = f" on {listed(hosts, HOSTS_NAMED)}" if hosts else ""
        what = f"{counted(len(self.waiting), 'checkpoint')} scored by other jobs{on}"
        return f"{what}; should they have died, for {rough_duration(max(0.0, left))} more"

    def __enter__(self) -> "Others":
        threading.Thread(target=self._watch, name="klray-others", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._wake.set()

    def _watch(self) -> None:
        while not self._ended.is_set():
            try:
                self.look()
            except (StoreError, OSError) as error:  # a commit will tell, too, if it lasts
                log.debug("the store cannot be listed: %s", error)
                self._looked = self._clock()
            while (seconds := self.pause) > 0 and not self._ended.is_set():
                self._wake.wait(seconds)
                self._wake.clear()

    def _hurry(self) -> None:
        if not self._urgent:
            self._urgent = True
            self._wake.set()

    def _give(self, work: Work) -> Work:
        key = work.identity.key
        claim = self._claims.get(key)
        work.turn = 0 if claim is None else claim.turn + self._is_over(claim)
        self._own[key] = self._clock()
        return work

    def _hear(self, jobs: frozenset[str] | set[str], now: float) -> None:
        """Find out which of ``jobs`` have died: those that were never asked for at once."""
        since, asked = self._heard
        if jobs and (now - since >= HEAR_SECONDS or jobs - asked):
            self.dead, self._heard = self._deaths.among(jobs), (now, frozenset(jobs))

    def _is_over(self, claim: _Claim) -> bool:
        return claim.job in self.dead or self._clock() >= self._ends(claim)

    def _ends(self, claim: _Claim) -> float:
        """When a claim is over, unless it goes before."""
        life = max(LEAST_SECONDS, LIVES * self.longest) if self.longest else UNSCORED_SECONDS
        return min(claim.since + life, claim.first + AGAIN * life)
