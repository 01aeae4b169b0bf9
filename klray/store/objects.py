"""Named objects on a folder or on S3: the few operations that the store's protocol rests on.

``create`` is the one that matters: it makes an object only if none has that name, whole or not at all, whoever else
tries at the same moment. Everything that becomes visible in a store becomes visible through one ``create``.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import hashlib
import importlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from klray.errors import StoreError

TEMPORARY = ".tmp"  # end of the name of a file that is being written


def is_temporary(key: str) -> bool:
    """Whether a key is that of a file that is being written, or was when its writer died."""
    name = key.rsplit("/", 1)[-1]
    return name.startswith(".") and name.endswith(TEMPORARY)


class Objects(abc.ABC):
    """Objects below one URL; keys are relative, with ``/`` between their parts."""

    url: str
    listable = True

    def create(self, key: str, body: bytes) -> bool:
        """Make the object if none has this key; True if this call made it. No two calls have the same body.

        It looks first, so that one after another is safe even where the place ignores the condition of a put.
        """
        there = self.get(key)
        return self.conditional_put(key, body) if there is None else there == body

    @abc.abstractmethod
    def conditional_put(self, key: str, body: bytes) -> bool:
        """``create`` as the place decides it, with no look before: one put that is to be refused if the key is taken.

        True also if the key is taken by this very body: the answer to an earlier try was lost.
        """

    @abc.abstractmethod
    def put(self, key: str, body: bytes) -> None:
        """Write the object, replacing what was there, whole or not at all; it outlives a power loss."""

    @abc.abstractmethod
    def put_many(self, bodies: Mapping[str, bytes]) -> None:
        """``put`` of several keys, several at a time, in no order."""

    @abc.abstractmethod
    def copy(self, source: str, target: str, fingerprint: str) -> bool:
        """Copy an object where it is stored; False, and nothing is copied, unless ``source`` has that fingerprint."""

    @abc.abstractmethod
    def fingerprints(self, prefix: str) -> dict[str, str]:
        """Keys of all objects below ``prefix``, each with a short text that changes when its content does."""

    @abc.abstractmethod
    def get(self, key: str) -> bytes | None:
        """The object's bytes, or None when there is none."""

    def get_json(self, key: str) -> Any:
        """The object parsed as JSON, or None when there is none.

        Raises
        ------
        StoreError
            The object is there and is no JSON.
        """
        body = self.get(key)
        try:
            return None if body is None else json.loads(body)
        except ValueError as error:
            raise StoreError(
                f"store {self.url}: {key} is damaged ({error}); remove it and run the command that wrote it again"
            ) from error

    @abc.abstractmethod
    def get_many(self, keys: list[str]) -> list[bytes | None]:
        """``get`` of several keys, several at a time."""

    @abc.abstractmethod
    def names(self, prefix: str) -> list[str]:
        """Sorted names of the objects and folders directly below ``prefix``."""

    @abc.abstractmethod
    def walk(self, prefix: str) -> dict[str, datetime]:
        """Keys of all objects below ``prefix``, with the time (UTC) at which each was written."""

    @abc.abstractmethod
    def delete_tree(self, prefix: str) -> None:
        """Remove every object below ``prefix``; nothing happens when there is none."""


class FolderObjects(Objects):
    """Objects in a local folder; ``conditional_put`` is an atomic hard link."""

    def __init__(self, root: Path):
        self.root = root.expanduser().resolve()
        self.url = str(self.root)
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"store.url={self.url} is a file; name a folder, there already or not")

    def conditional_put(self, key: str, body: bytes) -> bool:
        path = self.root / key
        temporary = self._write_beside(path, body)
        try:
            os.link(temporary, path)
            self._settle({path.parent})
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise StoreError(
                    f"store {self.url}: this file system has no hard links ({error.strerror}), so that two jobs could "
                    "overwrite each other; put the store on a local disk or on S3"
                ) from error
            raise
        finally:
            temporary.unlink()
        return True

    def put(self, key: str, body: bytes) -> None:
        self.put_many({key: body})

    def _write_beside(self, path: Path, body: bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
        try:
            with temporary.open("xb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def put_many(self, bodies: Mapping[str, bytes]) -> None:
        for key, body in bodies.items():
            path = self.root / key
            self._write_beside(path, body).replace(path)
        self._settle({(self.root / key).parent for key in bodies})

    def _settle(self, folders: set[Path]) -> None:
        """Bring names in ``folders``, and the folders themselves, to the disk."""
        above = {parent for folder in folders for parent in folder.parents if parent.is_relative_to(self.root)}
        for folder in folders | above:
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def copy(self, source: str, target: str, fingerprint: str) -> bool:
        body = self.get(source)
        if body is None or _fingerprint(body) != fingerprint:
            return False
        self.put(target, body)  # not a hard link: what befalls one copy must not befall the other
        return True

    def fingerprints(self, prefix: str) -> dict[str, str]:
        return {key: _fingerprint((self.root / key).read_bytes()) for key in self.walk(prefix)}

    def get(self, key: str) -> bytes | None:
        try:
            return (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def get_many(self, keys: list[str]) -> list[bytes | None]:
        return [self.get(key) for key in keys]

    def names(self, prefix: str) -> list[str]:
        folder = self.root / prefix
        if not folder.is_dir():
            return []
        return sorted(entry.name for entry in folder.iterdir() if not is_temporary(entry.name))

    def walk(self, prefix: str) -> dict[str, datetime]:
        found = {}
        for folder, _, names in os.walk(self.root / prefix):
            inside = Path(folder).relative_to(self.root).as_posix()
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # a temporary file that is gone by now
                    seconds = os.stat(f"{folder}/{name}").st_mtime  # noqa: PTH116 - 100,000 of these are common
                    found[f"{inside}/{name}".removeprefix("./")] = datetime.fromtimestamp(seconds, UTC)
        return dict(sorted(found.items()))

    def delete_tree(self, prefix: str) -> None:
        path = self.root / prefix
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _fingerprint(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def open_objects(url: str, storage_options: Mapping[str, Any] | None = None) -> Objects:
    """The objects below ``url``.

    A path or ``file://`` for a folder, ``s3://bucket/prefix`` for S3 through s3fs, ``https://`` (or ``http://``) for
    reading what a web server shows.

    Raises
    ------
    StoreError
        The URL has another scheme or holds a password, or s3fs is not installed.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return FolderObjects(Path(url))
    if "@" in rest.split("/")[0]:
        raise StoreError(
            f"store.url={scheme}://...@{rest.split('@', 1)[1]} holds a user or a password, which would be shown and "
            "kept; take them out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        )
    if scheme == "file":
        return FolderObjects(Path(rest))
    modules = {"s3": ("s3", "S3Objects"), "https": ("web", "WebObjects"), "http": ("web", "WebObjects")}
    if scheme not in modules:
        raise StoreError(f"store.url={url}: klray opens folders, s3:// and https:// stores, not {scheme}://")
    name, kind = modules[scheme]
    try:
        module = importlib.import_module(f"klray.store.{name}")  # s3fs, which brings aiohttp, is an extra
    except ModuleNotFoundError as error:
        raise StoreError(f"store.url={url} needs s3fs, which is not installed; pip install 'klray[s3]'") from error
    objects: Objects = getattr(module, kind)(url, dict(storage_options or {}))
    return objects
