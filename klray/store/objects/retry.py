"""Asking again: the one loop of all places that are asked over a network."""

import logging
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from klray.errors import Pauses, StoreUnreachableError

T = TypeVar("T")

log = logging.getLogger("klray")


class Trouble(NamedTuple):
    """Why an attempt was in vain that may succeed later: words for the log, and the error if none ever does."""

    words: str
    error: StoreUnreachableError


def patiently(
    attempt: Callable[[], T],
    pauses: Pauses,
    errors: tuple[type[Exception], ...],
    trouble: Callable[[Exception], Trouble],
) -> T:
    """What ``attempt`` returns, repeated while ``trouble`` says of one of ``errors`` that it may pass.

    ``trouble`` raises what asking again would not mend.

    Raises StoreUnreachableError: that of the trouble with the last attempt.
    """
    failed = 0
    while True:
        try:
            return attempt()
        except errors as error:
            failed += 1
            found, seconds = trouble(error), pauses.after(failed)
            if seconds is None:
                raise found.error from error
            if failed == 1:
                log.warning("%s; trying again for a while", found.words)
        time.sleep(pauses.spread_over(seconds))
