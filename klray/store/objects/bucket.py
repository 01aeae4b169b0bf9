"""The objects of a store in a bucket on S3: patience, and words for refusals, whichever library sends the requests.

Credentials, endpoint and region come from the usual environment variables and profiles, never from a config.
"""

from __future__ import annotations

import abc
import functools
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from botocore.exceptions import NoCredentialsError

from klray.errors import StoreUnreachableError
from klray.store.objects.base import Listed, Objects
from klray.store.objects.endpoint import check_endpoint
from klray.store.objects.roles import Action, who_may
from klray.words.secrets import without_secrets

T = TypeVar("T")

log = logging.getLogger("klray")

REQUESTS_AT_ONCE = 32
ATTEMPTS = 8
FIRST_PAUSE_SECONDS = 0.2  # doubled each time: 0.2 s ... 12.8 s, 25 s in all
REFUSED = {"PreconditionFailed", "412"}
BUSY = {
    *("ConditionalRequestConflict", "409", "SlowDown", "ServiceUnavailable", "503", "InternalError", "500", "429"),
    *("RequestTimeout", "408", "BadGateway", "502", "GatewayTimeout", "504"),  # S3 says RequestTimeout with status 400
}
DENIED = {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
GONE = {"NoSuchKey", "404"}
ELSEWHERE = {"PermanentRedirect", "301", "AuthorizationHeaderMalformed"}
FULL = {"QuotaExceeded", "XMinioStorageFull", "507"}
UNABLE = {"NotImplemented", "501", "MethodNotAllowed", "405"}


class BucketObjects(Objects):
    """Objects below ``s3://bucket/prefix``; ``conditional_put`` is a put with ``If-None-Match: *``.

    A subclass sends the requests, each once: it raises FileNotFoundError where there is nothing, NoCredentialsError,
    one of ``silence`` when there is no answer or a broken one, and OSError for every other answer.
    """

    silence: tuple[type[Exception], ...]

    def __init__(self, url: str, options: Mapping[str, Any]):
        self.url = url.rstrip("/")
        self._root = self.url.removeprefix("s3://")
        self._options = dict(options)
        check_endpoint(options)

    def __getstate__(self) -> dict[str, Any]:
        # Threads and connections stay here: whoever gets a copy makes its own, with its own credentials.
        return {name: value for name, value in self.__dict__.items() if name in ("url", "_root", "_options")}

    @abc.abstractmethod
    def _send(self, key: str, body: bytes | bytearray, *, new: bool = False) -> None:
        """Put an object; with ``new`` only if there is none."""

    @abc.abstractmethod
    def _fetch(self, key: str) -> bytes:
        """The object's bytes."""

    @abc.abstractmethod
    def _copy(self, source: str, target: str, fingerprint: str) -> bool:
        """Copy on the server; False, or FileNotFoundError, if ``source`` is not what it was."""

    @abc.abstractmethod
    def _list(self, prefix: str) -> list[str]:
        """Names of objects and folders directly below ``prefix``."""

    @abc.abstractmethod
    def _page(self, prefix: str, mark: str) -> tuple[dict[str, Listed], str]:
        """Some of the objects below ``prefix``, from ``mark`` on, and the mark of what follows; "" at either end."""

    @abc.abstractmethod
    def _remove(self, key: str) -> None:
        """Remove an object."""

    @abc.abstractmethod
    def _codes(self, error: Exception) -> set[str]:
        """S3's error codes and HTTP statuses that an error tells of."""

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def conditional_put(self, key: str, body: bytes) -> bool:
        def attempt() -> bool:
            try:
                self._send(key, body, new=True)
                return True
            except OSError as error:
                if not (isinstance(error, FileExistsError) or self._codes(error) & REFUSED):
                    raise
            # The body is this attempt's alone: if it is there, the server stored it and only its answer was lost.
            return self.get(key) == body  # outside of the except, whose codes would be found in get's errors

        return self._patiently(attempt, key)

    def put(self, key: str, body: bytes | bytearray) -> None:
        self._patiently(lambda: self._send(key, body), key)

    def copy(self, source: str, target: str, fingerprint: str) -> bool:
        def attempt() -> bool:
            try:
                return self._copy(source, target, fingerprint)
            except OSError as error:
                if isinstance(error, FileNotFoundError) or self._codes(error) & (REFUSED | GONE | UNABLE):
                    return False
                raise

        return self._patiently(attempt, target)

    def fingerprints(self, prefix: str) -> dict[str, str]:
        return {key: each.mark for key, each in self.listing(prefix).items()}

    def get(self, key: str) -> bytes | None:
        def attempt() -> bytes | None:
            try:
                return self._fetch(key)
            except FileNotFoundError as error:
                if "NoSuchBucket" in self._codes(error):
                    raise
                return None

        return self._patiently(attempt, key, "read")

    def names(self, prefix: str) -> list[str]:
        def attempt() -> list[str]:
            try:
                return sorted(self._list(prefix))
            except FileNotFoundError as error:
                if "NoSuchBucket" in self._codes(error):
                    raise
                return []

        return self._patiently(attempt, prefix, "list")

    def listing(self, prefix: str) -> dict[str, Listed]:
        found, mark = self._patiently(lambda: self._page(prefix, ""), prefix, "list")
        while mark:
            page, mark = self._patiently(functools.partial(self._page, prefix, mark), prefix, "list")
            found |= page
        return found

    def delete_tree(self, prefix: str) -> None:
        # One by one: of a bulk deletion s3fs passes over what S3 answers for single keys, such as that it is forbidden.
        for key in [*self.walk(prefix), prefix]:
            self._patiently(functools.partial(self._remove, key), key, "delete")

    @property
    def _anonymous(self) -> bool:
        return bool(self._options.get("anon"))

    def _become_anonymous(self) -> None:
        log.info("no S3 credentials were found: reading %s anonymously", self.url)
        self._options["anon"] = True
        self.__dict__.pop("_files", None)  # made again with the new options when it is next used

    def _patiently(self, attempt: Callable[[], T], key: str, action: Action = "write") -> T:
        """Repeat while the server is busy; put what it refuses into words."""
        pause = FIRST_PAUSE_SECONDS
        errors: tuple[type[Exception], ...] = (*self.silence, OSError)
        for last in [False] * (ATTEMPTS - 1) + [True]:
            try:
                return attempt()
            except NoCredentialsError as error:
                if action in ("read", "list") and not self._anonymous:
                    self._become_anonymous()
                    continue
                raise StoreUnreachableError(
                    f"store {self.url}: no S3 credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                    "or AWS_PROFILE, or read anonymously with +store.storage_options.anon=true"
                ) from error
            except errors as error:
                codes = self._codes(error)
                if refusal := self._refusal(error, codes, key, action):
                    raise StoreUnreachableError(f"store {self.url}: {refusal}") from error
                answered = bool(codes & BUSY)
                if not answered and not isinstance(error, (*self.silence, ConnectionError)):
                    raise
                words = _listed(codes) if answered else without_secrets(str(error)) or type(error).__name__
                if pause == FIRST_PAUSE_SECONDS:
                    found = "the server is busy" if answered else "the server does not answer"
                    log.warning("store %s: %s (%s); trying again for a while", self.url, found, words)
                if last and answered:
                    raise StoreUnreachableError(
                        f"store {self.url}: the server is busy: for {self._path(key)} it answered {words} after "
                        f"{ATTEMPTS} attempts; wait, and run the same command again"
                    ) from error
                if last:
                    raise StoreUnreachableError(
                        f"store {self.url}: the server did not answer ({words}); check AWS_ENDPOINT_URL and the network"
                    ) from error
            time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not cryptography
            pause *= 2
        raise AssertionError("the last attempt returns or raises")

    def _refusal(self, error: Exception, codes: set[str], key: str, action: Action) -> str:
        """What was refused and what to do, if asking again would not help; "" if it may, or if nobody knows."""
        path, said = self._path(key), _listed(codes)
        if "RequestTimeTooSkewed" in codes:
            return (
                f"{path} was refused ({said}); set the clock of this machine by NTP: it is off by over 15 min, unless "
                "the server's is"
            )
        if codes & FULL:
            return f"{path} was refused ({said}): the server has no room, or none for you; make room or ask for more"
        if codes & ELSEWHERE:
            return f"S3 has this bucket in another region ({said}); set AWS_DEFAULT_REGION to the bucket's"
        if codes & DENIED or isinstance(error, PermissionError):
            asked = "set credentials (this was asked anonymously)" if self._anonymous else "check the credentials"
            return (
                f"{path} was refused ({said or error}); {asked}, and see that the bucket's policy allows "
                f"this{who_may(action, key)}"
            )
        return "there is no such bucket; create it first" if "NoSuchBucket" in codes else ""


def _listed(codes: set[str]) -> str:
    return ", ".join(sorted(codes - {"", "None"}))
