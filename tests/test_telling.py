"""What a sweep tells while it runs: heartbeat, progress and metrics are those of one tally, and stop nothing."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from klray.store import Store
from klray.store.jobs import Job
from klray.sweep.metrics import METRICS
from klray.sweep.telling import Tally, Telling, metric_values, note
from klray.words.progress import Progress
from tests.stores import TEXTS

TALLY = Tally(scored=4, taken_over=1, elsewhere=2, failed=1, tokens=1200, bytes=4096, reasons=Counter(gated=1))
TALLY.seconds.update(waiting=1.0, loading=0.5, scoring=2.0, committing=0.5)
WORKERS = {"starting": 1, "working": 2, "idle": 1, "aside": 0}


class Meters:
    """Keeps what it was told last."""

    def __init__(self) -> None:
        self.told: dict[str, object] = {}

    def tell(self, name: str, values: float | Mapping[str, float]) -> None:
        self.told[name] = values


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(str(tmp_path / "store"), TEXTS)


def heard(store: Store) -> Job:
    (found,) = store.heard_jobs()
    return found.job


def telling(store: Store, meters: Meters | None = None, every: float = 3600.0) -> Telling:
    return Telling(store, Progress(9, "score", "checkpoint"), "a" * 32, "pythia", 9, meters, every)


def test_the_store_hears_of_a_job_while_it_runs_and_how_it_ended(store: Store) -> None:
    with telling(store, every=0.01) as told:
        told.tell(TALLY, 2, WORKERS)
        while not store.heard_jobs() or heard(store).done != 7:
            time.sleep(0.01)
        job = heard(store)
        assert (job.state, job.scored, job.failed, job.elsewhere, job.workers) == ("running", 4, 1, 2, 3)
        assert job.tokens == 1200 and job.waiting == 0.25 and job.family == "pythia"
    assert (heard(store).state, heard(store).summary) == ("done", "4 checkpoints scored, 1 failed, 2 by other jobs")


@pytest.mark.parametrize(("error", "state"), [(ValueError("no\nroom"), "failed"), (KeyboardInterrupt(), "interrupted")])
def test_a_job_that_is_ended_says_so(error: BaseException, state: str, store: Store) -> None:
    with pytest.raises(type(error)), telling(store):
        raise error
    assert heard(store).state == state
    assert heard(store).summary == (
        "no room" if state == "failed" else "0 checkpoints scored, 0 failed, 0 by other jobs"
    )


def test_a_store_that_takes_no_heartbeat_is_said_once_and_stops_nothing(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "store" / "jobs").write_text("a file where a folder belongs")
    with caplog.at_level(logging.INFO, "klray"), telling(store) as told:
        told.tell(TALLY, 2, WORKERS)
    assert caplog.text.count("klray status will not show this job") == 1
    (summary,) = [record.summary for record in caplog.records if hasattr(record, "summary")]
    assert summary["done"] == 7 and summary["state"] == "done"


def test_metrics_are_those_of_the_tally(store: Store) -> None:
    meters = Meters()
    with telling(store, meters) as told:
        told.tell(TALLY, 2, WORKERS)
    assert meters.told == metric_values(TALLY, 2, WORKERS) and set(meters.told) == set(METRICS)
    outcomes = meters.told["klray_checkpoints"]
    assert outcomes == {"scored": 3, "taken_over": 1, "elsewhere": 2, "failed": 1}
    assert sum(outcomes.values()) == TALLY.done


def test_the_line_of_progress_says_how_much_of_the_time_is_waiting() -> None:
    assert note(TALLY) == "1,200 tokens, 1 failed, 25% of the time waiting for downloads"
    assert note(Tally(tokens=5)) == "5 tokens"
