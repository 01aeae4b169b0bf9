"""A hub's answers within bounds of bytes, seconds and places: whoever answers may be anybody."""

import ctypes
import ipaddress
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub.utils import get_session

from klray.errors import KlrayError
from klray.words import outside
from klray.words.secrets import without_secrets

ANSWER_BYTES = 1 << 25  # 100,000 revisions with names of 40 characters take half of it
CONTAINERS = 1_000_000  # objects and arrays in an answer, some 100 bytes of memory each
ANSWER_SECONDS = 120.0  # for the body of an answer
SLOWEST, SLOWEST_SECONDS = 1000.0, 4.0  # bytes a second over so long, or an answer drips
REDIRECTS = 5
HTTP_ERROR = 400
ADDRESSES_OF_HUBS = "HF_ENDPOINT, HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
LONGEST_HOST = 253  # letters of a host's name
_ODD = re.compile(r"\d{13}").search  # a number in a header that is no time, and that not every parser takes


class OddAnswerError(ValueError):
    """The hub answered, and not as a model hub does; the words go on from its name. To ask again would not help."""


class Pace:
    """Tells a body that drips: less than ``bytes_per_second`` over any ``seconds``."""

    def __init__(self, bytes_per_second: float, seconds: float):
        self.bytes_per_second, self.seconds = bytes_per_second, seconds
        self._since, self._taken = time.monotonic(), 0

    def too_slow(self, taken: int) -> bool:
        """Whether the last window brought too little, now that ``taken`` bytes more are there."""
        self._taken += taken
        now = time.monotonic()
        if now - self._since < self.seconds:
            return False
        slow = self._taken < self.bytes_per_second * (now - self._since)
        self._since, self._taken = now, 0
        return slow


def answer(url: str, headers: Mapping[str, str], parameters: Mapping[str, str], seconds: float) -> Any:
    """The whole answer to a GET, its body at most ``ANSWER_BYTES``. Raises as ``opened``."""
    response = opened(url, {**headers, "accept-encoding": "identity"}, seconds, parameters=parameters)
    return response if response.is_closed else _whole(response)


def opened(
    url: str,
    headers: Mapping[str, str],
    seconds: float,
    *,
    parameters: Mapping[str, str] | None = None,
    stops: Callable[[Any], bool] = lambda response: False,
    method: str = "GET",
) -> Any:
    """The answer after ``seconds`` of silence at most, its body to be read and closed; an error's is whole.

    Redirects are followed, without the token to another host, until one that ``stops``. Raises OddAnswerError: they
    lead nowhere, or from a hub on the internet, or one with https, to where a stranger's answer may not lead;
    TimeoutError: its headers are not there after twice the ``seconds``, in which there was no silence; KlrayError: an
    address in the environment is none that the client takes.
    """
    try:
        client = get_session()
        request = client.build_request(
            method, url, params=dict(parameters or {}), headers=dict(headers), timeout=seconds
        )
    except Exception as error:  # nothing was sent: it is of an address in the environment, or of a proxy's kind
        said = without_secrets(str(error)) or type(error).__name__
        raise KlrayError(f"no request to a hub can be made ({said}): check {ADDRESSES_OF_HUBS}") from error

    def follow() -> Any:
        following = request
        for _ in range(REDIRECTS + 1):
            response = client.send(following, stream=True, follow_redirects=False)
            if response.next_request is None or stops(response):
                return response
            following = response.next_request
            try:
                _whole(response)  # so that the connection can be used again
                _check_way(url, str(following.url))
            finally:
                response.close()
        raise OddAnswerError(f"leads on and on, after {REDIRECTS} redirects to {urlsplit(str(following.url)).netloc}")

    response = _within(2 * seconds, follow)
    return _refusal(_whole(response)) if response.status_code >= HTTP_ERROR else response


def _refusal(response: Any) -> Any:
    """The same error with no more of its body than huggingface_hub can read: a sentence in JSON, if there is one, cut
    to the length of one.
    """
    try:
        found = outside.parsed(response.content)
        names = ("error", "error_description")
        said = {name: found[name][: outside.LONGEST] for name in names if isinstance(found.get(name), str)}
    except (ValueError, AttributeError):
        said = {}
    return _with_body(response, json.dumps(said).encode())


