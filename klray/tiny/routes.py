"""The routes of a model hub's HTTP interface, as huggingface_hub 2.4 and transformers 5 use them, over a folder."""

import contextlib
import hmac
import json
import logging
import threading
import time
from collections import Counter
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from klray.tiny.repositories import HubError, git_sha1

if TYPE_CHECKING:
    from klray.tiny.hub_server import HubServer

log = logging.getLogger("klray")

BLOCK_BYTES = 1 << 16


class Throttle:
    """Lets ``bytes_per_second`` pass, over all that ask."""

    def __init__(self, bytes_per_second: float):
        self._rate = bytes_per_second
        self._free_at = 0.0
        self._lock = threading.Lock()

    def wait(self, size: int) -> None:
        """Return when ``size`` bytes may be sent."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + size / self._rate
            pause = self._free_at - now
        time.sleep(pause)


class HubHandler(BaseHTTPRequestHandler):
    """One connection: the routes of the hub's HTTP interface."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: 40 ms an answer otherwise
    server: "HubServer"

    def setup(self) -> None:
        """Note the connection, so that the server can end it."""
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        """Forget the connection."""
        self.server.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        """Answer one request."""
        try:
            self.answer()
        except HubError as error:
            self.send_json({"error": error.message}, error.status, {"X-Error-Code": error.code} if error.code else {})
        except ConnectionError:
            self.close_connection = True

    do_HEAD = do_GET

    def answer(self) -> None:
        """Check the token and route the request."""
        expected = f"Bearer {self.server.token}"
        if not hmac.compare_digest(self.headers.get("Authorization", "").encode(), expected.encode()):
            raise HubError(HTTPStatus.UNAUTHORIZED, "", "Invalid credentials in Authorization header")
        url = urlsplit(self.path)
        match [unquote(part) for part in url.path.split("/")[1:]]:
            case ["api", "whoami-v2"]:
                self.count("whoami")
                self.send_json({"type": "user", "name": "local"})
            case ["api", "models"]:
                self.count("list")
                author = parse_qs(url.query).get("author", [""])[0]
                names = self.server.repositories.names()
                self.send_json([{"id": name} for name in names if author in ("", name.partition("/")[0])])
            case ["api", "models", organisation, name, *revision] if not revision or revision[:-1] == ["revision"]:
                self.count("info")
                self.send_info(f"{organisation}/{name}", (revision or ["main"])[-1], "blobs=" in url.query)
            case ["api", "models", organisation, name, "refs"]:
                self.count("refs")
                references = self.server.repositories.references(f"{organisation}/{name}").items()
                branches = [
                    {"name": each, "ref": f"refs/heads/{each}", "targetCommit": sha} for each, sha in references
                ]
                self.send_json({"branches": branches, "tags": [], "converts": [], "pullRequests": []})
            case ["api", "models", organisation, name, "tree", revision, *folder]:
                self.count("tree")
                recursive = "recursive=true" in url.query.lower()
                self.send_tree(f"{organisation}/{name}", revision, "/".join(folder), recursive)
            case ["api", "models", organisation, name, "auth-check"]:
                self.count("auth-check")
                self.check_gate(f"{organisation}/{name}")
                self.send_json({})
            case [organisation, name, "resolve", revision, *path]:
                self.count(f"resolve {self.command}")
                self.check_gate(f"{organisation}/{name}")
                self.send_resolved(f"{organisation}/{name}", revision, "/".join(path))
            case _:
                raise HubError(HTTPStatus.NOT_FOUND, "", f"No such route: {url.path}")

    def count(self, route: str) -> None:
        """Count a request."""
        with self.server.lock:
            self.server.requests[route] += 1

    def check_gate(self, repository: str) -> None:
        """Refuse a gated repository."""
        if self.server.repositories.gated(repository):
            raise HubError(HTTPStatus.FORBIDDEN, "GatedRepo", f"Access to model {repository} is restricted")

    def send_info(self, repository: str, revision: str, blobs: bool) -> None:
        """Answer with what ``HfApi.model_info`` reads."""
        hub = self.server.repositories
        commit, files = hub.resolve(repository, revision)
        siblings = []
        for path, blob in files.items():
            details = {"size": blob.size, "blobId": blob.blob_id, **({"lfs": blob.lfs} if blob.large else {})}
            siblings.append({"rfilename": path, **(details if blobs else {})})
        weights = (blob.parameters for path, blob in files.items() if path.endswith(".safetensors"))
        parameters = sum(weights, Counter())
        self.send_json(
            {
                **({"safetensors": {"parameters": parameters, "total": parameters.total()}} if parameters else {}),
                "id": repository,
                "modelId": repository,
                "sha": commit,
                "private": False,
                "gated": "manual" if hub.gated(repository) else False,
                "tags": _tags(hub.card(repository), "adapter_config.json" in files),
                "cardData": hub.card(repository),
                "siblings": siblings,
            }
        )

    def send_tree(self, repository: str, revision: str, folder: str, recursive: bool) -> None:
        """Answer with what ``HfApi.list_repo_tree`` reads."""
        _, files = self.server.repositories.resolve(repository, revision)
        prefix = f"{folder}/" if folder else ""
        below = {path: blob for path, blob in files.items() if path.startswith(prefix)}
        if folder and not below:
            raise HubError(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{folder} does not exist on {revision}")
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in below.items():
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                name = prefix + "/".join(parts[:depth])
                entries[name] = {"type": "directory", "path": name, "size": 0, "oid": git_sha1(name.encode())}
            if recursive or len(parts) == 1:
                entry = {"type": "file", "path": path, "size": blob.size, "oid": blob.blob_id}
                entries[path] = {**entry, "lfs": blob.lfs} if blob.large else entry
        self.send_json(list(entries.values()))

    def send_resolved(self, repository: str, revision: str, path: str) -> None:
        """Answer with a file, whole or the one range of bytes asked for."""
        commit, files = self.server.repositories.resolve(repository, revision)
        if path not in files:
            raise HubError(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{path} does not exist on {revision}")
        blob = files[path]
        etag = f'"{blob.sha256 if blob.large else blob.blob_id}"'
        headers = {"ETag": etag, "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if blob.large:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(blob.size)}
        start, stop = _range(self.headers.get("Range"), blob.size)
        status = HTTPStatus.OK
        if "Range" in self.headers:
            status = HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
        self.send_head(status, "application/octet-stream", stop - start, headers)
        if self.command == "GET":
            with blob.path.open("rb") as stream:
                stream.seek(start)
                left = stop - start
                while left and (block := stream.read(min(BLOCK_BYTES, left))):
                    self.send_block(block)
                    left -= len(block)

    def send_json(self, data: Any, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None) -> None:
        """Answer with JSON."""
        body = json.dumps(data).encode()
        self.send_head(status, "application/json", len(body), headers or {})
        if self.command == "GET":
            self.send_block(body)

    def send_head(self, status: HTTPStatus, kind: str, size: int, headers: dict[str, str]) -> None:
        """Send the status line and the headers."""
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(size), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_block(self, block: bytes) -> None:
        """Send a part of a body, no faster than the hub's limit."""
        if self.server.throttle:
            self.server.throttle.wait(len(block))
        self.wfile.write(block)

    def log_message(self, format: str, *args: Any) -> None:
        """Log a request, of which only method, path and status are known here."""
        log.debug("hub: " + format, *args)


def _tags(card: dict[str, Any], adapter: bool) -> list[str]:
    """What the hub says in tags about the parents of a model: each by name, and by relation and name.

    Without a relation in the card the hub works one out: several parents are a merge, else an adapter's config makes
    an adapter, else it is a fine-tuned model.
    """
    named = card.get("base_model") or []
    parents = [named] if isinstance(named, str) else named
    relation = card.get("base_model_relation") or (
        "merge" if len(parents) > 1 else "adapter" if adapter else "finetune"
    )
    return [tag for parent in parents for tag in (f"base_model:{parent}", f"base_model:{relation}:{parent}")]


def _range(header: str | None, size: int) -> tuple[int, int]:
    """Start and stop of ``bytes=a-b``, ``bytes=a-`` or ``bytes=-n``; the whole without a header."""
    if header is None:
        return 0, size
    first, _, last = header.removeprefix("bytes=").partition("-")
    if not (first + last).isdecimal():
        raise HubError(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "", f"Range {header} is not one range of bytes")
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        raise HubError(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "", f"Range {header} is outside of {size} bytes")
    return start, stop
