"""An S3 server that keeps no promises it is not asked to keep: it can ignore If-None-Match, and its clock can be wrong.

Enough of the protocol for s3fs: PUT, GET with ranges, HEAD, DELETE, DeleteObjects, ListObjectsV2. It knows its users
by their access key and checks no signature.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from tests.s3_server import CREDENTIALS

Conditions = Literal["kept", "ignored", "raced"]  # raced: looked at, and not together with the write

BUCKET = "bucket"
WINDOW_SECONDS = 0.05  # between look and write when raced
SKEW_REFUSED_SECONDS = 900


class CarelessS3(ThreadingHTTPServer):
    """The server; what it does may be changed while it runs."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, conditions: Conditions):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.conditions = conditions
        self.clock = timedelta(0)  # how far it is ahead
        self.lenient = False  # accepts signatures of any age
        self.denied: set[str] = set()  # methods that are refused
        self.busy: list[tuple[int, str]] = []  # (status, code) of the next answers
        self.lost = 0  # so many of the next puts are done and not answered
        self.requests = 0
        self.objects: dict[str, tuple[bytes, datetime]] = {}
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        """As AWS_ENDPOINT_URL takes it."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def now(self) -> datetime:
        """What its clock says, in whole seconds as S3's."""
        return (datetime.now(UTC) + self.clock).replace(microsecond=0)


@contextlib.contextmanager
def careless_s3(conditions: Conditions) -> Iterator[CarelessS3]:
    """The server, in threads of this process while the context is open."""
    server = CarelessS3(conditions)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: CarelessS3

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        user = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
        signed = datetime.strptime(self.headers.get("X-Amz-Date", "19700101T000000Z"), "%Y%m%dT%H%M%S%z")
        skew = abs((self.server.now() - signed).total_seconds())
        self.server.requests += 1
        if self.server.busy:
            status, error = self.server.busy.pop(0)
            self.answer(status, error=error)
        elif user is None or user[1] != CREDENTIALS["AWS_ACCESS_KEY_ID"]:
            self.answer(403, error="InvalidAccessKeyId")
        elif skew > SKEW_REFUSED_SECONDS and not self.server.lenient:
            self.answer(403, error="RequestTimeTooSkewed")
        elif self.command in self.server.denied:
            self.answer(403, error="AccessDenied")
        elif bucket != BUCKET:
            self.answer(404, error="NoSuchBucket")
        elif self.command == "PUT":
            self.put(key, body)
        elif self.command == "POST":
            for name in re.findall(r"<Key>([^<]+)</Key>", body.decode()):
                self.server.objects.pop(name, None)
            self.answer(200, b"<DeleteResult/>")
        elif self.command == "DELETE":
            self.server.objects.pop(key, None)
            self.answer(204)
        elif not key:
            self.listing(query.get("prefix", ""), query.get("delimiter", ""))
        elif key not in self.server.objects:
            self.answer(404, error="NoSuchKey")
        else:
            self.give(*self.server.objects[key])

    do_PUT = do_HEAD = do_DELETE = do_POST = do_GET

    def put(self, key: str, body: bytes) -> None:
        conditional = "If-None-Match" in self.headers and self.server.conditions != "ignored"
        with self.server.lock if self.server.conditions == "kept" else contextlib.nullcontext():
            if conditional and key in self.server.objects:
                self.answer(412, error="PreconditionFailed")
                return
            if conditional and self.server.conditions == "raced":
                time.sleep(WINDOW_SECONDS)
            self.server.objects[key] = (body, self.server.now())
        if self.server.lost:
            self.server.lost -= 1
            self.close_connection = True
            return
        self.answer(200, ETag=_etag(body))

    def give(self, body: bytes, written: datetime) -> None:
        facts = {"ETag": _etag(body), "Last-Modified": written.strftime("%a, %d %b %Y %H:%M:%S GMT")}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self.answer(200, body, **facts)
            return
        first, last = asked.groups()
        start = int(first) if first else max(len(body) - int(last), 0)
        stop = min(int(last) + 1, len(body)) if first and last else len(body)
        self.answer(206, body[start:stop], **facts, **{"Content-Range": f"bytes {start}-{stop - 1}/{len(body)}"})

    def listing(self, prefix: str, delimiter: str) -> None:
        root = ElementTree.Element("ListBucketResult")
        folders = set()
        for key, (body, written) in sorted(self.server.objects.copy().items()):
            if not key.startswith(prefix):
                continue
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if found:
                folders.add(f"{prefix}{head}/")
                continue
            entry = ElementTree.SubElement(root, "Contents")
            values = {"Key": key, "LastModified": written.isoformat().replace("+00:00", "Z"), "Size": str(len(body))}
            for name, value in {**values, "ETag": _etag(body), "StorageClass": "STANDARD"}.items():
                ElementTree.SubElement(entry, name).text = value
        for folder in sorted(folders):
            ElementTree.SubElement(ElementTree.SubElement(root, "CommonPrefixes"), "Prefix").text = folder
        ElementTree.SubElement(root, "IsTruncated").text = "false"
        self.answer(200, ElementTree.tostring(root))

    def answer(self, status: int, body: bytes = b"", error: str = "", **headers: str) -> None:
        if error:
            body = f"<Error><Code>{error}</Code><Message>{escape(error)}</Message></Error>".encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and status != 204:
            self.wfile.write(body)

    def date_time_string(self, timestamp: float | None = None) -> str:
        """For the Date header."""
        return self.server.now().strftime("%a, %d %b %Y %H:%M:%S GMT")

    def log_message(self, format: str, *args: object) -> None:
        pass


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'
