"""A misbehaving network: an HTTP proxy before an S3 server, which does to every request what its schedule says.

Requests are told apart by the schedule's name in their key (``Plan.schedules``); the n-th request of a schedule meets
the fault that the schedule's seed draws for n. Host stays as the client sent it, because signatures cover it.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import random
import re
import threading
from collections.abc import Iterator

FAULTS = (
    "lost acknowledgement",  # the server has done it, nobody hears of it
    "reset in request",  # half of the body arrives
    "reset in response",  # the server has done it, half of the answer arrives
    "503 before",  # SlowDown, and nothing was done
    "503 after",  # SlowDown, and it was done all the same
    "409",  # ConditionalRequestConflict on conditional writes, nothing was done
    "500 before",
    "500 after",
    "stall",
    "repeat",  # the server gets it twice, the client the second answer
    "late repeat",  # the server gets it again after requests that came later
)
SLOW_DOWN = (503, "Service Unavailable", "SlowDown", "Please reduce your request rate.")
CONFLICT = (409, "Conflict", "ConditionalRequestConflict", "A conflicting conditional operation is in progress.")
INTERNAL = (500, "Internal Server Error", "InternalError", "We encountered an internal error. Please try again.")
MOST_BYTES = 2**26  # of a line of headers or a body
LATE_SECONDS = (0.05, 0.6)
STALL_SECONDS = (0.05, 0.3)
LONG_STALL_SECONDS = 1.0  # one stall in twenty


@dataclasses.dataclass
class Plan:
    """What the proxy does to the requests of one schedule: ``share`` of them go wrong."""

    seed: str
    share: float
    faults: tuple[str, ...] = FAULTS
    requests: int = 0
    injected: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def draw(self, request: Request) -> tuple[str | None, random.Random]:
        """The fault that the next request meets, and the randomness of its details."""
        self.requests += 1
        details = random.Random(f"{self.seed}/{self.requests}")
        fault = details.choice(self.faults) if details.random() < self.share else None
        if fault == "409" and not request.conditional:
            fault = None
        if fault:
            self.injected[fault] += 1
        return fault, details


@dataclasses.dataclass(frozen=True)
class Request:
    """One HTTP request: the first line, header lines without those of the connection, the body."""

    line: bytes
    headers: tuple[bytes, ...]
    body: bytes

    @property
    def method(self) -> bytes:
        return self.line.split(b" ", 1)[0]

    @property
    def conditional(self) -> bool:
        return any(each.lower().startswith(b"if-none-match") for each in self.headers) and self.method == b"PUT"

    def encode(self) -> bytes:
        """As the server gets it: one request on each connection."""
        lines = [self.line, *self.headers, b"Connection: close"]
        if self.method in (b"PUT", b"POST") or self.body:
            lines.append(b"Content-Length: %d" % len(self.body))
        return b"\r\n".join(lines) + b"\r\n\r\n" + self.body


class Proxy:
    """Listens on loopback; ``schedules`` maps the name in a key to its plan. What no plan names is passed on."""

    def __init__(self, server: str):
        self._host, _, port = server.removeprefix("http://").partition(":")
        self._port = int(port)
        self.schedules: dict[str, Plan] = {}
        self._late: set[asyncio.Task[None]] = set()
        self.endpoint = ""

    async def serve(self, ready: threading.Event) -> None:
        """Serve until ``stop``."""
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=MOST_BYTES)
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await self._stopped.wait()
        server.close()

    def stop(self) -> None:
        """End the proxy, from any thread."""
        self._loop.call_soon_threadsafe(self._stopped.set)

    def settle(self) -> None:
        """Wait, in any other thread, until every late repeat has arrived."""

        async def arrived() -> None:
            while self._late:
                await asyncio.gather(*self._late, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(arrived(), self._loop).result()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the proxy ends
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; False when the connection ends."""
        head = await reader.readuntil(b"\r\n\r\n")
        line, *headers = head[:-4].split(b"\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (each.partition(b":") for each in headers)}
        kept = tuple(each for each in headers if each.partition(b":")[0].strip().lower() not in _HOP_BY_HOP)
        plan = self._plan(line, fields)
        fault, details = plan.draw(Request(line, kept, b"")) if plan else (None, random.Random(0))
        if fields.get(b"expect", b"").lower() == b"100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault == "reset in request":
            await self._reset_in_request(reader, writer, Request(line, kept, b""), fields)
            return False
        request = Request(line, kept, await _read_body(reader, fields))
        if fault in ("503 before", "409", "500 before"):
            await _answer(
                writer, request, {"5": INTERNAL, "4": CONFLICT}[fault[0]] if fault != "503 before" else SLOW_DOWN
            )
            return True
        answer = await self._forward(request)
        if fault == "repeat":
            answer = await self._forward(request)
        elif fault == "late repeat":
            self._later(request, details.uniform(*LATE_SECONDS))
        elif fault == "stall":
            await asyncio.sleep(LONG_STALL_SECONDS if details.random() < 0.05 else details.uniform(*STALL_SECONDS))
        elif fault == "lost acknowledgement":
            writer.transport.abort()
            return False
        elif fault in ("503 after", "500 after"):
            await _answer(writer, request, SLOW_DOWN if fault == "503 after" else INTERNAL)
            return True
        elif fault == "reset in response":
            whole = answer.index(b"\r\n\r\n") + 4
            writer.write(
                answer[: whole + (len(answer) - whole) // 2] if len(answer) > whole + 1 else answer[: whole // 2]
            )
            await writer.drain()
            await asyncio.sleep(0.001)  # otherwise the abort overtakes what was written
            writer.transport.abort()
            return False
        writer.write(answer)
        await writer.drain()
        return _keeps_alive(request, answer)

    def _plan(self, line: bytes, fields: dict[bytes, bytes]) -> Plan | None:
        found = re.search(rb"schedule-[0-9a-z]+", line + fields.get(b"x-amz-copy-source", b""))
        return self.schedules.get(found.group().decode()) if found else None

    def _later(self, request: Request, seconds: float) -> None:
        async def repeat() -> None:
            await asyncio.sleep(seconds)
            with contextlib.suppress(ConnectionError):
                await self._forward(request)

        task = asyncio.create_task(repeat())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _forward(self, request: Request) -> bytes:
        """The server's whole answer, as one that leaves the connection open."""
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=MOST_BYTES)
        try:
            writer.write(request.encode())
            await writer.drain()
            answer = await reader.read(-1)
        finally:
            writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head:
            raise ConnectionResetError("the server closed the connection without an answer")
        line, *headers = head.split(b"\r\n")
        kept = [each for each in headers if each.partition(b":")[0].lower() not in (b"connection", b"keep-alive")]
        return b"\r\n".join([line.replace(b"HTTP/1.0", b"HTTP/1.1"), *kept]) + b"\r\n\r\n" + body

    async def _reset_in_request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Request, fields: dict[bytes, bytes]
    ) -> None:
        """Half of the body reaches the server, then both connections break."""
        length = int(fields.get(b"content-length", b"0"))
        if length:
            half = await reader.readexactly(length // 2)
            _, upstream = await asyncio.open_connection(self._host, self._port)
            whole = dataclasses.replace(request, body=b"\0" * length).encode()
            upstream.write(whole[:-length] + half)
            with contextlib.suppress(ConnectionError):
                await upstream.drain()
            upstream.transport.abort()
        writer.transport.abort()


_HOP_BY_HOP = {b"connection", b"keep-alive", b"expect", b"content-length", b"transfer-encoding"}


async def _read_body(reader: asyncio.StreamReader, fields: dict[bytes, bytes]) -> bytes:
    if fields.get(b"transfer-encoding", b"").lower() != b"chunked":
        return await reader.readexactly(int(fields.get(b"content-length", b"0")))
    body = b""
    while size := int((await reader.readline()).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readline()
    while (await reader.readline()).strip():
        pass  # trailers
    return body


async def _answer(writer: asyncio.StreamWriter, request: Request, error: tuple[int, str, str, str]) -> None:
    status, reason, code, message = error
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>'
        "<RequestId>injected</RequestId></Error>"
    ).encode()
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + (b"" if request.method == b"HEAD" else body))
    await writer.drain()


def _keeps_alive(request: Request, answer: bytes) -> bool:
    head = answer.partition(b"\r\n\r\n")[0].lower()
    status = head.split(b" ", 2)[1]
    bounded = b"\r\ncontent-length:" in head or b"\r\ntransfer-encoding: chunked" in head
    return bounded or request.method == b"HEAD" or status in (b"204", b"304")


@contextlib.contextmanager
def proxy(server: str) -> Iterator[Proxy]:
    """A proxy before ``server`` (http://host:port), in a thread of its own."""
    running = Proxy(server)
    ready = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(running.serve(ready)), name="proxy", daemon=True)
    thread.start()
    assert ready.wait(10), "the proxy did not start"
    try:
        yield running
    finally:
        running.stop()
        thread.join(10)
