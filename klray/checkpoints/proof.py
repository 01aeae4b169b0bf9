"""Proof that bytes are those that a hub announced: their number, and their hash under the name that it gave."""

from __future__ import annotations

import hashlib
from pathlib import Path

from klray.checkpoints.checkpoint import RemoteFile

BLOCK_BYTES = 1 << 20


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
