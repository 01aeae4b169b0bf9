"""The table of docs/measurements.md: every architecture, or those that are named."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from klray.likelihood.quiet import quiet
from tests.architectures.scored import NATS, Scored, scored
from tests.architectures.tiny import ARCHITECTURES

HEADING = f"""| architecture | kind | klray | largest difference in nats ({NATS:g} allowed) | next checkpoint in place |
|---|---|---|---|---|"""


def row(name: str, kind: str, made: Scored) -> str:
    """A line of the table."""
    if made.refusal:
        reason, _, words = made.refusal.partition(": ")
        words = re.split(r", so |: | \(", words.removeprefix("it: "))[0]
        return f"| {name} | {kind} | refused ({reason}): {words} | | |"
    how = "scored" if made.head == "tiled" else "scored, one text at a time"
    return f"| {name} | {kind} | {how} | {made.error:.0e} | {'yes' if made.in_place else 'no'} |"


def main(names: list[str]) -> int:
    """Exit code 0 if every architecture is right."""
    print(HEADING)
    wrong = []
    for each in ARCHITECTURES:
        if names and each.name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                with quiet():
                    made = scored(each, Path(folder))
            except Exception as error:  # noqa: BLE001 - the others are looked at, too
                made = Scored(float("nan"), f"{type(error).__name__}: {str(error)[:200]}")
        print(row(each.name, each.kind, made), flush=True)
        if not made.is_right:
            wrong.append(each.name)
    if wrong:
        print(f"wrong: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
