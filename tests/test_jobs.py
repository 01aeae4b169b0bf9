"""Heartbeats: what jobs say of themselves is read back, shown, and stops nobody when it is hostile."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from pathlib import Path

import pytest

from jobs.status import job_lines
from klray.store import Store, layout
from klray.store.jobs import MOST_JOBS, SILENT_SECONDS, Heard, Job, fit_job
from klray.store.seal import sealed
from tests.stores import TEXTS

JOB = Job("a" * 32, "node1", "pythia", "running", "2026-11-29T10:00:00+00:00", asked=100, done=25, scored=20, failed=1,
          elsewhere=4, workers=8, tokens=1000, seconds=60.0, rate=0.5, waiting=0.25)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(str(tmp_path / "store"), TEXTS)


def put(store: Store, body: bytes, name: str = JOB.job) -> None:
    store.objects.put(f"jobs/{name}.json", body)


def test_what_a_job_says_is_read_back_and_the_last_word_counts(store: Store) -> None:
    assert store.heard_jobs() == []
    store.beat(JOB)
    later = dataclasses.replace(JOB, done=50)
    store.beat(later)
    (heard,) = store.heard_jobs()
    assert heard.job == later and heard.alive and heard.job.seconds_left == 100.0


def test_a_job_that_ended_or_is_silent_does_not_run() -> None:
    assert not Heard(JOB, SILENT_SECONDS).alive
    assert not Heard(dataclasses.replace(JOB, state="done"), 0.0).alive
    assert dataclasses.replace(JOB, state="done").seconds_left is None
    assert dataclasses.replace(JOB, rate=0.0).seconds_left is None
    assert dataclasses.replace(JOB, rate=5e-324).seconds_left is None


def test_a_job_of_a_time_to_come_was_never_heard(store: Store, tmp_path: Path) -> None:
    store.beat(JOB)
    for seconds, n_heard in ((60, 1), (7200, 0), (9e11, 0)):
        then = time.time() + seconds
        os.utime(tmp_path / "store" / layout.job_path(JOB.job), (then, then))
        assert len(store.heard_jobs()) == n_heard


FIELDS = dataclasses.asdict(JOB)
HOSTILE = {
    "no JSON": b"\x00\xff",
    "deep": b"[" * 100_000,
    "long": sealed({**FIELDS, "summary": "x" * 100_000}),
    "a list": b"[1, 2]",
    "another seal": json.dumps({**FIELDS, "seal": "0" * 64}).encode(),
    "an unknown field": sealed({**FIELDS, "root": "/"}),
    "a missing field": sealed({name: value for name, value in FIELDS.items() if name != "asked"}),
    "another job": sealed({**FIELDS, "job": "b" * 32}),
    "a path": sealed({**FIELDS, "job": "../../etc"}),
    "a state": sealed({**FIELDS, "state": "root"}),
    "an escape": sealed({**FIELDS, "host": "\x1b[2J"}),
    "a line": sealed({**FIELDS, "family": "a\nfailures   0"}),
    "a process": sealed({**FIELDS, "process": f"{'0' * 16}:-1:1"}),
    "more than asked": sealed({**FIELDS, "done": 101}),
    "negative": sealed({**FIELDS, "tokens": -1}),
    "huge": sealed({**FIELDS, "asked": 10**30}),
    "longer than any number": sealed({**FIELDS, "seconds": 10**400}),
    "a text for a number": sealed({**FIELDS, "workers": "8"}),
    "no number": json.dumps({**FIELDS, "rate": float("nan")}).encode(),
    "infinite": json.dumps({**FIELDS, "seconds": float("inf")}).encode(),
    "true": sealed({**FIELDS, "failed": True}),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_heartbeat_is_none_and_hides_no_other(
    body: bytes, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, body)
    good = dataclasses.replace(JOB, job="c" * 32)
    store.beat(good)
    with caplog.at_level(logging.WARNING, "klray"):
        assert [each.job for each in store.heard_jobs()] == [good]
    assert "1 heartbeats are none" in caplog.text


def test_names_that_are_none_a_pipe_and_a_folder_in_place_of_the_jobs_stop_nobody(store: Store, tmp_path: Path) -> None:
    put(store, b"{}", "evil")
    put(store, b"{}", f"{'a' * 31}A")
    store.beat(JOB)
    assert [each.job for each in store.heard_jobs()] == [JOB]
    place = tmp_path / "store" / "jobs"
    for path in place.iterdir():
        path.unlink()
    place.rmdir()
    place.write_text("a file where a folder belongs")
    assert store.heard_jobs() == []


def test_of_very_many_heartbeats_the_last_ones_are_read(store: Store) -> None:
    for number in range(MOST_JOBS + 8):
        store.beat(dataclasses.replace(JOB, job=f"{number:032x}"))
    assert len(store.heard_jobs()) == MOST_JOBS


def test_words_of_a_job_are_made_fit() -> None:
    words = "two\nlines of https://me:word@host/x?X-Amz-Signature=abc"
    odd = fit_job(dataclasses.replace(JOB, host="a\x1b[2J", family="x" * 5000, summary=words))
    assert odd.host == "a�[2J" and len(odd.family) == 200
    assert odd.summary.startswith("two lines") and "word@" not in odd.summary and "abc" not in odd.summary


def test_status_shows_rate_and_time_left_of_running_jobs_and_who_is_silent() -> None:
    silent = dataclasses.replace(JOB, job="b" * 32, host="node2")
    done = dataclasses.replace(JOB, job="c" * 32, host="node3", state="done", done=100, summary="scored 96")
    text = "\n".join(job_lines([Heard(JOB, 4.0), Heard(silent, 4000.0), Heard(done, 30.0)]))
    running, quiet, ended = text.splitlines()[-3:]
    assert "node1" in running and "25 of 100" in running and "0.50/s" in running and "2 min left" in running
    assert "25%" in running and "8" in running
    assert "silent for 67 min" in quiet and "left" not in quiet
    assert "done" in ended and "scored 96" in ended
