"""The objects of a store on S3, through s3fs: AWS, Ceph, MinIO, R2.

Credentials, endpoint and region come from the usual environment variables and profiles, never from a config.
"""

from __future__ import annotations

import functools
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, TypeVar

import s3fs
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from klray.errors import StoreError
from klray.objects.base import Objects

T = TypeVar("T")

log = logging.getLogger("klray")

REQUESTS_AT_ONCE = 32
ATTEMPTS = 8
FIRST_PAUSE_SECONDS = 0.2  # doubled each time: 0.2 s ... 12.8 s, 25 s in all
REFUSED = {"PreconditionFailed", "412"}
BUSY = {"ConditionalRequestConflict", "409", "SlowDown", "ServiceUnavailable", "503", "InternalError", "500", "429"}
DENIED = {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
GONE = {"NoSuchKey", "404"}
UNABLE = {"NotImplemented", "501", "MethodNotAllowed", "405"}


class S3Objects(Objects):
    """Objects below ``s3://bucket/prefix``; ``conditional_put`` is a put with ``If-None-Match: *``."""

    def __init__(self, url: str, storage_options: Mapping[str, Any]):
        self.url = url.rstrip("/")
        self._root = self.url.removeprefix("s3://")
        self._options = {
            **storage_options,
            # A listing cache would hide chunks that others write later: Zarr would read fill values, without an error.
            "use_listings_cache": False,
            "skip_instance_cache": True,  # an instance of before would keep the endpoint and credentials of then
            "max_concurrency": 1,  # within one object: with more, s3fs asks for each object's size before reading it
            "config_kwargs": {
                "max_pool_connections": REQUESTS_AT_ONCE,
                **storage_options.get("config_kwargs", {}),
            },
        }

    @functools.cached_property
    def _files(self) -> s3fs.S3FileSystem:
        return s3fs.S3FileSystem(**self._options)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def conditional_put(self, key: str, body: bytes) -> bool:
        def attempt() -> bool:
            try:
                self._files.pipe_file(self._path(key), body, mode="create")
            except OSError as error:
                if not (isinstance(error, FileExistsError) or _codes(error) & REFUSED):
                    raise
                # The body is this attempt's alone: if it is there, the server stored it and only its answer was lost.
                return self.get(key) == body
            return True

        return self._patiently(attempt, key)

    def put(self, key: str, body: bytes) -> None:
        self._patiently(lambda: self._files.pipe_file(self._path(key), body), key)

    def put_many(self, bodies: Mapping[str, bytes]) -> None:
        for some in _batches(list(bodies)):
            paths = {self._path(key): bodies[key] for key in some}
            self._patiently(functools.partial(self._files.pipe, paths, batch_size=REQUESTS_AT_ONCE), some[0])

    def copy(self, source: str, target: str, fingerprint: str) -> bool:
        bucket, _, prefix = self._root.partition("/")

        place = {"Bucket": bucket, "Key": f"{prefix}/{source}".lstrip("/")}

        def attempt() -> bool:
            try:
                # Ceph 16 copies whatever CopySourceIfMatch says, so it is looked at first; sources are never changed.
                if self._files.call_s3("head_object", **place)["ETag"] != fingerprint:
                    return False
                to = f"{prefix}/{target}".lstrip("/")
                self._files.call_s3(
                    "copy_object", Bucket=bucket, Key=to, CopySource=place, CopySourceIfMatch=fingerprint
                )
            except OSError as error:
                if isinstance(error, FileNotFoundError) or _codes(error) & (REFUSED | GONE | UNABLE):
                    return False
                raise
            return True

        return self._patiently(attempt, target)

    def fingerprints(self, prefix: str) -> dict[str, str]:
        return {key: str(facts["ETag"]) for key, facts in self._find(prefix)}

    def get(self, key: str) -> bytes | None:
        def attempt() -> bytes | None:
            try:
                body: bytes = self._files.cat_file(self._path(key))
            except FileNotFoundError:
                return None
            return body

        return self._patiently(attempt, key, reading=True)

    def get_many(self, keys: list[str]) -> list[bytes | None]:
        bodies: list[bytes | None] = []
        for some in _batches(keys):
            paths = [self._path(key) for key in some]
            found = self._files.cat(paths, on_error="return", batch_size=REQUESTS_AT_ONCE)
            for key, path in zip(some, paths, strict=True):
                body = found[path]
                bodies.append(body if isinstance(body, bytes) else self.get(key))
        return bodies

    def names(self, prefix: str) -> list[str]:
        def attempt() -> list[str]:
            try:
                paths: list[str] = self._files.ls(self._path(prefix), detail=False, refresh=True)
            except FileNotFoundError:
                return []
            return sorted(
                name for path in paths if (name := path.rstrip("/").rsplit("/", 1)[-1]) and path != self._path(prefix)
            )

        return self._patiently(attempt, prefix, reading=True)

    def walk(self, prefix: str) -> dict[str, datetime]:
        return {key: facts["LastModified"] for key, facts in self._find(prefix)}

    def _find(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every object below ``prefix``, page by page; s3fs's own ``find`` takes 3.5 times as long for 10,000."""
        bucket, _, root = self._root.partition("/")
        asked = {"Bucket": bucket, "Prefix": f"{root}/{prefix}/".replace("//", "/").removeprefix("/")}
        while True:
            page = self._patiently(functools.partial(self._page, **asked), prefix, reading=True)
            for facts in page.get("Contents", ()):
                yield facts["Key"].removeprefix(f"{root}/" if root else ""), facts
            if not page.get("IsTruncated"):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    def _page(self, **asked: str) -> dict[str, Any]:
        page: dict[str, Any] = self._files.call_s3("list_objects_v2", **asked)
        return page

    def delete_tree(self, prefix: str) -> None:
        # One by one: of a bulk deletion s3fs passes over what S3 answers for single keys, such as that it is forbidden.
        for key in [*self.walk(prefix), prefix]:
            self._patiently(functools.partial(self._files.rm_file, self._path(key)), key)

    @property
    def _anonymous(self) -> bool:
        return bool(self._options.get("anon"))

    def _become_anonymous(self) -> None:
        log.info("no S3 credentials were found: reading %s anonymously", self.url)
        self._options["anon"] = True
        self.__dict__.pop("_files", None)  # made again with the new options when it is next used

    def _patiently(self, attempt: Callable[[], T], key: str, *, reading: bool = False) -> T:
        """Repeat while the server is busy; put what it refuses into words."""
        pause = FIRST_PAUSE_SECONDS
        for last in [False] * (ATTEMPTS - 1) + [True]:
            try:
                return attempt()
            except NoCredentialsError as error:
                if reading and not self._anonymous:
                    self._become_anonymous()
                    continue
                raise StoreError(
                    f"store {self.url}: no S3 credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                    "or AWS_PROFILE, or read anonymously with store.storage_options.anon=true"
                ) from error
            except OSError as error:
                codes = _codes(error)
                if codes & DENIED or isinstance(error, PermissionError):
                    asked = (
                        "set credentials (this was asked anonymously)" if self._anonymous else "check the credentials"
                    )
                    raise StoreError(
                        f"store {self.url}: {self._path(key)} was refused ({', '.join(sorted(codes)) or error}); "
                        f"{asked}, and see that the bucket's policy allows this"
                    ) from error
                if "NoSuchBucket" in codes:
                    raise StoreError(f"store {self.url}: there is no such bucket; create it first") from error
                if last or not (codes & BUSY or isinstance(error, ConnectionError)):
                    raise
            except BotoCoreError as error:  # no connection, a broken answer: not an OSError
                if last:
                    raise StoreError(
                        f"store {self.url}: the server did not answer ({error}); check AWS_ENDPOINT_URL and the network"
                    ) from error
            time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not cryptography
            pause *= 2
        raise AssertionError("the last attempt returns or raises")


def _batches(keys: list[str], size: int = 8 * REQUESTS_AT_ONCE) -> list[list[str]]:
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def _codes(error: BaseException | None) -> set[str]:
    """S3's error codes and HTTP statuses along the chain of causes: s3fs maps some of them to errors that hide them."""
    codes: set[str] = set()
    while error is not None:
        if isinstance(error, ClientError):
            codes.add(str(error.response.get("Error", {}).get("Code", "")))
            codes.add(str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")))
        error = error.__cause__ or error.__context__
    return codes
