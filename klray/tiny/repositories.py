"""The repositories in a hub's folder: revisions, commits, files and their hashes.

Layout: ``<root>/<organisation>/<name>/<revision>/<files>``, each revision a plain folder; folders whose names start
with a dot are not seen, so that a revision can be written under such a name and renamed when it is whole.
``<name>/repo.json`` is the model card's metadata (``{"base_model": "org/name", "base_model_relation": "finetune"}``, a
list for several parents), ``<name>/.gated`` refuses all downloads. A commit is the SHA-1 over the paths and SHA-256 of
a revision's files. ``main`` is the revision with the highest step, unless there is a folder of that name.
"""

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from klray.checkpoints import step_of

LARGE_SUFFIXES = (".safetensors", ".bin", ".h5", ".gguf", ".msgpack", ".ckpt", ".pt", ".pth", ".onnx", ".model")


class HubError(Exception):
    """An answer other than the thing asked for: HTTP status, X-Error-Code and words."""

    def __init__(self, status: HTTPStatus, code: str, message: str):
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class Blob:
    """One file: where it is, how many bytes, and its hashes as the hub gives them."""

    path: Path
    size: int
    sha256: str
    git_sha1: str

    @property
    def large(self) -> bool:
        """Whether the file is kept as LFS: addressed by SHA-256, with the blob id of its pointer."""
        return self.path.suffix in LARGE_SUFFIXES

    @property
    def lfs(self) -> dict[str, Any]:
        """The ``lfs`` object of the hub's answers: the tree calls the hash "oid", the model info "sha256"."""
        return {"oid": self.sha256, "sha256": self.sha256, "size": self.size, "pointerSize": len(self._pointer)}

    @property
    def parameters(self) -> Counter[str]:
        """Parameters by dtype, as a safetensors file says: its header is a length of 8 bytes, and JSON."""
        with self.path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = stream.read(length) if length < self.size else b""
        counts: Counter[str] = Counter()
        try:
            for name, tensor in json.loads(header).items():
                if name != "__metadata__":
                    counts[tensor["dtype"]] += math.prod(tensor["shape"])
        except (ValueError, TypeError, KeyError, AttributeError):  # the file is not what its name says
            counts.clear()
        return counts

    @property
    def blob_id(self) -> str:
        """Git's name for what a commit holds: the content, or the pointer of a large file."""
        return git_sha1(self._pointer) if self.large else self.git_sha1

    @property
    def _pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()


def git_sha1(content: bytes) -> str:
    """Git's name for a content (its blob id)."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


class Repositories:
    """What the folder holds. Files are hashed again only when their size or time of change differ."""

    def __init__(self, root: Path):
        self.root = root
        self._hashes: dict[tuple[Path, int, int], Blob] = {}
        self._last_commit: dict[Path, str] = {}  # spares looking through all revisions for a commit

    def folder(self, repository: str) -> Path:
        """Folder of ``organisation/name``; HubError RepoNotFound when there is none."""
        try:
            return self._folders()[repository]
        except KeyError:
            raise HubError(HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found") from None

    def names(self) -> list[str]:
        """``organisation/name`` of every repository."""
        return sorted(self._folders())

    def gated(self, repository: str) -> bool:
        """Whether downloads are refused."""
        return (self.folder(repository) / ".gated").exists()

    def card(self, repository: str) -> dict[str, Any]:
        """Metadata of the model card, {} without one."""
        path = self.folder(repository) / "repo.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def references(self, repository: str) -> dict[str, str]:
        """Revision -> commit."""
        folders = {folder.name: folder for folder in _subfolders(self.folder(repository))}
        if folders and "main" not in folders:
            folders["main"] = max(folders.values(), key=lambda folder: (step_of(folder.name) or -1, folder.name))
        return {name: self._commit(folder) for name, folder in folders.items()}

    def resolve(self, repository: str, revision: str) -> tuple[str, dict[str, Blob]]:
        """(commit, files by path) of a branch or commit sha; HubError RevisionNotFound when there is none."""
        for folder in _subfolders(self.folder(repository)):
            if folder.name == revision or self._last_commit.get(folder) == revision:
                commit = self._commit(folder)
                if revision in (folder.name, commit):
                    return commit, self._files(folder)
        commits = self.references(repository)
        for folder in _subfolders(self.folder(repository)):
            if commits[folder.name] == commits.get(revision, revision):
                return commits[folder.name], self._files(folder)
        raise HubError(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")

    def _folders(self) -> dict[str, Path]:
        return {
            f"{organisation.name}/{name.name}": name
            for organisation in _subfolders(self.root)
            for name in _subfolders(organisation)
        }

    def _commit(self, folder: Path) -> str:
        listed = "".join(f"{path}\n{blob.sha256}\n" for path, blob in self._files(folder).items())
        commit = hashlib.sha1(listed.encode(), usedforsecurity=False).hexdigest()
        self._last_commit[folder] = commit
        return commit

    def _files(self, folder: Path) -> dict[str, Blob]:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): self._blob(path) for path in paths}

    def _blob(self, path: Path) -> Blob:
        stat = path.stat()
        key = (path, stat.st_size, stat.st_mtime_ns)
        if key not in self._hashes:
            content = path.read_bytes()
            self._hashes[key] = Blob(path, len(content), hashlib.sha256(content).hexdigest(), git_sha1(content))
        return self._hashes[key]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith("."))
