"""Downloads of single files: resumed where they broke, hashed as they come in, silent while the hub asks for a pause.

huggingface_hub resumes a body that ends early, but begins again after a TCP reset or a 5xx, pauses alone after a 429,
asks for each file twice (HEAD and GET) and leaves the hash to be read from the disk; so the requests are made here,
with its client. Where the hub offers a file through Xet and hf_xet is installed, hf_xet fetches it.
"""

import hashlib
import importlib.util
import logging
import os
import shutil
import time
from contextlib import closing
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import constants, hf_hub_download, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, silent_tqdm

from klray.checkpoints.answers import OddAnswerError, Pace, opened
from klray.checkpoints.checkpoint import RemoteFile
from klray.checkpoints.hub import Hub, content_of, failure
from klray.checkpoints.patience import NETWORK_ERRORS, Patience, is_disk_full, pause_after, response_of
from klray.errors import CheckpointError

log = logging.getLogger("klray")

PROGRESS_BYTES = 1 << 20  # an attempt that brought this much, or the rest, was none in vain
XET_HASH = constants.HUGGINGFACE_HEADER_X_XET_HASH
BLOCK_BYTES = 1 << 20
NOTES = ".cache"  # where huggingface_hub keeps notes about what it downloaded


class Proof:
    """Takes the bytes of ``file`` in their order, and says what is wrong with them."""

    def __init__(self, file: RemoteFile):
        self.file = file
        self.restart()

    def restart(self) -> None:
        """Forget what was taken."""
        self.taken = 0
        self._digest = hashlib.sha256()
        if self.file.content.startswith("git-sha1:"):  # git's blob id: the SHA-1 of a header and the content
            self._digest = hashlib.sha1(f"blob {self.file.size_bytes}\0".encode(), usedforsecurity=False)

    def take(self, block: bytes) -> None:
        """Take the next bytes."""
        self.taken += len(block)
        self._digest.update(block)

    def wrong(self) -> str:
        """Return "" when what was taken is the content announced, else both sizes or hashes in words."""
        if self.taken != self.file.size_bytes:
            return f"announced {self.file.size_bytes:,} bytes, found {self.taken:,}"
        announced, _, _ = self.file.content.partition(":")
        found = f"{announced}:{self._digest.hexdigest()}"
        return "" if not announced or found == self.file.content else f"announced {self.file.content}, found {found}"


def verify(path: Path, file: RemoteFile) -> str:
    """Return "" when ``path`` holds the content announced for ``file``, else both sizes or hashes in words."""
    size = path.stat().st_size
    if size != file.size_bytes:
        return f"announced {file.size_bytes:,} bytes, found {size:,}"
    proof = Proof(file)
    if file.content:
        with path.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                proof.take(block)
        return proof.wrong()
    return ""


def small_file(hub: Hub, repository: str, commit: str, file: RemoteFile) -> bytes:
    """The content of a small file of a commit, proved. Raises ``checksum_mismatch``, and as ``listing``."""
    wrong = ""
    for _ in range(2):
        content, proof = content_of(hub, repository, commit, file), Proof(file)
        proof.take(content)
        if not (wrong := proof.wrong()):
            return content
    raise other_content(hub, f"{repository}@{commit}", file, wrong)


def other_content(hub: Hub, where: str, file: RemoteFile, wrong: str) -> CheckpointError:
    """A hub sent other bytes than it lists, twice."""
    return CheckpointError(
        f"{file.path} of {where} came from {hub.address} with other content than it announces, twice: {wrong}. Try "
        "again later; if it stays so, tell whoever runs the hub or a proxy before it",
        "checksum_mismatch",
    )


