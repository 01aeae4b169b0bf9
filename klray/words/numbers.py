"""Numbers and names as a person says them."""

import math
from collections.abc import Sequence

NONE = "–"  # where there is no number


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


def rough_duration(seconds: float) -> str:
    """Whole seconds or minutes.

    >>> rough_duration(3.2), rough_duration(119.4), rough_duration(600)
    ('3 s', '119 s', '10 min')
    """
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def significant(value: float, digits: int = 3) -> str:
    """``value`` with that many significant digits; a dash for NaN.

    >>> significant(0.0123456), significant(98765.4), significant(0.5, 2), significant(math.nan)
    ('0.0123', '98,765', '0.50', '–')
    """
    if not math.isfinite(value):
        return NONE
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:#.{digits}g}".removesuffix(".")


def with_error(value: float, error: float) -> str:
    """``value ± error``, both to two significant digits of the error; without an error, three digits of the value.

    >>> with_error(0.02341, 0.00083), with_error(0.4, math.nan)
    ('0.02341 ± 0.00083', '0.400')
    """
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return significant(value)
    decimals = max(0, 1 - math.floor(math.log10(error)))
    if decimals > 6:
        return f"{value:.2e} ± {error:.1e}"
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def from_to(low: float, high: float, between: str = " to ") -> str:
    """Both ends, three significant digits each; one number where they read the same.

    >>> from_to(0.01, 0.05), from_to(1, 1.001)
    ('0.0100 to 0.0500', '1.00')
    """
    ends = significant(low), significant(high)
    return ends[0] if ends[0] == ends[1] else between.join(ends)


def scientific(value: float, digits: int = 2) -> str:
    """``value`` as digits times a power of ten.

    >>> scientific(2.04e-4), scientific(3.1e7), scientific(3.1e7, 1)
    ('2.0e-04', '3.1e7', '3e7')
    """
    return f"{value:.{digits - 1}e}".replace("e+0", "e").replace("e+", "e")


def tiny(value: float) -> str:
    """A number that is mostly far below 1, to two digits.

    >>> tiny(0), tiny(0.0123), tiny(2.04e-4)
    ('0', '0.012', '2.0e-04')
    """
    return f"{value:.2g}" if value == 0 or value >= 1e-3 else scientific(value)


def times(value: float) -> str:
    """How many times, to as many digits as say something.

    >>> times(0.0314), times(1234.5), times(3.2e7)
    ('0.03 times', '1,234 times', '3e7 times')
    """
    if value >= 1e6:
        return f"{scientific(value, 1)} times"
    return f"{value:,.0f} times" if value >= 10 else f"{value:.1g} times"


def out_of(part: int, whole: int) -> str:
    """A number of things among all of them.

    >>> out_of(1200, 3000)
    '1,200 of 3,000'
    """
    return f"{part:,} of {whole:,}"


def listed(names: Sequence[str], most: int) -> str:
    """The first of several names, and how many more there are.

    >>> listed(["a", "b", "c"], 2), listed(["a"], 2)
    ('a, b and 1 more', 'a')
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")
