"""A model hub over HTTP: who answers there, what a repository holds, and what its refusals mean.

Requests: one for a repository's ``main``, one for its branches and tags, one for each further commit, one more where it
is not found (the hub's strict limit: 500 anonymous or 1,000 authenticated API requests in five minutes). Files: see
``klray.checkpoints.download``. What comes back is bounded by ``klray.checkpoints.answers``.
"""

import base64
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from huggingface_hub import get_token, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import (
    build_hf_headers,
    hf_raise_for_status,
    parse_ratelimit_headers,
    validate_repo_id,
)

from klray.checkpoints.answers import OddAnswerError, answer, is_host, opened, parsed
from klray.checkpoints.checkpoint import RemoteFile
from klray.checkpoints.files import CONFIG
from klray.checkpoints.parents import Lineage, lineage_of
from klray.checkpoints.patience import NETWORK_ERRORS, TOO_MANY, asked_again, chain, response_of
from klray.errors import CheckpointError, KlrayError, Reason
from klray.words.outside import fault, printable
from klray.words.secrets import bare_address, without_secrets

T = TypeVar("T")

DEFAULT_ENDPOINT = "https://huggingface.co"
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
CONTACT_SECONDS = 5.0  # to connect, and between two parts of an answer, when the hub is only asked who we are
TIMEOUT_SECONDS = 30.0  # without one, huggingface_hub 2.4 waits for ever for a hub that accepts and then says nothing
MOST_BYTES = 1 << 50  # of a file: no disk holds more


_REACHED: set[str] = set()  # addresses of hubs that have answered to this process


class SilentHubError(CheckpointError):
    """The hub answered none of several attempts: whatever else it is asked for would wait as long, for nothing."""


@dataclass(frozen=True)
class Hub:
    """Where checkpoints come from. ``token`` None means anonymous: a saved login is never used unasked.

    ``endpoint`` may hold the credentials of a proxy, ``https://user:password@host``: they go into a header, in place of
    the token, and so into no message of anybody; ``address`` is the endpoint without them.
    """

    endpoint: str
    token: str | None = None

    def __repr__(self) -> str:
        return f"Hub(endpoint={self.address!r})"

    @property
    def address(self) -> str:
        """The endpoint without user and password."""
        return bare_address(self.endpoint)

    @property
    def headers(self) -> dict[str, str]:
        """The ``authorization`` of an endpoint with user and password (Basic, RFC 7617), else no headers."""
        url = urlsplit(self.endpoint)
        if not (url.username or url.password):
            return {}
        credentials = base64.b64encode(f"{unquote(url.username or '')}:{unquote(url.password or '')}".encode()).decode()
        return {"authorization": f"Basic {credentials}"}

    def said(self, error: BaseException) -> str:
        """An error's words on one line, without secrets, 300 characters at most."""
        return printable(" ".join(without_secrets(str(error), self.token).split()), 300)

    @classmethod
    def from_environment(cls) -> "Hub":
        """Hub of ``HF_ENDPOINT`` (default https://huggingface.co) with the token of ``HF_TOKEN`` or the saved login.

        KlrayError where HF_ENDPOINT holds no address.
        """
        endpoint = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).strip().rstrip("/")
        if not _is_sound(endpoint):
            raise KlrayError(  # not with what it holds: where a password in it ends cannot be told
                "HF_ENDPOINT holds no address of a hub: set https://HOST, or https://USER:PASSWORD@HOST with the "
                "characters / ? # @ [ ] of a password written as %2F %3F %23 %40 %5B %5D"
            )
        token = get_token()
        if token is not None and not (token.isascii() and token.isprintable()):
            raise KlrayError("HF_TOKEN, or the saved login, holds a character that no token has; set it anew")
        return cls(endpoint, token)


def _is_sound(endpoint: str) -> bool:
    try:
        url = urlsplit(endpoint)
        sound = url.scheme in ("http", "https") and is_host(url.hostname or "") and (url.port or 0) >= 0
    except ValueError:  # of a port, or of brackets
        return False
    return sound and not url.query and not url.fragment and "@" not in url.path and endpoint.count("@") <= 1


