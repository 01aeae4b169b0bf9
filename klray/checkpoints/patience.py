"""When to ask a hub again: what was in vain, the pauses that a hub asks for, and those who keep them together."""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import parse_ratelimit_headers

from klray.errors import Pauses, seconds_named

log = logging.getLogger("klray")

T = TypeVar("T")

# 1, 2, ... 16 s, unless the hub names a time. It counts requests over five minutes: for longer than 900 s nobody waits.
PAUSES = Pauses(first=1.0, attempts=6, spread=0.1, longest=900.0)
ANSWERS_SECONDS = 50.0  # for one question, a silent hub has two attempts
TOO_MANY = 429
TRANSIENT_STATUS = (408, TOO_MANY, 500, 502, 503, 504)
# RuntimeError: after a refused connection huggingface_hub closes the client that all threads share, and the others find
# "Cannot send a request, as the client has been closed"; hf_xet raises it for network failures as well.
NETWORK_ERRORS = (HTTPError, OSError, RuntimeError)
# Of a hub that nobody has reached yet: its address is wrong, or there is no network.
FIRST_ATTEMPTS = 3
# What no hub has seen yet: an address without https://, a token that no header can hold.
_UNSENT = ("UnsupportedProtocol", "LocalProtocolError")
_UNCONNECTED = "ConnectError"  # refused, or a name that is no host's


class Patience:
    """One pause for all downloads of this process; a sweep has one for all its actors (``klray.sweep``)."""

    def __init__(self) -> None:
        self._until = 0.0
        self._lock = threading.Lock()

    def pause(self, seconds: float) -> None:
        """Let nobody ask the hub for anything before ``seconds`` have passed."""
        with self._lock:
            self._until = max(self._until, time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds until the hub may be asked; 0 when it may be now."""
        with self._lock:
            return max(0.0, self._until - time.monotonic())

    def wait(self) -> None:
        """Return when the hub may be asked."""
        while (left := self.left()) > 0:
            log.info("the hub wants to be left alone for %.0f s more", left)
            time.sleep(PAUSES.spread_over(left))


class Said:
    """Tells what several threads find at once, and go on to find, once for each pause."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._lock = threading.Lock()

    def warn(self, words: str, seconds: float) -> None:
        """Say that what failed with ``words`` is tried again in so many seconds, if nobody has while they last."""
        words, now = f"{words}; asking again in {seconds:g} s", time.monotonic()
        with self._lock:
            new = self._until.get(words, now) <= now
            self._until = {each: until for each, until in self._until.items() if until > now}
            self._until.setdefault(words, now + seconds)
        if new:
            log.warning("%s", words)


_said = Said()


def asked_again(request: Callable[[], T], said: Callable[[BaseException], str], reached: bool = True) -> T:
    """What ``request`` returns, repeated while what it raises may pass; ``said`` are an error's words for the log.

    Not again once the answers took ``ANSWERS_SECONDS`` together, or the pauses would be above the longest one; nor
    after ``FIRST_ATTEMPTS`` where no connection is made to a hub that nobody has ``reached``.
    """
    failed, waited, answering = 0, 0.0, 0.0
    while True:
        start = time.monotonic()
        try:
            return request()
        except NETWORK_ERRORS as error:
            failed += 1
            answering += time.monotonic() - start
            seconds = pause_after(error, failed)
            if seconds is None or waited + seconds > PAUSES.longest or answering > ANSWERS_SECONDS:
                raise
            if not reached and failed >= FIRST_ATTEMPTS and type(error).__name__ == _UNCONNECTED:
                raise
            waited += seconds
            _said.warn(said(error), seconds)
        time.sleep(PAUSES.spread_over(seconds))


def pause_after(error: BaseException, failed: int) -> float | None:
    """Seconds until what was in vain ``failed`` times in a row is worth another try; None when it is not."""
    if type(error).__name__ in _UNSENT:
        return None
    response = response_of(error)
    if response is None:
        return PAUSES.after(failed)
    if response.status_code not in TRANSIENT_STATUS:
        return None
    try:
        limit = parse_ratelimit_headers(response.headers) if response.status_code == TOO_MANY else None
        named = None if limit is None else float(limit.reset_in_seconds)
    except (ValueError, OverflowError):  # no number of seconds
        return None
    return PAUSES.after(failed, seconds_named(response.headers.get("retry-after", "")) if limit is None else named)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that caused it, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def response_of(error: BaseException) -> Any:
    """The hub's answer that an error, or one that caused it, is about; None for a connection that broke."""
    responses = (getattr(one, "response", None) for one in chain(error))
    return next((response for response in responses if response is not None), None)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that caused it, says that the disk or the quota is full."""
    words = os.strerror(errno.ENOSPC)  # hf_xet gives them without the number
    return any(
        (isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT)) or words in str(one)
        for one in chain(error)
    )
