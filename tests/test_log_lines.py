"""Log lines for people and for machines."""

from __future__ import annotations

import json
import logging

from klray.words.log_lines import JsonLines, Words


def line(formatter: logging.Formatter, words: str, *args: object, **extra: object) -> str:
    record = logging.getLogger("klray").makeRecord("klray", logging.WARNING, "file", 1, words, args, None, extra=extra)
    return formatter.format(record)


def test_what_a_worker_said_has_its_host_and_checkpoint() -> None:
    assert line(Words(), "budget %s", "halved", host="node1", checkpoint="lab/a@main").endswith(
        " node1 lab/a@main: budget halved"
    )
    assert line(Words(), "on %d workers", 3)[8:] == " on 3 workers"


def test_a_line_of_json_is_one_line_whatever_it_quotes() -> None:
    text = line(JsonLines(), "said: %s", "two\nlines\x1b[2J", host="node1", summary={"scored": 3})
    assert "\n" not in text and "\x1b" not in text
    found = json.loads(text)
    assert found["level"] == "warning" and found["host"] == "node1" and found["summary"] == {"scored": 3}
    assert found["time"].endswith("+00:00") and "checkpoint" not in found


def test_an_error_is_told_with_where_it_came_from() -> None:
    try:
        raise ValueError("odd")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.getLogger("klray").makeRecord("klray", logging.ERROR, "f", 1, "lost", (), info)
    assert "ValueError: odd" in json.loads(JsonLines().format(record))["traceback"]
