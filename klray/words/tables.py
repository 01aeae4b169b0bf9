"""Lines and tables for the terminal: the only place that prints."""

import sys
from collections.abc import Sequence
from typing import TextIO

from klray.words.outside import one_line, printable

WIDEST = 200  # characters of a cell, but for the last column of text, whose words go on to the end of the line


def say(line: str = "", file: TextIO | None = None) -> None:
    """Print one line, whatever it quotes; ? for what the terminal's encoding lacks, such as ASCII."""
    stream = file or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(one_line(line).encode(encoding, "replace").decode(encoding), file=stream)


def flush() -> None:
    """Send what was printed, if there is anything to send it to."""
    if sys.stdout is not None:  # closed by whoever started the command
        sys.stdout.flush()


def show(lines: str) -> None:
    """Print a table, or other lines that quote nothing with a line break of its own."""
    for line in lines.split("\n"):
        say(line)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """Rows in aligned columns below a ruled header; the first ``text_columns`` are flush left, numbers flush right.

    Cells are words from anywhere: each is on one line, and cut where it is not the last.
    """
    last = len(header) - 1 if text_columns == len(header) else len(header)
    lines = [
        [one_line(cell) if column == last else printable(one_line(cell), WIDEST) for column, cell in enumerate(line)]
        for line in (header, *rows)
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    aligned = [
        "  ".join(
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([aligned[0], "  ".join("-" * width for width in widths), *aligned[1:]])