def parsed(response: Any) -> Any:
    """The JSON in an answer, None for an empty one. Raises OddAnswerError."""
    return parsed_body(response.content) if response.content else None


def parsed_body(body: bytes) -> Any:
    """The JSON of an answer. Raises OddAnswerError."""
    if body.count(b"{") + body.count(b"[") > CONTAINERS:
        raise OddAnswerError(f"answered with more than {CONTAINERS:,} objects, which no repository needs")
    try:
        return outside.parsed(body)
    except ValueError as error:
        raise OddAnswerError(f"did not answer in JSON ({type(error).__name__}: {error})") from error


def _whole(response: Any) -> Any:
    """The same answer with its body read, as it was sent: what is packed may unfold to any size."""
    try:
        if (packed := response.headers.get("content-encoding", "identity")) != "identity":
            raise OddAnswerError(f"answered in {packed}, which it was not asked for")
        announced = response.headers.get("content-length", "")
        too_much = f"answered with more than {ANSWER_BYTES:,} bytes, which no repository needs"
        if announced.isdecimal() and (len(announced) > len(str(ANSWER_BYTES)) or int(announced) > ANSWER_BYTES):
            raise OddAnswerError(too_much)
        blocks, taken = list[bytes](), 0
        pace, start = Pace(SLOWEST, SLOWEST_SECONDS), time.monotonic()
        for block in response.iter_raw():
            blocks.append(block)
            taken += len(block)
            if taken > ANSWER_BYTES:
                raise OddAnswerError(too_much)
            if pace.too_slow(len(block)) or time.monotonic() - start > ANSWER_SECONDS:
                raise OddAnswerError(
                    f"sent {taken:,} bytes of an answer in {time.monotonic() - start:.0f} s, too slowly"
                )
    finally:
        response.close()
    return _with_body(response, b"".join(blocks))


def _with_body(response: Any, body: bytes) -> Any:
    sent = [each for each in response.headers.multi_items() if each[0] not in ("transfer-encoding", "content-length")]
    headers = [each for each in sent if not _ODD(each[1])]
    return type(response)(response.status_code, headers=headers, content=body, request=response.request)


def _within(seconds: float, work: Callable[[], Any]) -> Any:
    """What ``work`` returns, in a thread that is ended after ``seconds``, or as soon as its server says another word.

    Left behind, it would be busy for as long as a server sends headers without end.
    """
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            future.set_exception(error)

    def close(late: Future[Any]) -> None:
        if late.exception() is None:
            late.result().close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    if not wait([future], seconds).done:
        future.add_done_callback(close)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        raise TimeoutError(f"no answer within {seconds:g} s")
    return future.result()


def _check_way(hub: str, place: str) -> None:
    """Refuse to be led by ``hub`` to ``place``, another protocol or a network that only this machine can reach."""
    own, other = urlsplit(hub), urlsplit(place)
    host = other.hostname or ""
    if other.scheme not in ("http", "https") or (own.scheme, other.scheme) == ("https", "http"):
        raise OddAnswerError(f"leads from {own.scheme} to {other.scheme}://{host}, where nothing is fetched from")
    if not is_host(host):
        raise OddAnswerError(f"leads to {outside.printable(host, 60)}, which is no name of a host")
    if host == own.hostname:
        return
    addresses = _addresses(host)
    inside = not all(address.is_global for address in addresses)
    if any(address.is_link_local for address in addresses) or (
        inside and all(address.is_global for address in _addresses(own.hostname or ""))
    ):
        raise OddAnswerError(f"leads to {host}, an address inside this network, where nothing is fetched from")


def is_host(name: str) -> bool:
    """Whether a name, or an address, can be that of a host: others raise UnicodeError where they are looked up."""
    try:
        return 0 < len(name.encode("idna")) <= LONGEST_HOST
    except UnicodeError:
        return False


def _addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """A host's addresses; none where this machine cannot tell: then a proxy looks it up."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return []
    addresses = [ipaddress.ip_address(str(each).partition("%")[0]) for each in found]
    return [getattr(address, "ipv4_mapped", None) or address for address in addresses]
