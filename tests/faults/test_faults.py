"""The fault campaign, some hundred schedules of it, with the same seeds every time; ``make faults`` runs thousands."""

from __future__ import annotations

import pytest

from klray.store.objects import FolderObjects
from tests.conftest import S3_SERVER
from tests.faults import directed, machine, network, processes, readers, sharing, verbs


@pytest.mark.slow
def test_machine_finds_no_schedule_that_breaks_a_promise() -> None:
    done = machine.run(60, seed_number=1)
    assert done["schedules"] >= 60
    assert all(done[fault] for fault in ("crash before", "crash after", "error before", "lost acknowledgement"))
    assert done["publisher"] and done["repair"] and done["rows read"]


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "schedules"), [("s3fs", 3), ("obstore", 2)])
def test_jobs_survive_a_network_that_misbehaves(backend: str, schedules: int) -> None:
    done = network.run(schedules, 1, S3_SERVER, backend)
    assert done["schedules"] == schedules


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", S3_SERVER])
def test_readers_see_what_is_there_now(place: str) -> None:
    assert readers.run(1, 1, place)["schedules"] == 1


@pytest.mark.slow
def test_writers_killed_at_every_step_leave_each_column_once() -> None:
    assert processes.run(1, 1, "folder")["steps hit"] > 10


@pytest.mark.slow
def test_sixteen_jobs_share_a_list_though_some_die_sleep_or_have_other_clocks() -> None:
    assert sharing.run(1, 1, "folder")["scored"] >= sharing.N_CHECKPOINTS - len(sharing.KINDS) * sharing.MOST_LOST


@pytest.mark.slow
def test_verbs_killed_at_any_moment_make_the_same_when_they_run_again() -> None:
    assert verbs.run(2, 1)["schedules"] == 2 * len(verbs.VERBS)


@pytest.mark.parametrize("how", range(3))
def test_damaged_chunk_is_not_copied_on(how: int) -> None:
    directed.publish_from_a_damaged_chunk(how)


@pytest.mark.parametrize("how", range(2))
def test_copy_that_ignores_its_fingerprint_is_caught(how: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(objects: FolderObjects, source: str, target: str, _: str) -> bool:
        body = objects.get(source)
        if body is not None:
            objects.put(target, body)
        return body is not None

    monkeypatch.setattr(FolderObjects, "copy", careless)
    with pytest.raises((AssertionError, ValueError), match=r"is not what any commit|cannot reshape|buffer"):
        directed.publish_from_a_damaged_chunk(how)