@dataclass(frozen=True)
class Listing:
    """A repository at one revision; ``repository`` is its name as the hub answers it, which is another than it was
    asked by where it was renamed; ``parameters`` is the number that its safetensors files have together, or one of its
    GGUF files, None when the hub does not say.
    """

    repository: str
    commit: str
    files: tuple[RemoteFile, ...]
    lineage: Lineage
    gated: bool
    parameters: int | None = None


@dataclass(frozen=True)
class Contact:
    """How a hub answered: in which time, to whom ("" when it does not say), and how many API requests it leaves."""

    seconds: float
    user: str
    requests_left: int | None  # None: the hub does not say
    requests_limit: int | None
    window_seconds: int | None


def contact(hub: Hub) -> Contact:
    """Ask the hub once whose the token is, or without a token for any model; no second attempt, so that it is quick.

    Raises CheckpointError: ``gated``: the token is refused. ``download_failed``: the hub does not answer, or not as a
    model hub does.
    """
    route, parameters = ("whoami-v2", {}) if hub.token else ("models", {"limit": "1"})
    try:
        start = time.monotonic()
        response = _ask(hub, f"{hub.address}/api/{route}", parameters, CONTACT_SECONDS)
        seconds, status = time.monotonic() - start, response.status_code
        if status not in (401, 403, TOO_MANY):
            response.raise_for_status()
        data = {} if status in (401, 403) else parsed(response)
    except (*NETWORK_ERRORS, ValueError) as error:
        words = hub.said(error)
        raise CheckpointError(
            f"{hub.address} did not answer as a model hub ({type(error).__name__}: {words}): check the network and "
            "HF_ENDPOINT",
            "download_failed",
        ) from error
    if status in (401, 403):
        asked = "the token given" if hub.token else "a request without a token"
        raise CheckpointError(f"{hub.address} refuses {asked} (HTTP {status}): set HF_TOKEN to a valid token", "gated")
    limit = parse_ratelimit_headers(response.headers)
    unsaid = (0 if status == TOO_MANY else None, None, None)
    requests = (limit.remaining, limit.limit, limit.window_seconds) if limit else unsaid
    return Contact(seconds, str(data.get("name") or "") if isinstance(data, dict) else "", *requests)


def listing(hub: Hub, repository: str, revision: str = "main") -> Listing:
    """Resolve a revision (branch, tag or commit sha) to its commit and files, in one request.

    Raises CheckpointError: ``repository_not_found``, ``revision_not_found``, ``gated`` or ``download_failed``; a
    SilentHubError where nobody answered.
    """
    route = "" if revision == "main" else f"/revision/{quote(revision, safe='')}"
    take = partial(checked_listing, repository, revision)
    return _get(hub, repository, revision, route, take, blobs="true")


def checked_listing(repository: str, revision: str, data: dict[str, Any]) -> Listing:
    """What a hub answered about a revision. Raises OddAnswerError, or what odd types raise: it is no such answer."""
    commit = str(data.get("sha"))
    if not COMMIT.fullmatch(commit):
        raise OddAnswerError(f"answered without a commit sha ({printable(commit, 50)!r})")
    if COMMIT.fullmatch(revision) and revision != commit:
        raise OddAnswerError(f"was asked for commit {revision} and answered with {commit}")
    files = tuple(_remote_file(sibling) for sibling in data.get("siblings") or [])
    if len({file.path for file in files}) < len(files):
        raise OddAnswerError("listed a file twice")
    parameters = (data.get("safetensors") or data.get("gguf") or {}).get("total")
    name = data.get("id")
    name = name if isinstance(name, str) and _is_name(name) else repository
    return Listing(
        name,
        commit,
        files,
        lineage_of(name, data),
        bool(data.get("gated")),
        _whole_number(parameters, "a number of parameters") or None,
    )


