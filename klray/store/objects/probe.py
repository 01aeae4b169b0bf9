"""Probe: whether a place keeps the promises that a store rests on, found out before anything of the store is written.

Everything happens below ``probes/<random id>/`` and is removed again.
"""

import contextlib
import errno
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from klray.errors import KlrayError, StoreError
from klray.store.objects.base import Objects
from klray.store.objects.folder import FolderObjects
from klray.words.numbers import counted, rough_duration
from klray.words.secrets import without_secrets

PREFIX = "probes"  # what klray doctor and score write to try the place, gone when they are done
Verdict = Literal["ok", "warning", "refused", "skipped"]
Outcome = tuple[Verdict, str, str]  # of a check: verdict, what was found, what to do

AT_ONCE = 16
ROUNDS = 2  # of AT_ONCE creates each: a server that has a race does not lose every time
IN_TURN, TOGETHER = CONDITIONAL = ("store: create, one after another", f"store: create, {AT_ONCE} at once")
SKEW_WARNED_SECONDS = 60.0
SKEW_REFUSED_SECONDS = 900.0  # AWS refuses signatures that are older; ids of snapshots are times
BODY_BYTES = 1000
BARRIER_SECONDS = 30.0

SET_CLOCK = "set this machine's clock by NTP, or the server's if it is the one that is wrong"
ANOTHER_SERVER = "use another S3 server, or a newer version of this one"
WHERE_ERRORS = (StoreError, OSError, ValueError)  # ValueError: an endpoint or a bucket that S3 clients do not accept


@dataclass(frozen=True)
class Finding:
    """What one check found, and what to do about it ("" where nothing needs to be done)."""

    check: str
    verdict: Verdict
    found: str
    cure: str = ""


def probe(objects: Objects) -> Iterator[Finding]:
    """Check after check, each finding as soon as it is there; after a first write that fails, no more.

    Checks: write, read after write, overwrite, create one after another, 16 creates at once, listing, clock, latency,
    removal of what was written.
    """
    missing, folder = _missing_folders(objects), _new_folder()
    wrote = False
    try:
        body = _body()
        before = datetime.now(UTC)
        try:
            objects.put(f"{folder}/first", body)
        except WHERE_ERRORS as error:
            yield _failed("store: write", error)
            return
        after = datetime.now(UTC)
        wrote = True
        yield Finding("store: write", "ok", f"{objects.url} can be written to")
        checks: dict[str, Callable[[], Outcome]] = {
            "store: read after write": lambda: _read_after_write(objects, f"{folder}/first", body),
            "store: overwrite": lambda: _overwrite(objects, f"{folder}/again"),
            IN_TURN: lambda: create_in_turn(objects, folder),
            TOGETHER: lambda: create_at_once(objects, folder),
            "store: listing": lambda: _listing(objects, f"{folder}/list"),
            "store: clock": lambda: _clock(objects, folder, before, after),
            "store: latency": lambda: _latency(objects, f"{folder}/latency"),
        }
        for name, check in checks.items():
            try:
                yield Finding(name, *check())
            except WHERE_ERRORS as error:
                yield _failed(name, error)
    finally:
        # After a first write that failed there is nothing on S3, and asking again would take as long again.
        removal = _remove(objects, folder, missing) if wrote or isinstance(objects, FolderObjects) else None
    if removal:
        yield Finding("store: removal", *removal)


def check_conditional(objects: Objects) -> None:
    """Refuse a place where two jobs could overwrite each other's commits.

    Raises StoreError: conditional creation does not hold: what was found and what to do; or the place cannot be written
    to.
    """
    missing, folder = _missing_folders(objects), _new_folder()
    try:
        for check in (create_in_turn, create_at_once):
            verdict, found, cure = check(objects, folder)
            if verdict == "refused":
                raise StoreError(
                    f"store.url={objects.url}: this server does not create objects conditionally: {found}; {cure}"
                )
    finally:
        _remove(objects, folder, missing)


def store_time(objects: Objects) -> datetime:
    """What the clock of the place shows now (UTC): the time of an object that is written and removed.

    On a disk that is full it is the time of the last write, so that repair can make room there.

    Raises StoreError: the place does not list what it was given.
    """
    folder = _new_folder()
    try:
        objects.put(f"{folder}/clock", _body())
        written = objects.walk(folder)
        if not written:
            raise StoreError(f"store {objects.url}: what was written is not listed; {ANOTHER_SERVER}")
        return max(written.values())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return max(objects.walk("").values())
    finally:
        objects.delete_tree(folder)


@contextlib.contextmanager
def common(objects: Objects) -> Iterator[tuple[str, bytes]]:
    """Key and body of an object by which others find, for the length of the context, that their place is this one."""
    missing, folder = _missing_folders(objects), _new_folder()
    key, body = f"{folder}/common", _body()
    try:
        objects.put(key, body)
        yield key, body
    finally:
        _remove(objects, folder, missing)


def is_common(objects: Objects, key: str, body: bytes) -> bool:
    """Whether a place is the one where ``common`` put an object; beside it one is written, as a sweep will."""
    there = objects.get(key) == body
    if there:
        objects.put(f"{key.rpartition('/')[0]}/{uuid.uuid4().hex[:16]}", _body())
    return there


def create_in_turn(objects: Objects, folder: str) -> Outcome:
    """Two creates of one key, one after the other: the second must lose and change nothing."""
    key, first, second = f"{folder}/turn", _body(), _body()
    if not objects.conditional_put(key, first):
        return _unsafe("a create of a new key was told that the key is taken")
    won = objects.conditional_put(key, second)
    kept = objects.get(key) == first
    if won or not kept:
        told = "was told that it had won" if won else "was told that it had lost"
        return _unsafe(f"a second create of one key {told}{'' if kept else ', and replaced the first'}")
    return "ok", "the first stands, the second is told", ""


