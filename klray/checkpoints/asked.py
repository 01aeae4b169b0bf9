"""Which revisions of a repository are asked for: by name, by pattern, every so many steps; names near a wrong one."""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from klray.checkpoints.checkpoint import Unavailable
from klray.words.revisions import Place, place_of

COMPARED = 2000  # names that are compared with one that is not there, 0.1 ms each


def by_step(revision: str) -> tuple[bool, str, int]:
    """What to sort revisions by: branches and their steps, then those without a step."""
    place = place_of(revision)
    return place.step is None, place.branch, place.step or 0


def strided(places: Iterable[Place], stride: int) -> set[tuple[str, int | None]]:
    """(branch, step) of every ``stride``-th step of each branch, and of its last one."""
    steps: dict[str, set[int]] = {}
    for place in places:
        if place.step is not None:
            steps.setdefault(place.branch, set()).add(place.step)
    ordered = {branch: sorted(each) for branch, each in steps.items()}
    return {(branch, step) for branch, each in ordered.items() for step in (*each[::stride], each[-1])}


def is_glob(name: str) -> bool:
    """Whether it is a pattern."""
    return any(character in name for character in "*?[")


def match(patterns: Sequence[str], names: list[str]) -> tuple[list[str], list[str]]:
    """(names that are asked for, patterns that match none)."""
    matched: dict[str, None] = {}
    unmatched = []
    for pattern in patterns:
        hits = [name for name in names if name == pattern or (is_glob(pattern) and fnmatchcase(name, pattern))]
        matched |= dict.fromkeys(hits)
        if not hits:
            unmatched.append(pattern)
    return list(matched), unmatched


def no_match(repository: str, pattern: str, names: list[str], kind: str) -> Unavailable:
    """What is said of a pattern that none of the ``names`` of such a ``kind`` matches: those that are near it."""
    near = difflib.get_close_matches(pattern, names[:COMPARED], n=3, cutoff=0.3) or sorted(names, key=by_step)[:3]
    such = f", such as {', '.join(sorted(near, key=by_step))}" if near else ""
    return Unavailable(
        repository,
        pattern,
        "revision_not_found",
        f"models.revisions={pattern!r} matches none of the {len(names)} {kind} of {repository}{such}: set "
        "models.revisions (in Python: revisions=) to a name or a pattern that does",
    )