def current_name(hub: Hub, repository: str) -> str:
    """The name that a repository has now: the hub leads on from one that it had before; else, or where the hub does
    not tell, the same. One request to what serves files, whose limits are wide.
    """
    if not _is_name(repository):
        return repository
    route = f"/resolve/main/{CONFIG}"
    headers = build_hf_headers(token=hub.token or False, headers=hub.headers)
    place = f"{hub.address}/{repository}{route}"
    try:
        response = opened(place, headers, CONTACT_SECONDS, stops=lambda _: True, method="HEAD")
        response.close()
    except (*NETWORK_ERRORS, ValueError):
        return repository
    led = str(response.next_request.url) if response.next_request is not None else ""
    name = led.removeprefix(f"{hub.address}/").removesuffix(route)
    return name if led == f"{hub.address}/{name}{route}" and _is_name(name) else repository


def _is_name(repository: str) -> bool:
    try:
        validate_repo_id(repository)
    except HFValidationError:
        return False
    return not fault(repository)


def references(hub: Hub, repository: str) -> tuple[bool, dict[str, str]]:
    """Branches and tags of a repository: name -> commit sha, in one request; and whether it has this name now.

    Raises as ``listing``.
    """
    url = f"{hub.address}/api/models/{repository}/refs"

    def taken(response: Any) -> tuple[bool, dict[str, str]]:
        return str(response.request.url) == url, _taken(response, _references)

    return _asked(hub, repository, "", url, taken)


def _references(data: dict[str, Any]) -> dict[str, str]:
    found = {ref["name"]: ref["targetCommit"] for kind in ("tags", "branches") for ref in data.get(kind) or []}
    for name, commit in found.items():
        if not (isinstance(name, str) and isinstance(commit, str) and COMMIT.fullmatch(commit)):
            raise OddAnswerError(f"listed {printable(str(name), 50)!r} with no commit sha")
    return found


def content_of(hub: Hub, repository: str, commit: str, file: RemoteFile) -> bytes:
    """The content of a small file, still to be proved. Raises as ``listing``."""
    url = hf_hub_url(repository, file.path, revision=commit, endpoint=hub.address)
    return _asked(hub, repository, commit, url, lambda response: bytes(response.content), file.path)


def repositories_of(hub: Hub, organisation: str) -> list[str]:
    """Names of an organisation's models, at most 1,000, in one request; none where the hub does not tell: for hints."""
    try:
        place = f"{hub.address}/api/models"
        response = _request(hub, place, {"author": organisation, "limit": "1000"}, CONTACT_SECONDS)
        return [str(each["id"]) for each in parsed(response)][:1000]
    except (*NETWORK_ERRORS, ValueError, TypeError, KeyError):
        return []


def check_access(hub: Hub, repository: str) -> None:
    """Ask whether the token may download from a gated repository. Raises CheckpointError ``gated`` when it may not."""
    _asked(hub, repository, "", f"{hub.address}/api/models/{repository}/auth-check", lambda response: None)


def is_there(hub: Hub) -> bool:
    """Whether anybody answers at the hub's address, whatever it says."""
    try:
        _ask(hub, f"{hub.address}/api/models", {"limit": "1"}, CONTACT_SECONDS)
    except NETWORK_ERRORS as error:
        return response_of(error) is not None
    except ValueError:
        return True
    return True


def _get(
    hub: Hub, repository: str, revision: str, route: str, take: Callable[[dict[str, Any]], T], **parameters: str
) -> T:
    """What ``take`` makes of the hub's answer about a repository, an object in JSON."""
    url = f"{hub.address}/api/models/{repository}{route}"

    return _asked(hub, repository, revision, url, lambda response: _taken(response, take), **parameters)


def _taken(response: Any, take: Callable[[dict[str, Any]], T]) -> T:
    """What ``take`` makes of the object in an answer."""
    data = parsed(response) or {}
    try:
        return take(data)
    except OddAnswerError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        words = f"{type(error).__name__}: {printable(str(error), 100)}"
        raise OddAnswerError(f"did not answer as a model hub does ({words})") from error


