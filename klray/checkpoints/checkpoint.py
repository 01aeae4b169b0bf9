"""What a checkpoint is: a repository at one commit, the files to load and the facts about it."""

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from klray.errors import Reason
from klray.words.outside import LONGEST

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")
# Fetched for whoever uses the folder; the log-likelihood of a plain text does not depend on them.
UNREAD = ("generation_config.json", "chat_template.")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository at a commit, as the hub announces it.

    ``sha256`` is known for large files (LFS), ``git_sha1`` (the blob id) for the others.
    """

    path: str
    size_bytes: int
    sha256: str | None
    git_sha1: str | None

    @property
    def is_weight(self) -> bool:
        """Whether the file holds parameters."""
        return self.path.endswith(WEIGHT_SUFFIXES)

    @property
    def content(self) -> str:
        """Name of the content, equal for equal bytes: ``sha256:<hex>`` or ``git-sha1:<hex>``, "" when not announced."""
        if self.sha256:
            return f"sha256:{self.sha256}"
        return f"git-sha1:{self.git_sha1}" if self.git_sha1 else ""


@dataclass(frozen=True)
class Facts:
    """What is known about a checkpoint besides its bytes. A run is one repository, or a branch of steps in one.

    ``trained_tokens`` are those that the name of the revision says, in round numbers.
    ``base_model`` is the single parent, "" when there is none or several; ``base_revision`` its revision, if one is
    named; ``parents`` all parents, joined by ", "; ``relation`` how the model was made from them (see ``lineage``).
    ``card`` says why the model card could not be read, "" as a rule.
    """

    family: str = ""
    run: str = ""
    step: int | None = None
    size: str = ""
    seed: int | None = None
    base_model: str = ""
    base_revision: str = ""
    parents: str = ""
    relation: str = ""
    card: str = ""
    trained_tokens: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A repository at one commit: what has to be on disk to load it.

    ``commit`` is the resolved 40-digit commit sha, never a branch name. For a local folder ``directory`` is not empty,
    ``repository`` is the absolute path and ``commit`` the SHA-256 (64 digits) over the paths and hashes of ``files``.
    ``parameters`` is how many it has, as far as the hub says, or else as many as ``main`` has.

    A GGUF file is a checkpoint by itself: ``gguf`` is its path below the repository, and the last part of
    ``repository``; ``commit`` is the hash over its files, and ``hub_commit`` where the hub has them.

    ``elsewhere`` are revisions that were not asked for and have some of its weights: name, and short hash of each file.
    """

    repository: str
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]
    facts: Facts
    directory: str = ""
    parameters: int | None = None
    gguf: str = ""
    hub_commit: str = ""
    elsewhere: tuple[str, ...] = ()

    @property
    def source(self) -> tuple[str, str]:
        """Repository and commit, as the hub knows them."""
        if not self.gguf:
            return self.repository, self.commit
        return self.repository.removesuffix(f"/{self.gguf}"), self.hub_commit

    def place(self, folder: Path) -> Path:
        """What is loaded, once its files are in ``folder``: that folder, or a GGUF file in it."""
        return folder / self.gguf if self.gguf else folder

    @property
    def label(self) -> str:
        """``repository@revision``, for messages and plots."""
        return f"{self.repository}@{self.revision}"

    @functools.cached_property
    def bytes(self) -> int:
        """Size of all files together, in bytes."""
        return sum(file.size_bytes for file in self.files)

    @property
    def weight_files(self) -> str:
        """The first 12 hex digits of the hash of each file of weights, in the order of their names, a space between.

        "" when one is not announced, or there are more files than a fact may name.
        """
        hashes = [short_hash(file) for file in self.files if file.is_weight]
        found = " ".join(hashes)
        return found if all(hashes) and len(found) <= LONGEST else ""

    @property
    def content(self) -> str:
        """Name of all that decides a score (64 hex): equal for checkpoints whose weights, config and tokenizer have
        equal names and bytes, wherever they are; "" when the hub did not announce the content of one of them.
        """
        files = sorted((file.path, file.content) for file in self.files if not file.path.startswith(UNREAD))
        if not all(content for _, content in files):
            return ""
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def short_hash(file: RemoteFile) -> str:
    """The first 12 hex digits of the hash of a file, "" when it is not announced."""
    return file.content.rpartition(":")[2][:12]


def hash_of(files: Iterable[RemoteFile]) -> str:
    """SHA-256 (64 hex) over paths and contents: what stands for a commit where there is none."""
    listed = "".join(f"{file.path}\n{file.sha256 or file.content}\n" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()


@dataclass(frozen=True)
class Unavailable:
    """A checkpoint that was asked for and cannot be scored, with the reason and what to do about it."""

    repository: str
    revision: str
    reason: Reason
    message: str
