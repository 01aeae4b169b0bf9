"""Numbers as a person says them."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number of things, by the noun for one of them.

    >>> counted(1, "repository"), counted(0, "repository"), counted(1200, "checkpoint")
    ('1 repository', '0 repositories', '1,200 checkpoints')
    """
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours.

    >>> duration(0.04), duration(42), duration(600), duration(90000)
    ('0.0 s', '42.0 s', '10.0 min', '25.0 h')
    """
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
