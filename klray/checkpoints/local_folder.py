"""Checkpoints in local folders: identified by the hash of their content, used where they are."""

import hashlib
import json
import stat
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard import metadata_load

from klray.checkpoints.checkpoint import RemoteFile
from klray.checkpoints.files import CONFIG, INDEX_BYTES, Listed, loadable_files
from klray.checkpoints.parents import Lineage, lineage_of
from klray.errors import CheckpointError
from klray.words.outside import contents

_NOTES = ("_name_or_path", "transformers_version")  # parts of a config.json that change nothing in the model

LOCAL_REVISION = "local"
PATH_PREFIXES = ("/", "./", "../", "~")


def local_folder(repository: str) -> Path | None:
    """Folder meant by ``repository``, or None when it is the name of a repository on the hub.

    A folder is a path that starts with ``/``, ``./``, ``../`` or ``~``, or any directory that exists.
    """
    path = Path(repository).expanduser()
    if repository.startswith(PATH_PREFIXES) or path.is_dir():
        return path.resolve()
    return None


def folder_revisions(folder: Path) -> dict[str, Path]:
    """Models in a folder: ``local`` for the folder itself, and each subfolder with a config.json by its name."""
    found = {sub.name: sub for sub in sorted(folder.iterdir()) if (sub / CONFIG).is_file()}
    return {LOCAL_REVISION: folder, **found} if (folder / CONFIG).is_file() else found


def model_config(folder: Path) -> dict[str, Any]:
    """What config.json says of the model; {} without one. ValueError if it is no JSON."""
    file = folder / CONFIG
    config = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return {key: value for key, value in config.items() if key not in _NOTES}


def folder_lineage(folder: Path, run: Path) -> Lineage:
    """Lineage from the card (README.md) in a model's folder, else in that of its run; a broken card says none."""
    siblings = [{"rfilename": path.name} for path in folder.iterdir()]
    for each in dict.fromkeys((folder, run)):
        try:
            card = metadata_load(each / "README.md") or {}
        except (OSError, ValueError, yaml.YAMLError):
            card = {}
        found = lineage_of(str(each), {"cardData": card, "siblings": siblings})
        if found != Lineage():
            return found
    return Lineage()


def architecture(folder: Path) -> str:
    """A name that is equal for folders whose models differ in numbers alone, or "" if config.json cannot be read."""
    try:
        return json.dumps(model_config(folder), sort_keys=True)
    except (ValueError, AttributeError, OSError):
        return ""


def read_folder(folder: Path) -> tuple[str, tuple[RemoteFile, ...]]:
    """Hash what would be loaded from ``folder``: (commit, files).

    The commit is the SHA-256 (64 hex) over (path, SHA-256) of weights, config and tokenizer files.

    Raises CheckpointError: as ``loadable_files`` and ``file_in``.
    """
    files = []
    for file in loadable_files(offered_by(folder)):
        with (folder / file.path).open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        files.append(RemoteFile(file.path, file.size_bytes, sha256, None))
    commit = hashlib.sha256("".join(f"{file.path}\n{file.sha256}\n" for file in files).encode()).hexdigest()
    return commit, tuple(files)


def offered_by(folder: Path) -> Listed:
    """What a folder offers to be loaded."""
    names = [path.name for path in folder.iterdir() if not path.is_dir()] if folder.is_dir() else []
    return Listed(str(folder), names, partial(file_in, folder), lambda file: contents(folder / file.path, INDEX_BYTES))


def file_in(folder: Path, path: str) -> RemoteFile | None:
    """The file at ``path`` in a model's folder; None when nothing is there.

    Links may lead to files in the folder, and from a snapshot in huggingface_hub's cache to its blobs. Raises
    CheckpointError (no_safe_weights): it leads elsewhere, or to what is no plain file, so that reading it would take
    what does not belong to the model, or never end.
    """
    place = folder / path
    try:
        target = place.resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, RuntimeError) as error:  # links in a circle
        raise _refused(place, f"cannot be followed ({type(error).__name__})") from error
    own = folder.resolve()
    blobs = (own.parent.parent / "blobs",) if own.parent.name == "snapshots" else ()
    if not any(target.is_relative_to(each) for each in (own, *blobs)):
        raise _refused(place, f"leads out of its folder, to {target}")
    status = target.stat()
    if not stat.S_ISREG(status.st_mode):
        raise _refused(place, "is no plain file but a device, a pipe or a folder")
    return RemoteFile(path, status.st_size, None, None)


def _refused(place: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{place} {why}: klray reads a model's own files only; copy into its folder what belongs to it",
        "no_safe_weights",
    )
