"""Checkpoints in local folders: identified by the hash of their content, used where they are."""

import hashlib
import json
import logging
import stat
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from klray.checkpoints.cards import CARD, CardError, card_metadata
from klray.checkpoints.checkpoint import RemoteFile, hash_of
from klray.checkpoints.files import CONFIG, INDEX_BYTES, Listed, OutsideError, described_by, loadable_files
from klray.checkpoints.gguf import SUFFIX, is_gguf, read_gguf
from klray.checkpoints.parents import Lineage, lineage_of
from klray.checkpoints.soundness import CONFIG_BYTES, fault_of
from klray.errors import CheckpointError
from klray.words.outside import contents, parsed

log = logging.getLogger("klray")

_NOTES = ("_name_or_path", "transformers_version")  # parts of a config.json that change nothing in the model

SMALL_JSON = (
    CONFIG,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
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
    """Models in a folder: ``local`` for the folder itself, and each subfolder by its name, if they hold a config.json
    or GGUF files.
    """
    found = {sub.name: sub for sub in sorted(folder.iterdir()) if sub.is_dir() and _holds_model(sub)}
    return {LOCAL_REVISION: folder, **found} if _holds_model(folder) else found


def _holds_model(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or any(folder.glob(f"*{SUFFIX}"))


def model_config(folder: Path) -> dict[str, Any]:
    """What config.json says of the model; {} without one. ValueError if it is no JSON object, too large or too deep."""
    file = folder / CONFIG
    config = parsed(contents(file, CONFIG_BYTES)) if file.is_file() else {}
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG} holds a {type(config).__name__}")
    return {key: value for key, value in config.items() if key not in _NOTES}


def check_small_files(folder: Path) -> None:
    """Look at the JSON files that libraries read whole, however large and deep they are.

    Raises CheckpointError (load_failed): one is no JSON object, has more than ``CONFIG_BYTES``, or is too deep.
    """
    for name in SMALL_JSON:
        if file_in(folder, name) and (why := fault_of(folder / name)):
            raise CheckpointError(f"{folder / name} {why}", "load_failed")


def folder_lineages(models: Mapping[str, Path], run: Path) -> dict[str, Lineage]:
    """Lineage of each model in the folder of a run, from the card (README.md) in its own folder, else in the run's.

    A card that cannot be read costs the lineage alone, and says why (``unread``).
    """
    of_run = _card(run)
    found = {}
    for name, folder in models.items():
        siblings = [{"rfilename": path.name} for path in folder.iterdir()]
        cards = {folder: of_run if folder == run else _card(folder), run: of_run}
        lineages = [
            replace(lineage_of(str(place), {"cardData": card, "siblings": siblings}), unread=why)
            for place, (card, why) in cards.items()
        ]
        found[name] = next((each for each in lineages if each != Lineage()), Lineage())
    return found


def _card(folder: Path) -> tuple[dict[str, Any], str]:
    """Metadata of the card in a folder, {} without one, and why they cannot be read, "" where they can."""
    try:
        return card_metadata(folder / CARD) if file_in(folder, CARD) else {}, ""
    except (CardError, CheckpointError) as error:
        why = str(error) if isinstance(error, CheckpointError) else f"{folder / CARD} {error}"
        log.warning("%s; the lineage that it tells is not recorded", why)
        return {}, why


def architecture(folder: Path) -> str:
    """A name that is equal for checkpoints that differ in numbers alone, or "" if what says so cannot be read.

    It is in config.json of a folder, or in a GGUF file's header.
    """
    try:
        if is_gguf(folder):
            return json.dumps(read_gguf(folder).form, sort_keys=True)
        return json.dumps(model_config(folder), sort_keys=True)
    except (ValueError, OSError):
        return ""


def read_folder(folder: Path) -> tuple[str, tuple[RemoteFile, ...]]:
    """Hash what would be loaded from ``folder``: (commit, files).

    The commit is the SHA-256 (64 hex) over (path, SHA-256) of weights, config and tokenizer files. Where an index names
    weights outside the folder, these are not looked at; a warning says so, and loading refuses the checkpoint.

    Raises CheckpointError: as ``loadable_files`` and ``file_in``.
    """
    offered = offered_by(folder)
    try:
        loadable = loadable_files(offered)
    except OutsideError as error:
        log.warning("%s", error)
        loadable = described_by(offered)
    files = hashed(folder, loadable)
    return hash_of(files), files


def hashed(folder: Path, files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """The same files with the SHA-256 of what is in the folder."""
    found = []
    for file in files:
        with (folder / file.path).open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        found.append(RemoteFile(file.path, file.size_bytes, sha256, None))
    return tuple(found)


def offered_by(folder: Path) -> Listed:
    """What a folder offers to be loaded."""
    names = [path.name for path in folder.iterdir() if not path.is_dir()] if folder.is_dir() else []
    return Listed(
        str(folder),
        names,
        partial(file_in, folder),
        lambda file: contents(folder / file.path, INDEX_BYTES),
        [name for name in names if name.endswith(SUFFIX)],
    )


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
