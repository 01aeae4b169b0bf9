"""Audit: what in a store is damaged, and what is left over from work that was cut short."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from datetime import UTC, datetime, timedelta

from klray.errors import StoreError
from klray.store import layout
from klray.store.columns import Commit, committed_keys, read_column, read_commits
from klray.store.objects import Objects


@dataclasses.dataclass(frozen=True)
class Damage:
    """A commit whose column is not what was committed, or that cannot be read itself (``path`` is then empty)."""

    key: str
    path: str
    message: str


@dataclasses.dataclass(frozen=True)
class Leftover:
    """A folder or object that nothing visible names, and when it was last written to (UTC)."""

    path: str
    kind: str  # column, snapshot or result
    written: datetime


@dataclasses.dataclass(frozen=True)
class Audit:
    """What was found: the number of columns that hold what was committed, and what is wrong."""

    sound: int
    damages: tuple[Damage, ...]
    leftovers: tuple[Leftover, ...]


def audit(objects: Objects) -> Audit:
    """Hash every committed column again and list what no commit, manifest or marker names."""
    damages: list[Damage] = []
    commits: list[Commit] = []
    keys = sorted(committed_keys(objects))
    for key in keys:
        commit: Commit | None = None
        try:
            (commit,) = read_commits(objects, [key])
            read_column(objects, commit)
        except StoreError as error:
            damages.append(Damage(key, commit.path if commit else "", str(error)))
        if commit:
            commits.append(commit)
    named = {commit.path for commit in commits}
    unreadable = {damage.key[:8] for damage in damages if not damage.path}
    leftovers = [
        *(
            Leftover(path, "column", written)
            for path, written in _newest(objects, "columns", depth=4).items()
            if path not in named and path.rsplit("/", 1)[-1][:8] not in unreadable
        ),
        *_unfinished_snapshots(objects),
        *_former_results(objects),
    ]
    return Audit(len(keys) - len(damages), tuple(damages), tuple(leftovers))


def repair(objects: Objects, found: Audit, grace: timedelta) -> list[str]:
    """Take damaged columns out, so that they are scored again, and remove leftovers that are older than ``grace``.

    Work that goes on now writes to folders that look like leftovers: ``grace`` must be longer than it may take.
    Returns what was removed.
    """
    removed = []
    for damage in found.damages:
        objects.delete_tree(layout.commit_path(damage.key))
        removed.append(layout.commit_path(damage.key))
    now = datetime.now(UTC)
    for leftover in found.leftovers:
        if now - leftover.written >= grace:
            objects.delete_tree(leftover.path)
            removed.append(leftover.path)
    return removed


def _newest(objects: Objects, prefix: str, depth: int) -> dict[str, datetime]:
    """Folders of ``depth`` parts below ``prefix`` that hold objects, with the time of the last write to each."""
    newest: dict[str, datetime] = defaultdict(lambda: datetime.min.replace(tzinfo=UTC))
    for key, written in objects.walk(prefix).items():
        parts = key.split("/")
        if len(parts) > depth:
            path = "/".join(parts[:depth])
            newest[path] = max(newest[path], written)
    return dict(newest)


def _unfinished_snapshots(objects: Objects) -> list[Leftover]:
    finished = {name.removesuffix(".json") for name in objects.names(layout.SNAPSHOTS) if name.endswith(".json")}
    return [
        Leftover(path, "snapshot", written)
        for path, written in _newest(objects, layout.SNAPSHOTS, depth=2).items()
        if path.rsplit("/", 1)[-1] not in finished
    ]


def _former_results(objects: Objects) -> list[Leftover]:
    named = {
        str(objects.get_json(layout.result_marker_path(snapshot, name.removesuffix(".json")))["path"])
        for snapshot in objects.names(layout.RESULTS)
        for name in objects.names(f"{layout.RESULTS}/{snapshot}")
        if name.endswith(".json")
    }
    return [
        Leftover(path, "result", written)
        for path, written in _newest(objects, layout.RESULTS, depth=4).items()
        if path not in named
    ]
