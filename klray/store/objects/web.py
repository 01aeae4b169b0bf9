"""The objects of a store behind a web server, for reading: a public bucket, a CDN, a folder that is served."""

import asyncio
import ipaddress
import time
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, cast

from aiohttp import ClientError, ClientResponse, ClientResponseError, ClientTimeout
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem
from yarl import URL

from klray.errors import Pauses, StoreDamagedError, StoreError, StoreUnreachableError
from klray.store.objects.base import JSON_BYTES, Objects
from klray.store.objects.retry import Trouble, patiently
from klray.words.secrets import without_secrets

REQUESTS_AT_ONCE = 16
PAUSES = Pauses(first=0.1, attempts=5, spread=2.0)  # 0.2 s ... 1.6 s in the mean, 3 s in all
BUSY = {408, 429, 500, 502, 503, 504}
SILENT_SECONDS = 15.0  # without a byte
PATIENCE_SECONDS = 20.0  # after which nothing is asked again
SLOWEST = 4096.0  # bytes per second of each request, after the first seconds of silence that are allowed
MOVED = {301, 302, 303, 307, 308}
MOST_MOVES = 5
OWN = {"headers", "auth", "cookies", "cookie_jar"}  # options that may hold what no other host may know


class WebObjects(Objects):
    """Objects below ``https://host/path``; every write is refused, and nothing can be listed.

    What the server sends is read within bounds of bytes and time, as it stands: it is asked for no compression, because
    what unfolds may be any size. It may send klray on to another host only over https, to no internal address, and not
    if the options hold headers or credentials.
    """

    listable = False

    def __init__(self, url: str, storage_options: Mapping[str, Any]):
        self.url = url.rstrip("/")
        given = storage_options.get("client_kwargs", {})
        timeout = ClientTimeout(total=None, sock_connect=SILENT_SECONDS, sock_read=SILENT_SECONDS)
        options = {**storage_options, "client_kwargs": {"timeout": timeout, **given, "auto_decompress": False}}
        self._private = bool(OWN & {*given, *storage_options})
        self._files = HTTPFileSystem(**options, use_listings_cache=False, skip_instance_cache=True)

    def _path(self, key: str) -> str:
        return f"{self.url}/{self._checked(key)}"

    def get(self, key: str, most: int = JSON_BYTES) -> bytes | None:
        start = time.monotonic()

        def attempt() -> bytes | None:
            try:
                return cast(bytes | None, sync(self._files.loop, self._asked, key, most))
            except TimeoutError:
                raise ConnectionError("it is silent") from None

        return patiently(attempt, PAUSES, (ClientError, OSError), lambda error: self._trouble(key, error, start))

    def get_many(self, keys: list[str], most: int = JSON_BYTES) -> Iterator[bytes | StoreDamagedError | None]:
        async def asked() -> list[bytes | BaseException | None]:
            free = asyncio.Semaphore(REQUESTS_AT_ONCE)

            async def one(key: str) -> bytes | None:
                async with free:
                    return await self._asked(key, most)

            return await asyncio.gather(*map(one, keys), return_exceptions=True)

        for key, found in zip(keys, sync(self._files.loop, asked), strict=True):
            again = isinstance(found, BaseException) and not isinstance(found, StoreDamagedError)
            yield self._get_or_damage(key, most) if again else found

    async def _asked(self, key: str, most: int) -> bytes | None:
        """The object as one request brings it, and those that the server sends on to."""
        session = await self._files.set_session()
        url = self._files.encode_url(self._path(key))
        options = {**self._files.kwargs, "allow_redirects": False}
        options["headers"] = {**options.get("headers", {}), "Accept-Encoding": "identity"}
        for _ in range(MOST_MOVES):
            async with await asyncio.wait_for(session.get(url, **options), 2 * SILENT_SECONDS) as answer:
                if answer.status == 404:
                    return None
                if answer.status not in MOVED:
                    answer.raise_for_status()
                    return await self._body(key, answer, most)
                url = await self._sent_on(key, answer)
        raise StoreUnreachableError(f"store {self.url}: the server sends {key} on without end; check the address")

    async def _body(self, key: str, answer: ClientResponse, most: int) -> bytes:
        if (encoding := answer.headers.get("Content-Encoding", "identity")) != "identity":
            raise StoreUnreachableError(
                f"store {self.url}: the server sends {key} compressed ({encoding}) though it was asked not to; "
                "serve the store's files as they are"
            )
        self._check_size(key, answer.content_length or 0, most)
        start, body = time.monotonic(), bytearray()
        async for block in answer.content.iter_any():
            body += block
            self._check_size(key, len(body), most)
            if len(body) < (time.monotonic() - start - SILENT_SECONDS) * SLOWEST:
                raise ConnectionError(f"it gives less than {SLOWEST:,.0f} bytes/s")
        return bytes(body)

    async def _sent_on(self, key: str, answer: ClientResponse) -> URL:
        """Where a redirect leads. Raises StoreUnreachableError: klray does not go there."""
        location = answer.headers.get("Location", "")
        try:
            target = answer.url.join(URL(location, encoded=True))
            same = target.origin() == answer.url.origin()
        except ValueError:
            target, same = URL(), False
        why = ""
        if not same and target.scheme != "https":
            why = "which is not https"
        elif not same and self._private:
            why = "and the options hold headers or credentials"
        elif not same and await _is_internal(target.host or ""):
            why = "an internal address"
        if why:
            shown = without_secrets(ascii(location.partition("?")[0][:200]))
            raise StoreUnreachableError(
                f"store {self.url}: the server sends {key} on to {shown}, {why}: klray does not go there; open the "
                "store at its own address"
            )
        return target

    def _trouble(self, key: str, error: Exception, start: float) -> Trouble:
        """What is wrong with the server; an answer that will be the same is raised."""
        status = error.status if isinstance(error, ClientResponseError) and error.status >= 400 else None
        said = f"HTTP status {status}" if status else without_secrets(str(error)) or type(error).__name__
        found = StoreUnreachableError(
            f"store {self.url}: {self._path(key)} cannot be read ({said}); check the address, and that everybody may "
            "read there"
        )
        late = time.monotonic() - start > PATIENCE_SECONDS
        if late or (status is not None and status not in BUSY):
            raise found from error
        return Trouble(f"store {self.url}: the server does not give {key} ({said})", found)

    def _unwritable(self, *_: Any, **__: Any) -> NoReturn:
        self._refuse("written to")

    conditional_put = put = put_many = copy = delete = delete_tree = _unwritable

    def _unlistable(self, *_: Any, **__: Any) -> NoReturn:
        self._refuse("listed")

    fingerprints = names = listing = _unlistable

    def _refuse(self, what: str) -> NoReturn:
        raise StoreError(
            f"store.url={self.url}: over {self.url.split(':')[0]}:// a store can be read, not {what}; name the bucket, "
            "as s3://bucket/prefix"
        )


async def _is_internal(host: str) -> bool:
    """Whether a host is, by any of its addresses, no public one; a name that only a proxy knows is not asked for."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except OSError:
        return False
    return any(not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global for *_, address in found)
