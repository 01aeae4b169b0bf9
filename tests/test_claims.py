"""Claims in the store: one job has each turn, what cannot be read is none, and nothing that lies there stops a job."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from klray.errors import StoreError
from klray.store import Store, layout
from klray.store.claims import CLAIM_BYTES, MOST_TURNS, Claim
from tests.stores import EVERY_PLACE, TEXTS, add, column

T = TypeVar("T")

AT_ONCE = 8
KEY = "a" * 64
JOBS = [f"{number:032x}" for number in range(AT_ONCE)]


def together(work: Callable[[int], T]) -> list[T]:
    """What ``work`` gives for each number, begun at one moment."""
    barrier = threading.Barrier(AT_ONCE)

    def begun(number: int) -> T:
        barrier.wait(60)
        return work(number)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(begun, range(AT_ONCE)))


@EVERY_PLACE
def test_one_of_those_who_claim_at_once_has_it_and_the_others_are_told_who(place: str) -> None:
    store = Store.create(place, TEXTS)
    found = together(lambda number: store.claim(KEY, JOBS[number]))
    winners = [JOBS[number] for number, each in enumerate(found) if each == 0]
    assert len(winners) == 1
    assert {each.job for each in found if isinstance(each, Claim)} == set(winners)
    assert store.claim(KEY, winners[0]) == 0  # another worker of the same job
    next_ones = together(lambda number: store.claim(KEY, JOBS[number], turn=1))
    assert next_ones.count(1) == 1  # of a claim that is over one job has what follows
    assert {key: turn for key, (turn, _) in store.standing_claims().items()} == {KEY: 1}
    store.release(KEY, 1)
    assert store.standing_claims() == {}
    assert store.claim(KEY, JOBS[0]) == 0


@EVERY_PLACE
def test_equal_plans_of_jobs_that_begin_at_once_are_one_object(place: str, caplog: pytest.LogCaptureFixture) -> None:
    store = Store.create(place, TEXTS)
    with caplog.at_level(logging.WARNING, "klray"):
        together(lambda _: store.record_plan("fam", [KEY]))
        assert together(lambda _: store.objects.conditional_put("plans/equal.json", b"{}")) == [True] * AT_ONCE
    assert caplog.messages == []
    assert store.wanted_keys() == {"fam": {KEY}}


HOSTILE = {
    "empty": b"",
    "no JSON": b"{cut",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "huge": b" " * (CLAIM_BYTES + 1),
    "other fields": b'{"x": 1}',
    "the claim of another": json.dumps({"key": "b" * 64, "job": "0" * 32, "host": "h", "created": ""}).encode(),
    "odd types": json.dumps({"key": KEY, "job": 7, "host": [], "created": None}).encode(),
    "an escape": json.dumps({"key": KEY, "job": "0" * 32, "host": "\x1b[31m", "created": ""}).encode(),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_what_cannot_be_read_is_no_claim(folder_store: Store, body: bytes) -> None:
    folder_store.objects.put(layout.claim_path(KEY, 0), body)
    assert folder_store.claim(KEY, JOBS[0]) == 1
    standing = folder_store.claim(KEY, JOBS[1])
    assert isinstance(standing, Claim) and standing.job == JOBS[0]


def test_folders_links_and_pipes_are_no_claims(folder_store: Store, tmp_path: Path) -> None:
    claims = Path(folder_store.url) / "claims"
    claims.mkdir()
    (claims / f"{KEY}-0.json").mkdir()
    (claims / f"{KEY}-1.json").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(claims / f"{KEY}-2.json")
    assert folder_store.claim(KEY, JOBS[0]) == 3
    assert not (tmp_path / "elsewhere").exists()


def test_a_key_of_which_every_turn_is_spoilt_is_scored_without_a_claim(folder_store: Store) -> None:
    for turn in range(MOST_TURNS):
        folder_store.objects.put(layout.claim_path(KEY, turn), b"")
    assert folder_store.claim(KEY, JOBS[0]) == MOST_TURNS
    folder_store.release(KEY, MOST_TURNS)
    assert folder_store.objects.names("claims") == []


def test_what_is_called_otherwise_is_not_listed_as_a_claim(folder_store: Store) -> None:
    for name in (f"{KEY}.json", f"{KEY}-00.json", f"{KEY}-100.json", f"{'g' * 64}-0.json", f"x/{KEY}-0.json"):
        folder_store.objects.put(f"claims/{name}", b"")
    assert folder_store.standing_claims() == {}


def test_what_is_committed_is_claimed_by_nobody_and_nothing_is_written(folder_store: Store) -> None:
    add(folder_store, column("a", 1))
    key = column("a", 1).identity.key
    assert folder_store.claim(key, JOBS[0]) is None
    assert folder_store.objects.names("claims") == []
    folder_store.claim(KEY, JOBS[0])
    folder_store.objects.put(layout.commit_path(KEY), b"damaged")
    assert folder_store.claim(KEY, JOBS[0]) is None  # to another worker of the job, too


def test_a_job_that_ends_takes_back_what_it_has_claimed_and_nothing_else(folder_store: Store) -> None:
    for number, key in enumerate("abcd"):
        folder_store.claim(key * 64, JOBS[number % 2])
    folder_store.objects.put(layout.claim_path("e" * 64, 0), b" " * (CLAIM_BYTES + 1))
    folder_store.withdraw_claims(JOBS[0])
    assert {key[0] for key in folder_store.standing_claims()} == set("bde")


def test_a_place_that_cannot_be_written_says_so(folder_store: Store) -> None:
    (Path(folder_store.url) / "claims").mkdir(mode=0o500)
    if os.access(Path(folder_store.url) / "claims", os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises((StoreError, OSError)):
        folder_store.claim(KEY, JOBS[0])


def test_verify_lists_claims_that_are_old_or_committed_and_repair_takes_them_out(folder_store: Store) -> None:
    done = column("a", 1).identity.key
    folder_store.claim(done, JOBS[0])
    add(folder_store, column("a", 1))
    folder_store.claim(KEY, JOBS[0])
    folder_store.claim("b" * 64, JOBS[0])
    folder_store.objects.put("claims/odd", b"")
    claims = Path(folder_store.url) / "claims"
    for name in (f"{'b' * 64}-0.json", "odd"):
        os.utime(claims / name, (0, 0))
    found = folder_store.audit()
    left = {each.path.split("/")[1]: each.kind for each in found.leftovers}
    assert left == dict.fromkeys((f"{done}-0.json", f"{'b' * 64}-0.json", "odd"), "claim")
    assert not found.damages
    folder_store.repair(found, timedelta(0))
    assert folder_store.objects.names("claims") == [f"{KEY}-0.json"]
