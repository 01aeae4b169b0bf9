"""Bring the files of one checkpoint into a folder and prove that they are the bytes that the hub announced."""

import contextlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path

from klray.checkpoints.checkpoint import Checkpoint, RemoteFile
from klray.checkpoints.download import Downloader, other_content, verify
from klray.checkpoints.files import is_plain
from klray.checkpoints.hub import Hub
from klray.errors import CheckpointError
from klray.words.outside import parsed, printable

FILES_AT_ONCE = 4
MARKER = ".klray.json"

Twin = Callable[[RemoteFile], Path | None]


def deliver(downloader: Downloader, hub: Hub, checkpoint: Checkpoint, folder: Path, twin: Twin) -> None:
    """Fill ``folder`` with the files of ``checkpoint``, each verified, and write the marker of completeness last.

    A file is copied from ``twin(file)``, a path of equal content that is on this disk already, or else downloaded by
    commit: along a training run only the weights change, and one request a checkpoint remains of about six. What an
    earlier process left there is kept where it is that content.

    Raises CheckpointError: ``no_safe_weights`` when a file would lie elsewhere, ``checksum_mismatch`` when a file is
    wrong twice, and as ``Downloader.download``.
    """
    if odd := [file.path for file in checkpoint.files if not is_plain(file.path)]:
        raise CheckpointError(
            f"{checkpoint.label} names {printable(odd[0])!r}, which is no file below its own folder: do not use it "
            "before you know why",
            "no_safe_weights",
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).unlink(missing_ok=True)
    largest_first = sorted(checkpoint.files, key=lambda file: -file.size_bytes)
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        futures = [pool.submit(_obtain, downloader, hub, checkpoint, file, folder, twin) for file in largest_first]
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            future.cancel()
    for future in futures:
        if not future.cancelled():
            future.result()
    partial = folder / f"{MARKER}.partial"
    partial.write_text(json.dumps([asdict(file) for file in checkpoint.files]))
    partial.replace(folder / MARKER)


def delivered(folder: Path) -> tuple[RemoteFile, ...] | None:
    """Files of a complete and verified folder, or None when it is not: no marker, or a file gone or of another size."""
    try:
        files = tuple(RemoteFile(**file) for file in parsed((folder / MARKER).read_bytes()))
        whole = all(is_plain(file.path) and (folder / file.path).stat().st_size == file.size_bytes for file in files)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return files if whole else None


def verify_folder(checkpoint: Checkpoint) -> Path:
    """Check that a local folder still holds what was resolved, and return it.

    Raises CheckpointError: ``checksum_mismatch`` when a file changed or went since.
    """
    folder = Path(checkpoint.directory)
    for file in checkpoint.files:
        path = folder / file.path
        wrong = verify(path, file) if path.is_file() else "file is gone"
        if wrong:
            raise CheckpointError(
                f"{path} is not what it was when the job began ({wrong}): do not write into a folder that is being "
                "scored, and run again",
                "checksum_mismatch",
            )
    return folder


def _obtain(
    downloader: Downloader, hub: Hub, checkpoint: Checkpoint, file: RemoteFile, folder: Path, twin: Twin
) -> None:
    path = folder / file.path
    if file.content and path.is_file() and not verify(path, file):
        return
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if source := twin(file):
        with contextlib.suppress(FileNotFoundError):  # evicted meanwhile
            shutil.copyfile(source, path)
            if not verify(path, file):
                return
    wrong = ""
    for _ in range(2):
        wrong = downloader.download(hub, *checkpoint.source, file, folder)
        if not wrong:
            return
    path.unlink()
    raise other_content(hub, f"{checkpoint.label} (commit {checkpoint.source[1]})", file, wrong)