def create_at_once(objects: Objects, folder: str) -> Outcome:
    """Creates of one key by 16 threads that start together: one must win, and the object must hold its body."""
    for number in range(ROUNDS):
        key, bodies, barrier = f"{folder}/race{number}", [_body() for _ in range(AT_ONCE)], threading.Barrier(AT_ONCE)

        def create(body: bytes, key: str = key, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait(BARRIER_SECONDS)
            return objects.conditional_put(key, body)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            winners = [body for body, won in zip(bodies, pool.map(create, bodies), strict=True) if won]
        if len(winners) != 1:
            return _unsafe(f"{len(winners)} of {AT_ONCE} concurrent creates of one key were told that they had won")
        if objects.get(key) != winners[0]:
            return _unsafe(f"of {AT_ONCE} concurrent creates of one key one won, and another's body is there")
    return "ok", f"one winner each time, {ROUNDS} times", ""


def _unsafe(found: str) -> Outcome:
    return (
        "refused",
        f"{found}: two jobs could overwrite each other's commits",
        f"{ANOTHER_SERVER}, or set store.single_writer=true if exactly one job at a time ever writes to this store",
    )


def _read_after_write(objects: Objects, key: str, body: bytes) -> Outcome:
    found = objects.get(key)
    if found != body:
        held = "nothing" if found is None else f"{len(found):,} other bytes"
        return "refused", f"{len(body):,} bytes were written, {held} were read right after", ANOTHER_SERVER
    return "ok", f"the same {len(body):,} bytes", ""


def _overwrite(objects: Objects, key: str) -> Outcome:
    objects.put(key, _body())
    objects.get(key)  # what a cache on the way would hand out again
    body = _body()
    objects.put(key, body)
    if objects.get(key) != body:
        return "refused", "an object that was replaced is read as it was before", ANOTHER_SERVER
    return "ok", "seen at once", ""


def _listing(objects: Objects, folder: str) -> Outcome:
    names = ["a", "b", "c"]
    objects.names(folder)  # what a listing cache would hand out again
    for name in names:
        objects.put(f"{folder}/{name}", _body())
    listed, walked = objects.names(folder), sorted(objects.walk(folder))
    if listed != names or walked != [f"{folder}/{name}" for name in names]:
        found = f"3 objects were written, listings right after show {len(listed)} and {len(walked)}"
        return "refused", found, ANOTHER_SERVER
    return "ok", "shows what was written right before", ""


def _clock(objects: Objects, folder: str, before: datetime, after: datetime) -> Outcome:
    written = objects.walk(folder)[f"{folder}/first"]
    # The server's time has whole seconds: the object was written somewhere in the second after it.
    behind = (before - written).total_seconds() - 1
    ahead = (written - after).total_seconds()
    skew = max(behind, ahead, 0.0)
    if skew < 1:
        return "ok", "agrees with this machine's to about a second", ""
    found = f"the server's is {rough_duration(skew)} {'behind' if behind > ahead else 'ahead of'} this machine's"
    if skew > SKEW_REFUSED_SECONDS:
        return "refused", f"{found}: S3 refuses signatures over 15 min apart, and ids are times", SET_CLOCK
    return ("warning", found, SET_CLOCK) if skew > SKEW_WARNED_SECONDS else ("ok", found, "")


def _latency(objects: Objects, key: str) -> Outcome:
    start = time.perf_counter()
    objects.put(key, _body())
    written = time.perf_counter()
    objects.get(key)
    read = time.perf_counter()
    found = f"{1000 * (written - start):.0f} ms to write {BODY_BYTES:,} bytes, {1000 * (read - written):.0f} ms to read"
    return "ok", found, ""


def _remove(objects: Objects, folder: str, missing: Sequence[Path]) -> Outcome:
    """Never raises: what cannot be removed is a warning, because a writer's role may lack the right to."""
    cure = f"remove {objects.url}/{folder}"
    try:
        objects.delete_tree(folder)
        left = len(objects.walk(folder))
        for each in missing:
            if each.is_dir() and not any(each.iterdir()):
                each.rmdir()
    except WHERE_ERRORS as error:
        return "warning", f"what the probe wrote stays: {found_and_cure(error)[0]}", cure
    if left:
        return "warning", f"the server does not delete: of the probe stays {counted(left, 'object')}", cure
    return "ok", "what the probe wrote is gone", ""


def _new_folder() -> str:
    return f"{PREFIX}/{uuid.uuid4().hex[:16]}"


def _missing_folders(objects: Objects) -> list[Path]:
    """The folder of probes and those above it that are not there, the deepest first: the probe leaves none of them."""
    if not isinstance(objects, FolderObjects):
        return []
    path = objects.root / PREFIX
    return [each for each in (path, *path.parents) if not each.exists()]


def _failed(check: str, error: Exception) -> Finding:
    found, cure = found_and_cure(error)
    if "RequestTimeTooSkewed" in found:
        found += ": the clocks of the server and of this machine are over 15 min apart"
        cure = SET_CLOCK
    return Finding(check, "refused", found, cure)


def found_and_cure(error: Exception) -> tuple[str, str]:
    """(what was found, what to do) of an error; klray's own say both, with a semicolon or a colon between."""
    words = without_secrets(" ".join(str(error).split()))  # whole: a name and its value may be taken apart below
    if isinstance(error, KlrayError):
        found, _, cure = words.rpartition("; " if "; " in words else ": ")
        return (found, cure) if found else (cure, "")
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}", "check the place and its permissions"
    return f"{type(error).__name__}: {words}", "check store.url, the credentials and the endpoint"


def _body() -> bytes:
    return uuid.uuid4().hex.encode().ljust(BODY_BYTES, b".")
