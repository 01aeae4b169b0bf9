"""What is asked for: repositories of the hub or folders, and which of their revisions and files."""

from collections.abc import Sequence
from dataclasses import dataclass

from klray.errors import KlrayError, refuse_unfit


@dataclass(frozen=True)
class RepositorySpec:
    """A repository of the hub, or a local folder, and which of its revisions.

    ``revisions`` is a branch, a tag, a commit sha, a pattern such as ``step*`` or ``step[0-9]*000`` (shell rules,
    matched against branches and tags; for a folder against its subfolders), or a list of these.
    ``files`` are names, paths or patterns of GGUF files, each of which is a checkpoint; without them they are
    checkpoints where there are no other weights. ``size``, ``seed`` and ``base_model`` (``org/name`` or
    ``org/name@revision``) are facts to record; without a ``base_model`` the hub's parents are taken. ``directory`` is a
    folder that stands for the repository: it is known by the repository's name, and has one revision.
    """

    repository: str
    revisions: str | Sequence[str] = "main"
    size: str = ""
    seed: int | None = None
    base_model: str = ""
    files: str | Sequence[str] = ()
    directory: str = ""

    def __post_init__(self) -> None:
        refuse_unfit("models", {**vars(self), "revisions": self.patterns, "files": self.file_patterns})

    @property
    def patterns(self) -> tuple[str, ...]:
        """``revisions`` as a tuple."""
        return _several(self.revisions)

    @property
    def file_patterns(self) -> tuple[str, ...]:
        """``files`` as a tuple."""
        return _several(self.files)


def _several(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


@dataclass(frozen=True)
class Selection:
    """Repositories of one family.

    Of the revisions of each run that name a step, every ``stride``-th in the order of steps is kept, and the last one
    always. ``limit`` keeps the first so many checkpoints of the whole selection.
    """

    family: str
    repositories: tuple[RepositorySpec, ...]
    stride: int = 1
    limit: int | None = None

    def __post_init__(self) -> None:
        refuse_unfit("models", {"family": self.family})
        ends = {"stride": "; 1 keeps every step", "limit": ", or leave it out to take everything"}
        for name, end in ends.items():
            value = getattr(self, name)
            if value is not None and value < 1:
                asked = f"models.{name}={value} was asked for"
                raise KlrayError(f"{asked}: set models.{name} (in Python: {name}=) to 1 or more{end}")
