"""What progress says, by a clock of the test's own, on real pseudo-terminals and in the log."""

from __future__ import annotations

import io
import logging
import os
import pty
import termios

import pytest

from klray.words.progress import Progress


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "klray"]


def test_start_up_does_not_enter_the_remaining_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "klray")
    clock = Clock()
    with Progress(100, "train", "step", io.StringIO(), clock) as progress:
        clock.now += 80  # start-up
        progress.advance(0)  # nothing is finished by it
        clock.now += 20
        for _ in range(21):  # the first step at 100 s, then one each 2 s
            progress.advance()
            clock.now += 2
    lines = _logged(caplog)
    assert lines[:3] == ["train: 100 steps to do", "train: 0 of 100 steps, 80 s", "train: 1 of 100 steps, 100 s"]
    assert lines[3] == "train: 9 of 100 steps, 116 s, 0.50 steps/s, 182 s left"


@pytest.mark.parametrize(("burst", "seconds", "shown"), [(40, 9.0, False), (2, 60.0, False), (3, 60.0, True)])
def test_no_estimate_from_few_units_or_a_short_time(
    caplog: pytest.LogCaptureFixture, burst: int, seconds: float, shown: bool
) -> None:
    caplog.set_level(logging.INFO, "klray")
    clock = Clock()
    with Progress(100, "score", "checkpoint", io.StringIO(), clock) as progress:
        progress.advance()
        clock.now += seconds
        progress.advance(burst, "3 failed")
    line = _logged(caplog)[-1]
    assert line.endswith(", 3 failed")
    assert ("left" in line, "/s" in line) == (shown, shown)


def test_one_unit_is_not_many(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "klray")
    for total in (1, 2):
        with Progress(total, "score", "checkpoint", io.StringIO(), Clock()) as progress:
            progress.advance(total)
    one, two = ["score: 1 checkpoint to do", "score: 1 of 1 checkpoint, 0 s"], ["score: 2 checkpoints to do"]
    assert _logged(caplog) == [*one, *two, "score: 2 of 2 checkpoints, 0 s"]


def test_what_begins_is_said_at_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "klray")
    with Progress(36, "score", "checkpoint", io.StringIO(), Clock()):
        assert _logged(caplog) == ["score: 36 checkpoints to do"]
    with Progress(0, "score", "checkpoint", io.StringIO(), Clock()):
        pass
    assert len(_logged(caplog)) == 1, "nothing begins where nothing is to be done"


@pytest.mark.parametrize("columns", [0, 100])
def test_a_bar_is_drawn_only_where_it_has_columns(caplog: pytest.LogCaptureFixture, columns: int) -> None:
    caplog.set_level(logging.INFO, "klray")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    clock = Clock()
    with os.fdopen(theirs, "w") as terminal:
        with Progress(50, "train", "step", terminal, clock) as progress:
            progress.advance()
            clock.now += 20
            progress.advance(10, "loss 2.31")
        terminal.write("end")
        terminal.flush()
        shown = ""
        while not shown.endswith("end"):  # a terminal hands its output over in pieces
            shown += os.read(ours, 65536).decode()
    os.close(ours)
    if columns:
        assert "train:  22%|" in shown
        assert "11/50" in shown
        assert "0.50 steps/s, 78 s left, loss 2.31]" in shown
        assert not _logged(caplog)
    else:
        assert shown == "end"
        assert _logged(caplog)[-1:] == ["train: 11 of 50 steps, 20 s, 0.50 steps/s, 78 s left, loss 2.31"]
