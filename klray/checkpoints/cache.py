"""Checkpoints on this machine's disk: fetched, ahead of time too, verified, evicted, within a bound in bytes."""

import contextlib
import fcntl
import logging
import math
import os
import shutil
import stat
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from klray.checkpoints.checkpoint import Checkpoint, RemoteFile
from klray.checkpoints.delivery import MARKER, deliver, delivered, verify_folder
from klray.checkpoints.download import Downloader
from klray.checkpoints.hub import Hub
from klray.checkpoints.patience import Patience, is_disk_full
from klray.errors import CheckpointError, KlrayError

log = logging.getLogger("klray")

NOTES_BYTES = 1024  # a file's share of the marker and of huggingface_hub's notes; about 550 bytes are written
LARGER_DISK = "free some, or set scoring.cache_dir to a folder on a larger disk"


@dataclass
class _Entry:
    files: tuple[RemoteFile, ...]
    users: int
    complete: bool
    proved: bool = True  # False: an earlier process left it, and whoever could write there

    @property
    def bytes(self) -> int:
        return _bytes_on_disk(self.files)


class Cache:
    """Folders of fetched checkpoints, never above ``max_bytes`` together.

    ``fetch`` gives a folder to use, ``release`` gives it back (it stays until room is needed, least recently used
    first to go), ``evict`` gives it back and removes it. All may be called from several threads: a ``fetch`` that does
    not fit beside the folders in use waits until one is released.

    Each process has a folder ``worker-0``, ``worker-1``, ... of its own below ``root``, locked while the cache is open,
    so ``max_bytes`` is per process. What is complete there is found again by the next process that takes the folder,
    and hashed before it is used. Downloads pause as ``patience`` says, which caches may share.
    """

    def __init__(self, root: Path, max_bytes: int, patience: Patience | None = None):
        self.max_bytes = max_bytes
        self._downloader = Downloader(patience)
        self.root, self._lock = _claim(Path(root).expanduser().resolve())
        self._changed = threading.Condition()
        self._entries: dict[Path, _Entry] = {}  # least recently used first
        self._closed = False
        self._recover()

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def bytes(self) -> int:
        """Bytes on disk and reserved for downloads that go on now."""
        with self._changed:  # once more where a method here has it already
            return sum(entry.bytes for entry in self._entries.values())

    def fetch(self, hub: Hub, checkpoint: Checkpoint) -> Path:
        """Return where the verified files of ``checkpoint`` are, in use until ``release`` or ``evict``: a folder, or a
        GGUF file (``Checkpoint.place``).

        A folder that is here already costs no request. A local folder is used where it is, after hashing it again.

        Raises CheckpointError: ``checksum_mismatch``, ``download_failed``, ``gated``, ``repository_not_found``,
        ``revision_not_found``; ``disk_full`` when the checkpoint alone is above ``max_bytes`` or above what the disk
        has free.
        """
        if checkpoint.directory:
            return checkpoint.place(verify_folder(checkpoint))
        folder = self._folder(checkpoint)
        entry = self._reserve(folder, checkpoint)
        if entry is None:
            return checkpoint.place(folder)
        try:
            deliver(self._downloader, hub, checkpoint, folder, self._twin)
        except BaseException as error:
            with self._changed:
                self._remove(folder)
            if isinstance(error, Exception) and is_disk_full(error):
                raise self._disk_full(checkpoint, f"the disk ran full during the download: {LARGER_DISK}") from error
            raise
        with self._changed:
            entry.complete = True
            self._changed.notify_all()
        return checkpoint.place(folder)

    def release(self, checkpoint: Checkpoint) -> None:
        """Give back what ``fetch`` gave: the folder stays until room is needed."""
        folder = self._folder(checkpoint)
        with self._changed:
            entry = self._entries.get(folder)
            if entry is None or not (entry.users and entry.complete):
                return
            entry.users -= 1
            self._entries[folder] = self._entries.pop(folder)
            with contextlib.suppress(FileNotFoundError):
                os.utime(folder / MARKER)  # the order of use, for the next process
            self._changed.notify_all()

    def evict(self, checkpoint: Checkpoint) -> None:
        """Give back what ``fetch`` gave and remove it from the disk, unless another thread uses it."""
        self.release(checkpoint)
        self.discard(checkpoint)

    def discard(self, checkpoint: Checkpoint) -> None:
        """Remove what was given back from the disk, unless another thread uses it."""
        folder = self._folder(checkpoint)
        with self._changed:
            entry = self._entries.get(folder)
            if entry is not None and not entry.users:
                self._remove(folder)

    def close(self) -> None:
        """Unlock the folder for other processes. A ``fetch`` that waits for room ends with a KlrayError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._lock.close()

    def _folder(self, checkpoint: Checkpoint) -> Path:
        return self.root / checkpoint.repository.replace("/", "--") / checkpoint.commit

    def _reserve(self, folder: Path, checkpoint: Checkpoint) -> _Entry | None:
        """Entry to fill, with its bytes reserved; None when the folder is complete."""
        wanted = _Entry(checkpoint.files, users=1, complete=False)
        if larger := larger_than_cache(checkpoint, self.max_bytes):
            raise self._disk_full(checkpoint, larger)
        with self._changed:
            while True:
                if self._closed:
                    raise KlrayError(f"{checkpoint.label} cannot be fetched: the cache {self.root} was closed")
                entry = self._entries.get(folder)
                if entry and entry.complete and (entry.users or delivered(folder) == checkpoint.files):
                    entry.users += 1
                    if entry.proved:
                        return None
                    entry.complete, entry.proved = False, True  # as if it were fetched: what is right there is kept
                    return entry
                if entry and not entry.users:  # damaged, or of other files than those asked for now
                    self._remove(folder)
                    continue
                if entry is None and self._make_room(wanted.bytes):
                    self._entries[folder] = wanted
                    return wanted
                if not any(one.users for one in self._entries.values()):
                    raise self._disk_full(checkpoint, f"the disk does not have that much: {LARGER_DISK}")
                taken = f"{self.bytes:,} of {self.max_bytes:,} bytes taken"
                log.info("%s waits for room in %s: %s", checkpoint.label, self.root, taken)
                self._changed.wait()

    def _make_room(self, needed: int) -> bool:
        while self.bytes + needed > self.max_bytes or self._free() < needed:
            unused = next((folder for folder, entry in self._entries.items() if not entry.users), None)
            if unused is None:
                return False
            self._remove(unused)
        return True

    def _free(self) -> int:
        """Bytes free on the disk, less all that the downloads going on now may still write."""
        going_on = sum(entry.bytes for entry in self._entries.values() if not entry.complete)
        return shutil.disk_usage(self.root).free - going_on

    def _remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._entries.pop(folder, None)
        self._changed.notify_all()

    def _twin(self, file: RemoteFile) -> Path | None:
        wanted = file.content
        with self._changed:
            complete = ((folder, entry) for folder, entry in reversed(self._entries.items()) if entry.complete)
            paths = (folder / each.path for folder, entry in complete for each in entry.files if each.content == wanted)
            return next(paths, None) if wanted else None

    def _recover(self) -> None:
        """Take over complete folders of an earlier process, the least recently used first, and remove the rest."""
        complete = []
        for parent, folders, files in os.walk(self.root):
            for link in (place for name in (*folders, *files) if (place := Path(parent, name)).is_symlink()):
                link.unlink()  # klray makes none: it would lead out of the cache
        for folder in self.root.glob("*/*"):
            left = delivered(folder)
            if left is None:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                complete.append(((folder / MARKER).stat().st_mtime_ns, folder, left))
        with self._changed:
            for _, folder, left in sorted(complete):
                self._entries[folder] = _Entry(left, users=0, complete=True, proved=False)
            self._make_room(0)

    def _disk_full(self, checkpoint: Checkpoint, limit: str) -> CheckpointError:
        free = shutil.disk_usage(self.root).free
        return CheckpointError(
            f"{checkpoint.label} takes {checkpoint.bytes:,} bytes, {free:,} bytes are free in {self.root}, and {limit}",
            "disk_full",
        )


class Fetcher:
    """Fetches into ``cache``, one checkpoint after another in the order in which they are wanted, each several files at
    once: the first is there as soon as the hub's rate allows. How many are ahead is bounded by the cache's bytes.
    """

    def __init__(self, hub: Hub, cache: Cache):
        self.hub = hub
        self.cache = cache
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fetch")
        self._ahead: dict[Checkpoint, Future[Path]] = {}  # in the order in which they are fetched

    def take(self, checkpoint: Checkpoint, upcoming: Sequence[Checkpoint] = ()) -> Path:
        """Folder of ``checkpoint``, in use until the cache's ``evict``; meanwhile and after it, fetch ``upcoming``.

        What an earlier call named, and this one does not, is given up. Raises as ``Cache.fetch``.
        """
        wanted = (checkpoint, *upcoming)
        # What is fetched waits for room until what was fetched before it is worked on: the order must be the same.
        in_order = tuple(self._ahead)[:1] == (checkpoint,)
        for each in [each for each in self._ahead if each not in wanted or not in_order]:
            self._give_up(each)
        for each in wanted:
            if each not in self._ahead:
                self._ahead[each] = self._pool.submit(self.cache.fetch, self.hub, each)
        return self._ahead.pop(checkpoint).result()

    def _give_up(self, checkpoint: Checkpoint) -> None:
        def evict(done: Future[Path]) -> None:
            if done.exception() is None:
                self.cache.evict(checkpoint)

        future = self._ahead.pop(checkpoint)
        if not future.cancel():
            future.add_done_callback(evict)


def larger_than_cache(checkpoint: Checkpoint, max_bytes: int) -> str:
    """Why ``checkpoint`` can never be fetched into a cache of ``max_bytes``, and what to do; "" when it can."""
    needed = 0 if checkpoint.directory else _bytes_on_disk(checkpoint.files)
    if needed <= max_bytes:
        return ""
    larger = f"raise scoring.cache_gigabytes to {math.ceil(needed / 1e6) / 1e3:g} or more"
    return f"the cache may hold {max_bytes:,} bytes: {larger}"


def _bytes_on_disk(files: Iterable[RemoteFile]) -> int:
    return sum(file.size_bytes + NOTES_BYTES for file in files)


def _claim(root: Path) -> tuple[Path, TextIO]:
    """First folder worker-<n> below ``root`` that is this user's alone and no other cache's, and its lock, which ends
    with the process.
    """
    number = 0
    try:
        root.mkdir(parents=True, exist_ok=True)
        while True:
            folder = root / f"worker-{number}"
            if own_folder(folder) and (lock := _locked(folder.with_suffix(".lock"))):
                return folder, lock
            number += 1
    except OSError as error:
        raise KlrayError(
            f"cache folder {root} cannot be used ({error}): set scoring.cache_dir to a folder on a local disk "
            "that this user may write"
        ) from error


def own_folder(folder: Path) -> bool:
    """Make ``folder``, or take it if it is this user's and no link: nobody else may write there from now on."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return False
        folder.chmod(0o700)
    return True


def _locked(path: Path) -> TextIO | None:
    """The lock at ``path``, None when another process or user has it."""
    try:
        lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+")
    except PermissionError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock
