"""The objects of a store behind a web server, for reading: a public bucket, a CDN, a folder that is served."""

import functools
from collections.abc import Mapping
from typing import Any, NoReturn

from aiohttp import ClientError, ClientResponseError
from fsspec.implementations.http import HTTPFileSystem

from klray.errors import Pauses, StoreError, StoreUnreachableError
from klray.store.objects.base import Objects
from klray.store.objects.retry import Trouble, patiently
from klray.words.secrets import without_secrets

REQUESTS_AT_ONCE = 16
PAUSES = Pauses(first=0.1, attempts=5, spread=2.0)  # 0.2 s ... 1.6 s in the mean, 3 s in all
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
                return bytes(self._files.cat_file(self._path(key)))
            except FileNotFoundError:
                return None

        return patiently(attempt, PAUSES, (ClientError, OSError), functools.partial(self._trouble, key))

    def get_many(self, keys: list[str]) -> list[bytes | None]:
        paths = [self._path(key) for key in keys]
        found = self._files.cat(paths, on_error="return", batch_size=REQUESTS_AT_ONCE) if keys else {}
        bodies = [found[path] for path in paths]
        return [body if isinstance(body, bytes) else self.get(key) for key, body in zip(keys, bodies, strict=True)]

    def _trouble(self, key: str, error: Exception) -> Trouble:
        """What is wrong with the server; an answer that will be the same is raised."""
        status = error.status if isinstance(error, ClientResponseError) else None
        said = f"HTTP status {status}" if status else without_secrets(str(error)) or type(error).__name__
        found = StoreUnreachableError(
            f"store {self.url}: {self._path(key)} cannot be read ({said}); check the address, and that everybody may "
            "read there"
        )
        if status is not None and status not in BUSY:
            raise found from error
        return Trouble(f"store {self.url}: the server does not give {key} ({said})", found)

    def _unwritable(self, *_: Any, **__: Any) -> NoReturn:
        self._refuse("written to")

    conditional_put = put = put_many = copy = delete_tree = _unwritable

    def _unlistable(self, *_: Any, **__: Any) -> NoReturn:
        self._refuse("listed")

    fingerprints = names = listing = _unlistable

    def _refuse(self, what: str) -> NoReturn:
        raise StoreError(
            f"store.url={self.url}: over {self.url.split(':')[0]}:// a store can be read, not {what}; name the bucket, "
            "as s3://bucket/prefix"
        )
