"""The objects of a store behind a web server, for reading: a public bucket, a CDN, a folder that is served."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from aiohttp import ClientError, ClientResponseError
from fsspec.implementations.http import HTTPFileSystem

from klray.errors import StoreError, StoreUnreachableError
from klray.store.objects.base import Listed, Objects

T = TypeVar("T")

REQUESTS_AT_ONCE = 16
ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 0.2  # doubled each time: 3 s in all
BUSY = {408, 429, 500, 502, 503, 504}


class WebObjects(Objects):
    """Objects below ``https://host/path``; every write is refused, and nothing can be listed."""

    listable = False

    def __init__(self, url: str, storage_options: Mapping[str, Any]):
        self.url = url.rstrip("/")
        self._files = HTTPFileSystem(**storage_options, use_listings_cache=False, skip_instance_cache=True)

    def _path(self, key: str) -> str:
        return f"{self.url}/{key}"

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
        found = self._files.cat(paths, on_error="return", batch_size=REQUESTS_AT_ONCE)
        bodies = [found[path] for path in paths]
        return [body if isinstance(body, bytes) else self.get(key) for key, body in zip(keys, bodies, strict=True)]

    def _patiently(self, attempt: Callable[[], T], key: str) -> T:
        pause = FIRST_PAUSE_SECONDS
        for last in [False] * (ATTEMPTS - 1) + [True]:
            try:
                return attempt()
            except (ClientError, OSError) as error:
                status = error.status if isinstance(error, ClientResponseError) else None
                if last or (status is not None and status not in BUSY):
                    found = f"HTTP status {status}" if status else str(error) or type(error).__name__
                    raise StoreUnreachableError(
                        f"store {self.url}: {self._path(key)} cannot be read ({found}); check the address, and that "
                        "everybody may read there"
                    ) from error
            time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not cryptography
            pause *= 2
        raise AssertionError("the last attempt returns or raises")

    def conditional_put(self, key: str, body: bytes) -> bool:
        self._refuse("written to")

    def put(self, key: str, body: bytes | bytearray) -> None:
        self._refuse("written to")

    def put_many(self, bodies: Mapping[str, bytes]) -> None:
        self._refuse("written to")

    def copy(self, source: str, target: str, fingerprint: str) -> bool:
        self._refuse("written to")

    def delete_tree(self, prefix: str) -> None:
        self._refuse("written to")

    def fingerprints(self, prefix: str) -> dict[str, str]:
        self._refuse("listed")

    def names(self, prefix: str) -> list[str]:
        self._refuse("listed")

    def listing(self, prefix: str) -> dict[str, Listed]:
        self._refuse("listed")

    def _refuse(self, what: str) -> NoReturn:
        raise StoreError(
            f"store.url={self.url}: over {self.url.split(':')[0]}:// a store can be read, not {what}; name the bucket, "
            "as s3://bucket/prefix"
        )
