"""The objects of a store in a local folder, each one a file."""

import contextlib
import errno
import hashlib
import io
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from klray.errors import StoreDamagedError, StoreError, StoreUnreachableError
from klray.store.objects.base import (
    JSON_BYTES,
    LARGEST_OBJECT,
    NO_OBJECT,
    TEMPORARY,
    Listed,
    Objects,
    is_key,
    is_temporary,
)

NO_FILE, TOO_LARGE = NO_OBJECT
_LAST_SECOND = 253_402_300_799  # of the year 9999: a file may say that it is of a later one
RECORD = ".json"  # end of the names of objects that are records; a folder of such a name is none of klray's


class FolderObjects(Objects):
    """Objects in a local folder; ``conditional_put`` is an atomic hard link.

    The folder may be a link. A link within it that leads out of it is refused, and so is what is no file: a pipe would
    be waited for.
    """

    def __init__(self, root: Path):
        self.root = root.expanduser().resolve()
        self.url = str(self.root)
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"store.url={self.url} is a file; name a folder, there already or not")

    def _path(self, key: str) -> Path:
        path = self.root / self._checked(key)
        real = os.path.realpath(path)
        if real != self.url and not real.startswith(f"{self.url.rstrip('/')}/"):
            raise StoreDamagedError(f"store {self.url}: {key} leads to {real}, out of the store; remove that link")
        return path

    def conditional_put(self, key: str, body: bytes) -> bool:
        path = self._path(key)
        temporary = self._write_beside(path, body)
        try:
            os.link(temporary, path)
        except OSError as error:
            if temporary.stat().st_nlink == 2:  # it was made, and the answer of the server of files was lost
                pass
            elif isinstance(error, FileExistsError):
                return self.get(key, max(len(body), JSON_BYTES)) == body
            elif error.errno in (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise StoreError(
                    f"store {self.url}: this file system has no hard links ({error.strerror}), so that two jobs could "
                    "overwrite each other; put the store on a local disk or on S3"
                ) from error
            else:
                raise
        finally:
            temporary.unlink()
        self._settle({path.parent})
        return True

    def put(self, key: str, body: bytes | bytearray, content_type: str = "") -> None:
        self.put_many({key: body})

    def _write_beside(self, path: Path, body: bytes | bytearray) -> Path:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            if not self.root.is_dir():
                raise
            raise self._in_the_way(path.parent) from error
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
        try:
            with _naming(path), temporary.open("xb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def put_many(self, bodies: Mapping[str, bytes | bytearray]) -> None:
        paths = {self._path(key): body for key, body in bodies.items()}
        for path, body in paths.items():
            temporary = self._write_beside(path, body)
            try:
                temporary.replace(path)
            except IsADirectoryError as error:
                temporary.unlink()
                raise self._in_the_way(path) from error
        self._settle({path.parent for path in paths})

    def _in_the_way(self, path: Path) -> StoreDamagedError:
        return StoreDamagedError(f"store {self.url}: {path} is not what klray puts there; look at it, and remove it")

    def _settle(self, folders: set[Path]) -> None:
        """Bring names in ``folders``, and the folders themselves, to the disk."""
        above = {parent for folder in folders for parent in folder.parents if parent.is_relative_to(self.root)}
        for folder in folders | above:
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                with _naming(folder):
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def copy(self, source: str, target: str, fingerprint: str) -> bool:
        try:
            body = self.get(source, LARGEST_OBJECT)
        except StoreDamagedError:
            return False
        if body is None or hashlib.sha256(body).hexdigest() != fingerprint:
            return False
        self.put(target, body)  # not a hard link: what befalls one copy must not befall the other
        return True

    def fingerprints(self, prefix: str) -> dict[str, str]:
        found = {}
        for key in self.walk(prefix):
            try:
                with self._opened(key) as file:
                    if file is not None:
                        large = os.fstat(file.fileno()).st_size > LARGEST_OBJECT  # sparse, it costs its owner nothing
                        found[key] = TOO_LARGE if large else hashlib.file_digest(file, "sha256").hexdigest()
            except StoreDamagedError:
                found[key] = NO_FILE
        return found

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[io.BufferedReader | None]:
        """The file of an object, open; None where there is none."""
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError) as error:
            if (self.root / key).is_symlink():  # to nothing: no object can be made here, and none is there
                raise self._no_file(key) from error
            yield None
            return
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # a link to itself, a socket
                raise self._no_file(key) from error
            raise self._unreadable(key, error) from error
        kind = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(kind):
            os.close(descriptor)
            if not stat.S_ISDIR(kind) or key.endswith(RECORD):
                raise self._no_file(key)
            yield None
            return
        with open(descriptor, "rb") as file:  # noqa: PTH123 - of a descriptor
            yield file

    def _no_file(self, key: str) -> StoreDamagedError:
        return StoreDamagedError(f"store {self.url}: {key} is no file; remove it, klray makes none such")

    def _unreadable(self, key: str, error: OSError) -> StoreUnreachableError:
        words = f"store {self.url}: {key} cannot be read ({error.strerror}); check the disk and the permissions"
        return StoreUnreachableError(words)

    def get(self, key: str, most: int = JSON_BYTES) -> bytes | None:
        with self._opened(key) as file:
            if file is None:
                return None
            size = os.fstat(file.fileno()).st_size
            self._check_size(key, size, most)
            try:
                return file.read(size)
            except OSError as error:
                raise self._unreadable(key, error) from error

    def get_many(self, keys: list[str], most: int = JSON_BYTES) -> Iterator[bytes | StoreDamagedError | None]:
        return (self._get_or_damage(key, most) for key in keys)

    def names(self, prefix: str) -> list[str]:
        folder = self._path(prefix)
        if not folder.is_dir():
            return []
        return sorted(entry.name for entry in folder.iterdir() if is_key(entry.name) and not is_temporary(entry.name))

    def listing(self, prefix: str) -> dict[str, Listed]:
        """As everywhere; a folder, or a link to one, that stands where a record belongs is listed, too."""
        found = {}
        for folder, inner, names in os.walk(self._path(prefix)):
            inside = Path(folder).relative_to(self.root).as_posix()
            odd = [name for name in inner if name.endswith(RECORD)]
            for name in (*names, *odd):
                key = f"{inside}/{name}".removeprefix("./")
                with contextlib.suppress(FileNotFoundError):  # a temporary file that is gone by now
                    facts = os.lstat(f"{folder}/{name}")  # 100,000 of these are common
                    if is_key(key):
                        found[key] = Listed(
                            datetime.fromtimestamp(min(facts.st_mtime, _LAST_SECOND), UTC),
                            f"{facts.st_ino}-{facts.st_mtime_ns}",
                        )
        return dict(sorted(found.items()))

    def delete_tree(self, prefix: str) -> None:
        path = self._path(prefix.rpartition("/")[0]) / self._checked(prefix).rpartition("/")[2]
        if path.is_symlink():  # it goes, and not what it leads to
            path.unlink(missing_ok=True)
        elif path.is_dir():
            shutil.rmtree(path, onerror=_unless_gone)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An OSError names the path, also that of a disk that is full."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _unless_gone(_: Any, __: str, found: tuple[type[BaseException], BaseException, Any]) -> None:
    """What another process has removed meanwhile is removed."""
    if not issubclass(found[0], FileNotFoundError):
        raise found[1]
