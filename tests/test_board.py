"""What workers say on its way to the driver's log."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from klray.sweep import board
from klray.sweep.board import MOST_LINES, Board, Line, Sent

TOKEN = "hf_" + "a" * 34
log = logging.getLogger("klray")


class Handle:
    """As Ray's handle of an actor, of a board in this process."""

    def __init__(self, there: Board):
        self.say = self
        self._board = there

    def remote(self, line: Line) -> None:
        self._board.say(line)


@pytest.fixture
def there() -> Board:
    return Board()


@pytest.fixture
def sent(there: Board) -> Iterator[Sent]:
    handler = Sent(Handle(there), "node1")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler
    log.removeHandler(handler)


def test_what_a_worker_tells_comes_with_its_host_and_checkpoint(there: Board, sent: Sent) -> None:
    sent.checkpoint = "lab/a@main"
    log.info("the hub wants to be left alone for %.0f s more", 12.0)
    log.info("token=%s\nand more", TOKEN)
    log.warning("told with the checkpoint")
    log.debug("told to nobody")
    first, second = there.said()[1]
    assert first == ("node1", "lab/a@main", "the hub wants to be left alone for 12 s more")
    assert TOKEN not in second[2] and "\n" not in second[2]
    assert there.said()[1] == []


def test_one_line_of_a_kind_is_sent_now_and_then(there: Board, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds in range(5):
        log.info("left alone for %d s", seconds)
    assert len(there.said()[1]) == 1
    monkeypatch.setattr(board, "SAME_SECONDS", 0.0)
    log.info("left alone for 5 s")
    assert there.said()[1] == [("node1", "", "left alone for 5 s")]


def test_a_board_that_nobody_reads_keeps_no_more_than_it_may(there: Board) -> None:
    for number in range(MOST_LINES + 5):
        there.say(("node1", "", str(number)))
    assert len(there.said()[1]) == MOST_LINES


def test_a_board_holds_the_pauses(there: Board) -> None:
    assert there.left() == 0
    there.pause(30.0)
    assert 29.0 < there.left() <= 30.0
