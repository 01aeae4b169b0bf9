"""What strangers write in place of a name."""

from __future__ import annotations

import pytest

# Escapes that clear the screen, set the title and write to the clipboard, a forged line, HTML, half of a surrogate
# pair, a byte order mark, marks that turn the direction of writing, C1 controls, breaks of lines and paragraphs.
HOSTILE = {
    "escapes": "\x1b[2J\x1b]0;owned\x07\x1b]52;c;b3duZWQ=\x07",
    "forged line": "\n12:00:00 all 1,000 checkpoints are scored",
    "carriage return": "bad\rgood",
    "surrogate": "lab/base-\ud83d",
    "byte order mark": "\ufeffbase",
    "direction": "\u202eesab/bal\u2066",
    "C1": "\x9b31m",
    "separators": "a\u2028b\u2029c\x85d",
    "nothing": "\x00\x7f",
}
each_hostile = pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)


def assert_clean(text: str) -> None:
    for line in text.split("\n"):
        assert line.isprintable(), ascii(line)
        assert not line.startswith("12:00:00")
    text.encode()