class Downloader:
    """Downloads for one process, under a ``patience`` that may be shared with others."""

    def __init__(self, patience: Patience | None = None):
        self.patience = patience or Patience()
        self._without_xet: set[str] = set()  # hubs whose Xet storage failed

    def download(self, hub: Hub, repository: str, commit: str, file: RemoteFile, folder: Path) -> str:
        """Download one file of a commit to ``folder / file.path``, in one request when nothing goes wrong.

        Returns "" when it is what was announced, else both sizes or hashes in words.

        A broken body is continued where it broke (HTTP Range). After 429 or 5xx all downloads under the same patience
        pause, for the time that the hub names (Retry-After, RateLimit) or a growing one. Six attempts in a row that
        bring nothing are the end.

        Raises CheckpointError: ``download_failed`` after the attempts; ``gated``, ``repository_not_found`` or
        ``revision_not_found`` at once. What is raised when the disk is full, ``is_disk_full`` knows.
        """
        url = hf_hub_url(repository, file.path, revision=commit, endpoint=hub.address)
        headers = build_hf_headers(token=hub.token or False, headers=hub.headers)
        headers["accept-encoding"] = "identity"  # ranges and hashes are of the content itself
        where = f"{file.path} of {repository}@{commit[:8]}"
        proof = Proof(file)
        failed, most = 0, 0
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            while True:
                self.patience.wait()
                try:
                    xet = self._receive(url, headers, proof, stream, hub)
                    break
                except OddAnswerError as error:
                    raise failure(hub, repository, commit, error, file.path) from error
                except NETWORK_ERRORS as error:
                    if is_disk_full(error):
                        raise
                    if proof.taken and not proof.wrong():  # it broke after the last byte
                        xet = False
                        break
                    failed = 1 if proof.taken - most >= PROGRESS_BYTES else failed + 1
                    most = max(most, proof.taken)
                    seconds = pause_after(error, failed)
                    if seconds is None:
                        raise failure(hub, repository, commit, error, file.path) from error
                    log.warning("%s: %s; going on in %g s at byte %d", where, hub.said(error), seconds, proof.taken)
                    if response_of(error) is None:
                        time.sleep(seconds)  # a broken connection concerns this file alone
                    else:
                        self.patience.pause(seconds)
        if not xet:
            return proof.wrong()
        if self._by_xet(hub, repository, commit, file, folder):
            return verify(path, file)
        self._without_xet.add(hub.address)
        return self.download(hub, repository, commit, file, folder)

    def _receive(self, url: str, headers: dict[str, str], proof: Proof, stream: BinaryIO, hub: Hub) -> bool:
        """Write what is missing of a file; True when the hub offers it through Xet, and nothing was written."""
        missing = {"range": f"bytes={proof.taken}-"} if proof.taken else {}
        xet = _xet_is_here() and hub.address not in self._without_xet
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT  # of silence; 10 s unless the environment says otherwise
        pace = Pace(bytes_per_second=10_000, seconds=30)
        answer = opened(url, {**headers, **missing}, timeout, stops=lambda answer: xet and XET_HASH in answer.headers)
        with closing(answer):
            hf_raise_for_status(answer)
            if xet and XET_HASH in answer.headers:
                return True
            if answer.status_code != HTTPStatus.PARTIAL_CONTENT:  # from the start
                proof.restart()
                stream.seek(0)
                stream.truncate()
            for block in answer.iter_raw():  # as it was sent: what is packed may unfold to any size
                proof.take(block)
                stream.write(block)
                if proof.taken > proof.file.size_bytes:  # no more than announced goes to the disk
                    break
                if pace.too_slow(len(block)):
                    raise TimeoutError(f"less than {pace.bytes_per_second:,} bytes a second")
        return False

    def _by_xet(self, hub: Hub, repository: str, commit: str, file: RemoteFile, folder: Path) -> bool:
        """Fetch a file through Xet; False, and a warning, when that fails."""
        # hf_xet may keep what it fetched for later, 10 GB of it: that would be beside the cache's bound
        os.environ.setdefault("HF_XET_CHUNK_CACHE_SIZE_BYTES", "0")
        (folder / file.path).unlink(missing_ok=True)
        try:
            hf_hub_download(
                repository,
                file.path,
                revision=commit,
                local_dir=folder,
                endpoint=hub.address,
                headers=hub.headers,
                token=hub.token or False,
                tqdm_class=silent_tqdm,
            )
        except (*NETWORK_ERRORS, ValueError) as error:
            if is_disk_full(error):
                raise
            where, said = f"{file.path} of {repository}@{commit[:8]}", f"{type(error).__name__}: {hub.said(error)}"
            words = "%s cannot be fetched through Xet (%s): going on with plain HTTP from %s"
            log.warning(words, where, said, hub.address)
            return False
        finally:
            shutil.rmtree(folder / NOTES, ignore_errors=True)
        return True


def _xet_is_here() -> bool:
    return not constants.HF_HUB_DISABLE_XET and importlib.util.find_spec("hf_xet") is not None
