"""The objects of a store in a local folder, each one a file."""

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from klray.errors import StoreError
from klray.store.objects.base import TEMPORARY, Listed, Objects, is_temporary


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

    def put(self, key: str, body: bytes | bytearray) -> None:
        self.put_many({key: body})

    def _write_beside(self, path: Path, body: bytes | bytearray) -> Path:
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

    def put_many(self, bodies: Mapping[str, bytes | bytearray]) -> None:
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
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def get_many(self, keys: list[str]) -> list[bytes | None]:
        return [self.get(key) for key in keys]

    def names(self, prefix: str) -> list[str]:
        folder = self.root / prefix
        if not folder.is_dir():
            return []
        return sorted(entry.name for entry in folder.iterdir() if not is_temporary(entry.name))

    def listing(self, prefix: str) -> dict[str, Listed]:
        found = {}
        for folder, _, names in os.walk(self.root / prefix):
            inside = Path(folder).relative_to(self.root).as_posix()
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # a temporary file that is gone by now
                    facts = os.stat(f"{folder}/{name}")  # noqa: PTH116 - 100,000 of these are common
                    found[f"{inside}/{name}".removeprefix("./")] = Listed(
                        datetime.fromtimestamp(facts.st_mtime, UTC), f"{facts.st_ino}-{facts.st_mtime_ns}"
                    )
        return dict(sorted(found.items()))

    def delete_tree(self, prefix: str) -> None:
        path = self.root / prefix
        if path.is_dir():
            shutil.rmtree(path, onerror=_unless_gone)
        else:
            path.unlink(missing_ok=True)


def _fingerprint(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _unless_gone(_: Any, __: str, found: tuple[type[BaseException], BaseException, Any]) -> None:
    """What another process has removed meanwhile is removed."""
    if not issubclass(found[0], FileNotFoundError):
        raise found[1]
