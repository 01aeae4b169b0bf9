"""Jobs that share a list: who scores what, whom they wait for and how long, and what a worker tells and hears."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from klray.errors import StoreUnreachableError
from klray.store import Store
from klray.store.jobs import BEAT_SECONDS, SILENT_SECONDS, Job
from klray.store.objects import FolderObjects
from klray.sweep.claims import Claims, Held
from klray.sweep.deaths import QUIET_SECONDS, Deaths, is_gone, this_process
from klray.sweep.others import AGAIN, HEAR_SECONDS, LEAST_SECONDS, LIVES, UNSCORED_SECONDS, Others
from klray.sweep.queue import Work
from tests.sharing import PlayedStore, ideal, name_of, play, work
from tests.stores import add, column

JOB, OTHER = "0" * 32, "1" * 32


def lengths(count: int) -> list[float]:
    """Seconds of checkpoints: half to double of 10 as a rule, the longest 60."""
    return [min(60.0, random.Random(number).lognormvariate(2.3, 0.5)) for number in range(count)]


def begins(jobs: int) -> list[float]:
    return [3.0 * random.Random(job).random() for job in range(jobs)]


@pytest.mark.parametrize(
    ("jobs", "seconds_of"),
    [
        (2, lengths(154)),
        (16, lengths(154)),
        (16, [10.0] * 154),
        *(pytest.param(64, lengths(count), marks=pytest.mark.slow) for count in (154, 640)),
    ],
)
def test_jobs_that_share_a_list_score_hardly_anything_twice_and_lose_little(jobs: int, seconds_of: list[float]) -> None:
    found = play(seconds_of, jobs, starts=begins(jobs))
    assert found.twice <= 0.03 * len(seconds_of)
    assert found.seconds <= 1.1 * ideal(seconds_of, begins(jobs))


def test_what_a_job_that_died_had_claimed_is_scored_by_others() -> None:
    seconds_of = lengths(154)
    deaths = {2: 30.0, 7: 55.0, 11: 90.0}
    found = play(seconds_of, 16, starts=begins(16), dies=lambda job: deaths.get(job, float("inf")))
    assert found.twice <= 0.03 * len(seconds_of)
    assert found.seconds <= 1.2 * ideal(seconds_of, begins(13)) + LIVES * 2 * max(seconds_of)


def test_a_job_that_has_scored_nothing_waits_for_the_dead_as_long_as_they_are_not_silent() -> None:
    seconds_of = [10.0] * 4
    found = play(seconds_of, 5, starts=[0.0] * 4 + [5.0], dies=lambda job: float("inf") if job == 4 else 6.0)
    assert found.seconds <= SILENT_SECONDS + 2 * BEAT_SECONDS + HEAR_SECONDS + sum(seconds_of) < UNSCORED_SECONDS


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Sharer:
    """One job with one worker and a list of works."""

    def __init__(self, store: PlayedStore, works: list[Work]):
        self.clock = Clock()
        self.others = Others(store, self.clock, name_of(1))
        self.works = list(works)
        self.gone: list[Work] = []

    def next(self) -> Work | None:
        return self.others.next(lambda: self.works.pop(0) if self.works else None, self.gone.append)


@pytest.fixture
def store() -> PlayedStore:
    return PlayedStore()


def test_what_others_claim_comes_last_and_is_looked_at_once(store: PlayedStore) -> None:
    first, second = work(1, 1), work(2, 1)
    store.claim(first.identity.key, 7, 0)
    job = Sharer(store, [first, second])
    job.others.look()
    assert job.next() is second
    assert job.next() is first and first.turn == 0  # what cannot be read would be no claim
    job.others.hold(first, "elsewhere")
    assert job.next() is None
    assert job.others.words() == (
        "1 checkpoint scored by other jobs on elsewhere; should they have died, for 15 min more"
    )
    job.others.look()
    assert job.next() is None
    store.claims.clear()
    job.others.look()
    assert job.next() is first


def test_what_others_commit_is_not_scored(store: PlayedStore) -> None:
    works = [work(number, 1) for number in range(3)]
    job = Sharer(store, works)
    store.commits[works[0].identity.key] += 1
    store.claim(works[1].identity.key, 7, 0)
    job.others.look()
    assert job.next() is works[2] and job.gone == works[:1]
    job.others.hold(works[1], "")
    store.commits[works[1].identity.key] += 1
    job.others.look()
    assert job.next() is None and job.gone == works[:2] and job.others.words() == ""


@pytest.mark.parametrize(("longest", "life"), [(0.0, UNSCORED_SECONDS), (1.0, LEAST_SECONDS), (100.0, LIVES * 100.0)])
def test_a_claim_is_over_after_three_of_the_longest_scores_by_the_job_s_own_clock(
    store: PlayedStore, longest: float, life: float
) -> None:
    one = work(1, 1)
    store.claim(one.identity.key, 7, 0)
    job = Sharer(store, [one])
    job.clock.now = 1e9  # whatever others' clocks show
    job.others.longest = longest
    job.others.look()
    assert job.next() is one
    job.others.hold(one, "")
    job.clock.now += life - 0.1
    job.others.look()
    assert job.next() is None
    job.clock.now += 0.2
    assert job.next() is one and one.turn == 1
    assert store.claim(one.identity.key, 8, one.turn)


def test_whoever_claims_again_and_again_delays_a_job_by_two_lives_at_most(store: PlayedStore) -> None:
    one = work(1, 1)
    job = Sharer(store, [one])
    job.others.longest = 100.0
    for turn in range(1000):
        store.claims[one.identity.key] = turn % 16, str(turn), 7
        job.others.look()
        found = job.next()
        if found is not None and job.clock.now >= AGAIN * LIVES * 100.0:
            break
        if found is not None:  # a worker has looked at it
            job.others.hold(found, "")
        job.clock.now += 10.0
    assert job.clock.now == AGAIN * LIVES * 100.0


def test_thousands_of_claims_by_nobody_delay_a_sweep_once(store: PlayedStore) -> None:
    works = [work(number, 1) for number in range(5000)]
    for each in works:
        store.claim(each.identity.key, 7, 0)
    job = Sharer(store, works)
    job.others.look()
    for _ in works:
        found = job.next()
        assert found is not None
        job.others.hold(found, "")
    assert job.next() is None
    job.clock.now += UNSCORED_SECONDS
    assert sum(job.next() is not None for _ in works) == 5000


def test_ahead_of_time_a_job_claims_less_than_it_leaves(store: PlayedStore) -> None:
    job, works = Sharer(store, []), [work(number, 1) for number in range(100, 104)]
    assert not job.others.ahead(works, 100)  # nothing was scored yet: others may be about to begin
    job.others.longest = 1.0
    assert job.others.ahead(works, 100) == works
    for number in range(10):
        store.claim(work(number, 1).identity.key, 7, 0)
    job.others.look()
    assert job.others.ahead(works, 100) == works[:1]
    assert not job.others.ahead(works, 24)


def test_a_look_is_more_often_where_nothing_else_is_left_and_never_all_the_time(store: PlayedStore) -> None:
    job = Sharer(store, [one := work(1, 1)])
    job.others.longest = 5.0
    job.others.look()
    assert job.others.pause == 15.0
    job.others.hold(one, "")
    assert job.next() is None and job.others.pause == 0.5


@pytest.fixture
def ended() -> Iterator[str]:
    """A process that has ended, and is not known to whoever began it."""
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        machine, _, began = this_process().split(":")
        yield f"{machine}:{process.pid}:{began}"


def test_a_process_is_gone_if_it_was_of_this_machine_and_has_ended(ended: str) -> None:
    machine, pid, began = this_process().split(":")
    assert not is_gone(this_process()) and not is_gone("")
    assert not is_gone(f"{'0' * 16}:{pid}:{int(began) + 1}")
    assert is_gone(ended) and is_gone(f"{machine}:{pid}:{int(began) + 1}")


def job_of(number: int, state: str = "running", process: str = "") -> Job:
    return Job(name_of(number), "elsewhere", "org", state, "", asked=1, process=process)


@pytest.mark.parametrize("why", ["has said nothing for 2 min", "on elsewhere has ended", "on elsewhere has died"])
def test_nobody_waits_for_a_job_that_is_no_more(
    store: PlayedStore, why: str, ended: str, caplog: pytest.LogCaptureFixture
) -> None:
    one, own, other = work(1, 1), name_of(1), name_of(7)
    job = Sharer(store, [one])
    store.claim(one.identity.key, 7, 0)
    store.said[other] = job_of(7, process=this_process())
    for name in (own, other):
        store.beat(name, 1e9)  # of a store whose clock is another
    assert job.next() is one
    job.others.hold(one, "elsewhere", other)
    job.others.look()
    assert job.next() is None
    assert job.others.words().endswith("should they have died, for 3 min more")
    store.said[other] = job_of(7, "done") if "ended" in why else job_of(7, process=ended)
    last = SILENT_SECONDS if "nothing" in why else QUIET_SECONDS + 1
    if "nothing" not in why:
        store.beat(other, 1e9 + 0.5)
    for seconds in (last - 1, last):
        assert job.next() is None
        job.clock.now += HEAR_SECONDS
        store.beat(own, 1e9 + seconds)
        with caplog.at_level(logging.INFO, "klray"):
            job.others.look()
    assert job.next() is one and one.turn == 1
    assert caplog.messages == [f"job {other[:8]} {why}: what it had claimed is free"]


def test_who_has_no_heartbeat_or_whose_cannot_be_read_is_not_dead(folder_store: Store) -> None:
    deaths = Deaths(folder_store, JOB)
    assert deaths.among({OTHER}) == frozenset()
    folder_store.beat(dataclasses.replace(job_of(1), job=OTHER))
    path = Path(folder_store.url) / "jobs" / f"{OTHER}.json"
    os.utime(path, (0, 0))
    assert deaths.among({OTHER}) == frozenset()  # this job has none itself: nobody knows the store's time
    folder_store.beat(dataclasses.replace(job_of(1), job=JOB))
    assert deaths.among({OTHER}) == {OTHER}
    folder_store.objects.put(f"jobs/{OTHER}.json", b"{")
    assert deaths.among({OTHER}) == frozenset()
    for each in path.parent.iterdir():
        each.unlink()
    path.parent.rmdir()
    path.parent.write_text("")
    assert deaths.among({OTHER}) == frozenset()


# the worker's side, on a real store


def test_a_worker_claims_once_and_takes_it_back(folder_store: Store) -> None:
    mine, theirs = Claims(folder_store, JOB), Claims(folder_store, OTHER)
    key = column("a", 1).identity.key
    assert mine.take(key) is True and mine.take(key) is True
    assert Claims(folder_store, JOB).take(key) is True  # another worker of the job
    assert isinstance(theirs.take(key), Held)
    assert theirs.take(key, turn=1) is True
    mine.drop(key)
    theirs.drop(key)
    assert folder_store.standing_claims() == {}


def test_what_was_committed_before_the_claim_is_not_scored(folder_store: Store) -> None:
    add(folder_store, column("a", 1))
    claims = Claims(folder_store, JOB)
    assert claims.take(column("a", 1).identity.key) is False
    assert claims.take_each([column("a", step).identity.key for step in (1, 2, 3)]) == [False, True, True]
    assert len(folder_store.standing_claims()) == 2


class Refusing(FolderObjects):
    """A store where claims cannot be written, or not be removed, as of a writer without the right."""

    writes = deletes = True

    def conditional_put(self, key: str, body: bytes) -> bool:
        if key.startswith("claims/") and not self.writes:
            raise StoreUnreachableError(f"store {self.url}: {key} was refused (AccessDenied); check the policy")
        return super().conditional_put(key, body)

    def delete_tree(self, prefix: str) -> None:
        if prefix.startswith("claims/") and not self.deletes:
            raise StoreUnreachableError(f"store {self.url}: {prefix} was refused (AccessDenied); check the policy")
        super().delete_tree(prefix)


@pytest.mark.parametrize(("right", "words"), [("writes", "no claims can be written"), ("deletes", "klray verify")])
def test_without_the_right_it_is_told_once_and_gone_on(
    folder_store: Store, caplog: pytest.LogCaptureFixture, right: str, words: str
) -> None:
    objects = Refusing(folder_store.objects.root)  # type: ignore[attr-defined]
    setattr(objects, right, False)
    claims = Claims(Store(objects, folder_store.texts), JOB)
    add(folder_store, column("a", 1))
    with caplog.at_level(logging.WARNING, "klray"):
        for step in (1, 2, 3):
            key = column("a", step).identity.key
            assert claims.take(key) is (step != 1)
            claims.drop(key)
    (told,) = caplog.messages
    assert words in told and "AccessDenied" in told
