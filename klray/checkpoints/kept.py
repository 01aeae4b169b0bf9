"""Listings that are kept: what a hub said of a commit never changes, so that nobody needs to ask for it twice.

They lie on this machine, not in a store: many read a store, the hub's answers are for the token that asked, and no
other writer of the store decides which bytes a commit has. Branches and tags move, so that a hub is asked for those
every time, with the token of the day. What was kept is checked as an answer of the hub is.
"""

import json
import logging
import os
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from klray.checkpoints.answers import parsed_body
from klray.checkpoints.cache import own_folder
from klray.checkpoints.checkpoint import RemoteFile
from klray.checkpoints.hub import Hub, Listing, checked_listing, listing
from klray.words.outside import contents

log = logging.getLogger("klray")

KEPT_BYTES = 1 << 26  # of a repository: 20,000 commits of 20 files


class Listings:
    """Listings of commits, asked for once; ``folder`` None: nothing is kept.

    Below it each hub has a folder, each repository a file, and each commit a line: what the hub answered, as far as it
    is used. A line that is not whole, or not what a hub answers, is asked for again.
    """

    def __init__(self, hub: Hub, folder: Path | None):
        self._hub = hub
        self._folder = None if folder is None else folder / sha256(hub.address.encode()).hexdigest()[:16]
        self._known: dict[str, dict[str, Any]] = {}  # by repository and commit
        self._lock = threading.Lock()
        self._unwritable = False

    def any(self, repository: str) -> bool:
        """Whether anything of a repository is kept."""
        return bool(self._answers(repository))

    def kept(self, repository: str, commit: str) -> Listing | None:
        """The listing of a commit, if it is kept."""
        if (answer := self._answers(repository).get(commit)) is None:
            return None
        try:
            found = checked_listing(repository, commit, answer)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return None
        return found if found.repository == repository else None

    def main(self, repository: str) -> Listing:
        """That of ``main``, asked for and kept. Raises as ``listing``."""
        return self._keep(listing(self._hub, repository))

    def of(self, repository: str, commit: str) -> Listing:
        """That of a commit, kept or asked for. Raises as ``listing``."""
        return self.kept(repository, commit) or self._keep(listing(self._hub, repository, commit))

    def _keep(self, found: Listing) -> Listing:
        answers = self._answers(found.repository)
        if self._folder is None or found.commit in answers or self._unwritable:
            return found
        answer = _answer(found)
        with self._lock:
            answers[found.commit] = answer
            try:
                self._folder.parent.mkdir(parents=True, exist_ok=True)
                if own_folder(self._folder):
                    _append(self._file(found.repository), f"{json.dumps(answer)}\n".encode())
            except OSError as error:
                self._unwritable = True
                log.warning("what the hub lists is not kept in %s (%s): the next run asks again", self._folder, error)
        return found

    def _answers(self, repository: str) -> dict[str, Any]:
        with self._lock:
            if repository not in self._known:
                self._known[repository] = {} if self._folder is None else _read(self._file(repository))
            return self._known[repository]

    def _file(self, repository: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{quote(repository, safe='')}.jsonl"


def _read(path: Path) -> dict[str, Any]:
    """The answers in a file by their commit; of one that is no file, another user's or too large, nothing."""
    try:
        if path.lstat().st_uid != os.geteuid():
            return {}
        lines = contents(path, KEPT_BYTES).splitlines()
    except (OSError, ValueError):
        return {}
    answers = {}
    for line in lines:
        try:
            answer = parsed_body(line)
            answers[str(answer["sha"])] = answer
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return answers


def _append(path: Path, line: bytes) -> None:
    """One line more, in one write, so that those of several jobs do not mix."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        if os.fstat(descriptor).st_size + len(line) <= KEPT_BYTES:
            os.write(descriptor, line)
    finally:
        os.close(descriptor)


def _answer(found: Listing) -> dict[str, Any]:
    """A listing as a hub answers it: ``checked_listing`` makes the same listing of it."""
    lineage = found.lineage
    parents = [f"{each}@{lineage.revision}" if lineage.revision else each for each in lineage.parents]
    return {
        "id": found.repository,
        "sha": found.commit,
        "siblings": [_sibling(file) for file in found.files],
        "gated": found.gated,
        "safetensors": {"total": found.parameters},
        "cardData": {"base_model": parents, "base_model_relation": lineage.relation},
    }


def _sibling(file: RemoteFile) -> dict[str, Any]:
    large = {"lfs": {"sha256": file.sha256, "size": file.size_bytes}} if file.sha256 else {"blobId": file.git_sha1}
    return {"rfilename": file.path, "size": file.size_bytes, **large}
