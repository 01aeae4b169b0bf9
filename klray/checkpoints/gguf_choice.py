"""Which GGUF files of a repository or folder are checkpoints, and what they were made from."""

import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from klray.checkpoints.checkpoint import Checkpoint, Facts, RemoteFile, hash_of
from klray.checkpoints.files import CONFIG, Listed, gguf_files, is_plain
from klray.checkpoints.gguf import GgufFile, is_part, read_gguf
from klray.checkpoints.local_folder import LOCAL_REVISION, hashed
from klray.checkpoints.parents import Lineage, parsed_parents
from klray.errors import CheckpointError
from klray.words.numbers import listed
from klray.words.outside import LONGEST, fault, printable
from klray.words.revisions import run_of

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_NAMED = 5
_MOST = 200  # files that are taken unasked
_PARENTS = 16  # of a merge, in metadata
_ADDRESS = re.compile(r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)?([\w.-]+/[\w.-]+?)(?:/(?:tree/main)?)?")
_FIRST_PART = "-00001-of-"


def chosen_gguf(offered: Listed, patterns: Sequence[str]) -> list[str]:
    """Paths of the GGUF files that are asked for, sorted; none where the repository's other weights are meant.

    ``patterns`` (``models.files``) are matched against paths and names. Without them all files are taken, if there are
    no other weights. Of a model in several files the first one stands for all. Raises CheckpointError:
    no file matches (revision_not_found), or there are very many and none was named (load_failed).
    """
    there = sorted(path for path in offered.gguf if not is_part(path) or _FIRST_PART in path)
    if not patterns:
        if _has_weights(offered):
            return []
        if len(there) > _MOST:
            raise CheckpointError(
                f"{offered.label} has {len(there):,} GGUF files, and each is a model: say which with models.files, "
                "such as models.files='*Q4_K_M*'",
                "load_failed",
            )
        return there
    names = {path: (path, PurePosixPath(path).name) for path in there}
    chosen = [path for path in there if any(fnmatchcase(name, each) for each in patterns for name in names[path])]
    if not chosen:
        found = listed([printable(path) for path in there], _NAMED) if there else "none"
        raise CheckpointError(
            f"models.files={', '.join(patterns)!r} matches none of the {len(there)} GGUF files of {offered.label} "
            f"({found}): set models.files to a name or a pattern that does",
            "revision_not_found",
        )
    return chosen


def _has_weights(offered: Listed) -> bool:
    return any(fnmatchcase(name, pattern) for name in offered.root for pattern in _WEIGHTS)


def gguf_checkpoint(
    offered: Listed, path: str, repository: str, revision: str, facts: Facts, *, directory: str = "", commit: str = ""
) -> Checkpoint:
    """The checkpoint that one GGUF file is: known by its path below the repository, and by the hash of its files.

    Of a local one (``directory``) the header is read. Raises CheckpointError.
    """
    if not is_plain(path) or fault(path):
        raise CheckpointError(
            f"{offered.label} lists {printable(path)!r} for a GGUF file: it may only name files below its own folder. "
            "Do not use this repository before you know why",
            "no_safe_weights",
        )
    files = gguf_files(offered, path)
    parameters = None
    if directory:
        try:
            parameters = read_gguf(Path(directory, path)).parameters
        except ValueError as error:
            raise CheckpointError(f"{Path(directory, path)} {error}", "load_failed") from error
        files = hashed(Path(directory), files)
    label = f"{repository}/{path}"
    return Checkpoint(
        label,
        revision,
        _identity(files, commit),
        files,
        replace(facts, run=run_of(label, revision)),
        directory,
        parameters,
        gguf=path,
        hub_commit=commit,
    )


def gguf_lineage(known: Lineage, offered: Listed | None, repository: str, revision: str) -> Lineage:
    """What a GGUF file was made from: the other weights that a repository has ``offered``, else what its card names."""
    if offered and _has_weights(offered) and CONFIG in offered.root:
        return Lineage((repository,), "quantized", "" if revision in ("main", LOCAL_REVISION) else revision)
    return replace(known, relation=known.relation or "quantized") if known.single else known


def said_lineage(file: GgufFile) -> Lineage:
    """What the metadata of a file say that it was made from: its source, or the parents of that.

    A file's ``general.base_model`` is what the card of its source names: the parent of the model that was quantised.
    """
    told = file.metadata
    for key in ("general.source.huggingface.repository", "general.source.repo_url", "general.source.url"):
        if parents := parsed_parents([_repository(told.get(key))]):
            return Lineage(tuple(parents), "quantized")
    numbers = range(min(_whole(told.get("general.base_model.count")), _PARENTS))
    parents = parsed_parents(_repository(told.get(f"general.base_model.{number}.repo_url")) for number in numbers)
    return Lineage(tuple(parents), "merge" if len(parents) > 1 else "")


def _repository(url: object) -> str:
    """The repository that an address names, "" where it names none."""
    found = _ADDRESS.fullmatch(url) if isinstance(url, str) and len(url) < LONGEST else None
    return found[1] if found else ""


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _identity(files: Sequence[RemoteFile], commit: str) -> str:
    """The hash over contents; of files whose content nobody announced, over the commit that they belong to as well."""
    announced = all(file.content for file in files)
    return hash_of(files if announced else (*files, RemoteFile(commit, 0, None, None)))
