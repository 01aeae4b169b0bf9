"""The objects of a store in a bucket on S3: patience, and words for refusals, whichever library sends the requests.

Credentials, endpoint and region come from the usual environment variables and profiles, never from a config.
"""

import abc
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from botocore.exceptions import (
    BotoCoreError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
)
from botocore.session import Session

from klray.errors import Pauses, StoreDamagedError, StoreUnreachableError
from klray.store.objects.base import JSON_BYTES, Listed, Objects, is_key
from klray.store.objects.endpoint import check_endpoint
from klray.store.objects.retry import Trouble, patiently
from klray.store.objects.roles import Action, who_may
from klray.words.secrets import without_secrets

T = TypeVar("T")

log = logging.getLogger("klray")

REQUESTS_AT_ONCE = 32
MOST_LISTED = 20_000_000  # objects: of 3,000,000 columns
PAUSES = Pauses(first=0.1, attempts=8, spread=2.0)  # 0.2 s ... 12.8 s in the mean, 25 s in all
REFUSED = {"PreconditionFailed", "412"}
BUSY = {
    *("ConditionalRequestConflict", "409", "SlowDown", "ServiceUnavailable", "503", "InternalError", "500", "429"),
    *("RequestTimeout", "408", "BadGateway", "502", "GatewayTimeout", "504"),  # S3 says RequestTimeout with status 400
}
DENIED = {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
# Credentials that were there and cannot be renewed; botocore says RuntimeError of what is expired when it is fetched.
LAPSED = (CredentialRetrievalError, PartialCredentialsError, SSOError, RuntimeError)
PROVIDER = "External AWS credential provider: "  # obstore's words before the same
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
        for library in ("botocore", "aiobotocore"):
            logging.getLogger(f"{library}.credentials").addFilter(_is_sentence)

    def __getstate__(self) -> dict[str, Any]:
        # Threads and connections stay here: whoever gets a copy makes its own, with its own credentials.
        return {name: value for name, value in self.__dict__.items() if name in ("url", "_root", "_options")}

    @abc.abstractmethod
    def _send(self, key: str, body: bytes | bytearray, *, new: bool = False, content_type: str = "") -> None:
        """Put an object; with ``new`` only if there is none."""

    @abc.abstractmethod
    def _fetch(self, key: str, most: int) -> bytes:
        """The object's bytes; StoreDamagedError, before more of them are read, if there are more than ``most``."""

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

    @staticmethod
    @abc.abstractmethod
    def _codes(error: BaseException | None) -> set[str]:
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

    def put(self, key: str, body: bytes | bytearray, content_type: str = "") -> None:
        self._patiently(lambda: self._send(key, body, content_type=content_type), key)

    def put_many(self, bodies: Mapping[str, bytes]) -> None:
        list(_threads().map(self.put, bodies.keys(), bodies.values()))

    def get_many(self, keys: list[str], most: int = JSON_BYTES) -> Iterator[bytes | StoreDamagedError | None]:
        return _threads().map(self._get_or_damage, keys, itertools.repeat(most))

    def copy(self, source: str, target: str, fingerprint: str) -> bool:
        self._checked(source)

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

    def get(self, key: str, most: int = JSON_BYTES) -> bytes | None:
        return self._look(lambda: self._fetch(key, most), None, key, "read")

    def names(self, prefix: str) -> list[str]:
        found: list[str] = self._look(lambda: self._list(prefix), [], prefix, "list")
        return sorted(filter(is_key, found))

    def _look(self, attempt: Callable[[], T], nothing: T, key: str, action: Action) -> T:
        """What ``attempt`` finds, or ``nothing`` where there is none."""

        def look() -> T:
            try:
                return attempt()
            except FileNotFoundError as error:
                if "NoSuchBucket" in self._codes(error):
                    raise
                return nothing

        return self._patiently(look, key, action)

    def listing(self, prefix: str) -> dict[str, Listed]:
        found, mark = self._patiently(lambda: self._page(prefix, ""), prefix, "list")
        while mark:
            before = len(found)
            page, mark = self._patiently(functools.partial(self._page, prefix, mark), prefix, "list")
            found |= page
            if not before < len(found) < MOST_LISTED and mark:
                raise StoreUnreachableError(f"store {self.url}: the server lists {prefix} without end; ask another")
        below = f"{prefix}/" if prefix else ""
        return {key: each for key, each in found.items() if is_key(key) and key.startswith(below)}

    def delete_tree(self, prefix: str) -> None:
        # One by one: of a bulk deletion s3fs passes over what S3 answers for single keys, such as that it is forbidden.
        for key in [*self.walk(prefix), prefix]:
            self.delete(key)

    def delete(self, key: str) -> None:
        self._patiently(functools.partial(self._remove, key), key, "delete")

    @functools.cached_property
    def _anonymous(self) -> bool:
        """Whether requests are not signed: as asked, or as there are no credentials. Decided once for each opening."""
        if self._options.get("anon") or self._options.get("key"):
            return bool(self._options.get("anon"))
        try:
            found = self._session().get_credentials()
        except BotoCoreError as error:  # there is no such profile
            raise StoreUnreachableError(f"store {self.url}: {error}; check AWS_PROFILE and ~/.aws/config") from error
        if found is not None:
            return False
        log.info("no S3 credentials were found: reading %s anonymously", self.url)
        return True

    def _session(self) -> Session:
        return Session(profile=self._options.get("profile"))

    def _patiently(self, attempt: Callable[[], T], key: str, action: Action = "write") -> T:
        """Repeat while the server is busy; put what it refuses into words."""
        self._checked(key)
        if self._anonymous and not self._options.get("anon") and action not in ("read", "list"):
            raise self._no_credentials()

        def trouble(error: Exception) -> Trouble:
            if isinstance(error, NoCredentialsError):
                raise self._no_credentials() from error
            if said := _lapsed(error):
                raise StoreUnreachableError(
                    f"store {self.url}: the S3 credentials have lapsed ({said}); renew them where they come from, by "
                    "the profile, the role or the variables of this machine, and run the same command again"
                ) from error
            codes = self._codes(error)
            if refusal := self._refusal(error, codes, key, action):
                raise StoreUnreachableError(f"store {self.url}: {refusal}") from error
            if codes & BUSY:
                said = _listed(codes)
                busy, tried = f"store {self.url}: the server is busy", f"after {PAUSES.attempts} attempts"
                cure = f"for {self._path(key)} it answered {said} {tried}; wait, and run the same command again"
                return Trouble(f"{busy} ({said})", StoreUnreachableError(f"{busy}: {cure}"))
            if not isinstance(error, (*self.silence, ConnectionError)):
                raise error
            said = without_secrets(str(error)) or type(error).__name__
            return Trouble(
                f"store {self.url}: the server does not answer ({said})",
                StoreUnreachableError(
                    f"store {self.url}: the server did not answer ({said}); check AWS_ENDPOINT_URL and the network"
                ),
            )

        return patiently(attempt, PAUSES, (*self.silence, NoCredentialsError, RuntimeError, OSError), trouble)

    def _no_credentials(self) -> StoreUnreachableError:
        return StoreUnreachableError(
            f"store {self.url}: no S3 credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
            "AWS_PROFILE, or read anonymously with +store.storage_options.anon=true"
        )

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


def _is_sentence(record: logging.LogRecord) -> bool:
    """Whether a line has no traceback, as each request has one while credentials cannot be renewed: errors say it."""
    return not record.exc_info


@functools.cache
def _threads() -> ThreadPoolExecutor:
    # obstore lets go of the interpreter while it waits; its coroutines took 1.4 times the CPU time of threads (2,000
    # objects of 40 kB). One pool for all stores of a process: this many requests at once, however many ask.
    return ThreadPoolExecutor(REQUESTS_AT_ONCE, "klray-s3")


def _lapsed(error: Exception) -> str:
    """Why credentials can be had no longer; "" if that is not what is wrong."""
    words = without_secrets(" ".join(str(error).split()))
    if PROVIDER in words:
        return words.rpartition(PROVIDER)[2].partition(": ")[2]
    return words if isinstance(error, LAPSED) and "credentials" in words.lower() else ""


def _listed(codes: set[str]) -> str:
    return ", ".join(sorted(codes - {"", "None"}))