def _asked(
    hub: Hub,
    repository: str,
    revision: str,
    url: str,
    take: Callable[[Any], T],
    path: str = "",
    **parameters: str,
) -> T:
    try:
        validate_repo_id(repository)
        words = lambda error: f"{hub.address}: {hub.said(error)}"  # noqa: E731 - short
        return take(asked_again(lambda: _request(hub, url, parameters), words, hub.address in _REACHED))
    except HFValidationError as error:
        neither = f"{repository!r} is neither the name of a repository on the hub nor a folder on this machine"
        raise CheckpointError(
            without_secrets(f"{neither} ({error}): give organisation/name, or a path that starts with / or ./"),
            "repository_not_found",
        ) from error
    except (*NETWORK_ERRORS, OddAnswerError) as error:
        found = failure(hub, repository, revision, error, path)
        if isinstance(error, NETWORK_ERRORS) and response_of(error) is None:
            raise SilentHubError(found.message, found.reason) from error
        raise found from error


def _request(hub: Hub, url: str, parameters: dict[str, str], seconds: float | None = None) -> Any:
    """The hub's answer to one request, if it is no refusal."""
    response = _ask(hub, url, parameters, seconds or TIMEOUT_SECONDS)
    hf_raise_for_status(response)
    return response


def _ask(hub: Hub, url: str, parameters: dict[str, str], seconds: float) -> Any:
    found = answer(url, build_hf_headers(token=hub.token or False, headers=hub.headers), parameters, seconds)
    _REACHED.add(hub.address)
    return found


def _remote_file(sibling: dict[str, Any]) -> RemoteFile:
    path, large = sibling["rfilename"], sibling.get("lfs") or {}
    sha256 = large.get("sha256")
    # the blob id of a large file is that of its pointer, not of its content
    git_sha1 = None if large else sibling.get("blobId")
    hashes = ((sha256, SHA256), (git_sha1, COMMIT))
    if not isinstance(path, str) or not all(value is None or pattern.fullmatch(value) for value, pattern in hashes):
        raise OddAnswerError(f"listed {printable(str(path), 100)!r} with a hash that is none")
    size = _whole_number(large.get("size") or sibling.get("size"), f"a size of {printable(path, 100)!r}")
    return RemoteFile(path, size, sha256, git_sha1)


def _whole_number(value: Any, what: str) -> int:
    """A count that the hub tells, 0 where it does not."""
    if not isinstance(value, int | None) or isinstance(value, bool) or not 0 <= (value or 0) <= MOST_BYTES:
        raise OddAnswerError(f"told {what} that is none: {printable(repr(value), 50)}")
    return value or 0


def failure(hub: Hub, repository: str, revision: str, error: BaseException, path: str = "") -> CheckpointError:
    """What ``error`` means for whoever asked for a repository, or for a file of it."""
    asked = f"{repository}@{revision}" if revision else repository
    asked = f"{path} of {asked}" if path else asked
    token = "the token given" if hub.token else "no token"
    status = getattr(response_of(error), "status_code", None)
    reason: Reason = "download_failed"
    if isinstance(error, OddAnswerError):
        found = f"cannot be had: {hub.address} {hub.said(error)}"
        cure = "check HF_ENDPOINT, tell whoever runs the hub or a proxy before it, or leave this repository out"
    elif isinstance(error, GatedRepoError):
        reason = "gated"
        found = f"is gated at {hub.address} and {token} does not open it"
        cure = "accept its terms on its page there, and set HF_TOKEN to a token of that account"
    elif isinstance(error, RevisionNotFoundError):
        reason = "revision_not_found"
        found = f"has no such revision at {hub.address}, though the repository exists"
        cure = "choose one of its branches, tags or commits"
    elif isinstance(error, RepositoryNotFoundError):
        reason = "repository_not_found"
        found = f"was not found at {hub.address} with {token}"
        cure = "check the spelling; if it is private, set HF_TOKEN to a token that may read it"
    elif status in (401, 403):
        reason = "gated"
        found = f"was refused by {hub.address} with {token} (HTTP {status})"
        cure = "set HF_TOKEN to a valid token"
    else:
        cause = list(chain(error))[-1]
        found = (
            f"could not be fetched from {hub.address} after all attempts ({type(cause).__name__}: {hub.said(cause)})"
        )
        cure = "check the network and HF_ENDPOINT, then run again; a path needs no hub (models.repo=PATH)"
    return CheckpointError(f"{asked} {found}: {cure}", reason)
