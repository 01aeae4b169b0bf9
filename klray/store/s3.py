"""The objects of a store on S3, through s3fs: AWS, Ceph, MinIO, R2.

Credentials, endpoint and region come from the usual environment variables and profiles, never from a config.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import s3fs
import zarr.abc.store
import zarr.storage
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from klray.errors import StoreError
from klray.store.objects import Objects

T = TypeVar("T")

ATTEMPTS = 8
FIRST_PAUSE_SECONDS = 0.2  # doubled each time: 0.2 s ... 12.8 s, 25 s in all
REFUSED = {"PreconditionFailed", "412"}
BUSY = {"ConditionalRequestConflict", "409", "SlowDown", "ServiceUnavailable", "503", "InternalError", "500", "429"}
DENIED = {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}


class S3Objects(Objects):
    """Objects below ``s3://bucket/prefix``; ``conditional_put`` is a put with ``If-None-Match: *``."""

    def __init__(self, url: str, storage_options: Mapping[str, Any]):
        self.url = url.rstrip("/")
        self._root = self.url.removeprefix("s3://")
        # A listing cache would hide chunks that others write later: Zarr would read fill values, without an error.
        self._options = {**storage_options, "use_listings_cache": False}
        self._files = s3fs.S3FileSystem(**self._options)

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

    def settle(self, prefix: str) -> None:
        """S3 answers a write no earlier than that."""

    def get(self, key: str) -> bytes | None:
        def attempt() -> bytes | None:
            try:
                body: bytes = self._files.cat_file(self._path(key))
            except FileNotFoundError:
                return None
            return body

        return self._patiently(attempt, key)

    def get_many(self, keys: list[str]) -> list[bytes | None]:
        if not keys:
            return []
        paths = [self._path(key) for key in keys]
        found = self._patiently(lambda: self._files.cat(paths, on_error="return"), keys[0])
        bodies = [found[path] for path in paths]
        return [body if isinstance(body, bytes) else self.get(key) for key, body in zip(keys, bodies, strict=True)]

    def names(self, prefix: str) -> list[str]:
        def attempt() -> list[str]:
            try:
                paths: list[str] = self._files.ls(self._path(prefix), detail=False, refresh=True)
            except FileNotFoundError:
                return []
            return sorted(
                name for path in paths if (name := path.rstrip("/").rsplit("/", 1)[-1]) and path != self._path(prefix)
            )

        return self._patiently(attempt, prefix)

    def walk(self, prefix: str) -> dict[str, datetime]:
        def attempt() -> dict[str, datetime]:
            found: dict[str, dict[str, Any]] = self._files.find(self._path(prefix), detail=True)
            return {path.removeprefix(f"{self._root}/"): facts["LastModified"] for path, facts in found.items()}

        return self._patiently(attempt, prefix)

    def delete_tree(self, prefix: str) -> None:
        def attempt() -> None:
            try:
                self._files.rm(self._path(prefix), recursive=True)
            except FileNotFoundError:
                return

        self._patiently(attempt, prefix)

    def zarr(self, prefix: str, *, read_only: bool = False) -> zarr.abc.store.Store:
        url = f"{self.url}/{prefix}"
        return zarr.storage.FsspecStore.from_url(url, storage_options=dict(self._options), read_only=read_only)

    def _patiently(self, attempt: Callable[[], T], key: str) -> T:
        """Repeat while the server is busy; put what it refuses into words."""
        pause = FIRST_PAUSE_SECONDS
        for last in [False] * (ATTEMPTS - 1) + [True]:
            try:
                return attempt()
            except NoCredentialsError as error:
                raise StoreError(
                    f"store {self.url}: no S3 credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                    "or AWS_PROFILE, or read anonymously with store.storage_options.anon=true"
                ) from error
            except OSError as error:
                codes = _codes(error)
                if codes & DENIED or isinstance(error, PermissionError):
                    raise StoreError(
                        f"store {self.url}: {self._path(key)} was refused ({', '.join(sorted(codes)) or error}); "
                        "check the credentials and that the bucket's policy allows this"
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


def _codes(error: BaseException | None) -> set[str]:
    """S3's error codes and HTTP statuses along the chain of causes: s3fs maps some of them to errors that hide them."""
    codes: set[str] = set()
    while error is not None:
        if isinstance(error, ClientError):
            codes.add(str(error.response.get("Error", {}).get("Code", "")))
            codes.add(str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")))
        error = error.__cause__ or error.__context__
    return codes
