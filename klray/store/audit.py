"""Audit: what in a store is damaged, and what is left over from work that was cut short."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from klray.errors import KlrayError, StoreDamagedError, StoreError, StoreUnreachableError
from klray.store import layout
from klray.store.columns import Commit, committed, find_commits, of_other_texts, read_column
from klray.store.objects import Objects, is_temporary, probe
from klray.store.results import damaged_results, read_marker, result_names
from klray.store.seal import damaged, most_of
from klray.store.snapshots import damaged_objects, last_finished, read_manifest, snapshot_ids

COLUMNS_AT_ONCE = 32  # checked by one thread; each has five objects
THREADS = 4
JOB_LIFE = timedelta(days=7)  # of what jobs said of themselves, by the clock of this machine
CLAIM_LIFE = timedelta(days=1)  # by this machine's clock: what is younger may be a job's that is at work
PROBE_LIFE = timedelta(minutes=10)  # likewise: a younger one's job is looking at the place
AGAIN = "klray verify verify.repair=true takes it out, to be scored again"


@dataclasses.dataclass(frozen=True)
class Damage:
    """A commit whose column is not what was committed, or that cannot be read itself (``path`` is then empty).

    Or a snapshot or result whose objects are not what was written; ``key`` is then empty.
    """

    key: str
    path: str
    message: str


@dataclasses.dataclass(frozen=True)
class Leftover:
    """A folder or object that nothing visible names, and when it was last written to (UTC)."""

    path: str
    kind: str  # column, snapshot, result, probe, claim, job or temporary
    written: datetime


@dataclasses.dataclass(frozen=True)
class Audit:
    """What was found: the number of columns that hold what was committed, and what is wrong."""

    sound: int
    damages: tuple[Damage, ...]
    leftovers: tuple[Leftover, ...]


def audit(objects: Objects, n_texts: int, text_set: str, report: Callable[[int, int], None] | None = None) -> Audit:
    """Hash every object of every committed column and snapshot again, and list what nothing visible names.

    Columns must have values for ``n_texts`` texts, those of ``text_set``, their fingerprint.
    ``report`` is told how many of how many columns were checked, from the first 0 on.
    """
    listing = objects.walk("")  # before the commits: what is written from now on is not looked at
    keys = sorted(committed(objects))
    parts = [keys[start : start + COLUMNS_AT_ONCE] for start in range(0, len(keys), COLUMNS_AT_ONCE)]
    damages: list[Damage] = []
    named: set[str] = set()
    told = report or (lambda done, of: None)
    told(0, len(keys))
    with ThreadPoolExecutor(THREADS) as threads:
        for number, (commits, found) in enumerate(
            threads.map(lambda part: _check(objects, part, n_texts, text_set), parts), start=1
        ):
            named.update(commit.path for commit in commits)
            damages += found
            told(min(number * COLUMNS_AT_ONCE, len(keys)), len(keys))
    unreadable = {damage.key for damage in damages if not damage.path}
    n_damaged = len(damages)
    for snapshot in snapshot_ids(objects):
        damages += _check_snapshot(objects, snapshot)
    last, settled = last_finished(objects)
    if last is not None and not settled:
        words = f"{layout.LATEST} does not name the last snapshot, {last.id}; klray publish mends it"
        damages.append(Damage("", layout.LATEST, f"store {objects.url}: {words}"))
    again = "klray analyze writes another result"
    for path, what in damaged_results(objects, filter(layout.is_result_marker, listing)).items():
        words = what if what.startswith("store") else f"store {objects.url}: {path} {what}; {again}"
        damages.append(Damage("", path, words))
    left = leftovers(objects, named, listing, unreadable)
    return Audit(len(keys) - n_damaged, tuple(damages), tuple(left))


def repair(objects: Objects, found: Audit, grace: timedelta) -> list[str]:
    """Take damaged columns out, so that they are scored again, and remove leftovers that are older than ``grace``.

    Work that goes on now writes to folders that look like leftovers: ``grace`` must be longer than it may take. It
    counts by the store's own clock: that of this machine may be days ahead.
    Damaged snapshots stay (``remove_snapshots``): their ids may be cited. Returns what was removed.
    """
    removed = []
    for damage in found.damages:
        if damage.key and _stands(objects, damage):
            objects.delete_tree(layout.commit_path(damage.key))
            removed.append(layout.commit_path(damage.key))
    now = probe.store_time(objects) if found.leftovers else datetime.min.replace(tzinfo=UTC)
    keys = sorted(committed(objects))
    for leftover in found.leftovers:
        if now - leftover.written >= grace and not _is_named(objects, leftover, keys):
            objects.delete_tree(leftover.path)
            removed.append(leftover.path)
    return removed


def superseded(objects: Objects, found: Audit) -> list[str]:
    """Ids of damaged snapshots that are not the newest, which is sound: whoever does not cite them can do without."""
    names = (each.path.split("/")[1] for each in found.damages if each.path.startswith(f"{layout.SNAPSHOTS}/"))
    damaged_ids = {name.removesuffix(".json") for name in names} & set(snapshot_ids(objects))
    newest, settled = last_finished(objects)
    return sorted(damaged_ids) if settled and newest is not None and newest.id not in damaged_ids else []


def remove_snapshots(objects: Objects, found: Audit, asked: Sequence[str]) -> list[str]:
    """Remove ``superseded`` snapshots and what was made of them; returns what was removed.

    Newer snapshots hold all that they need themselves. Results are continued from the last of their name: KlrayError
    where no newer sound snapshot has one of that name, or what is asked for is not superseded.
    """
    can = superseded(objects, found)
    for each in asked:
        if each not in can:
            words = (
                f"such are {', '.join(can)}" if can else "there is none; klray publish makes a newest one that is sound"
            )
            raise KlrayError(
                f"verify.snapshots: {each} is no damaged snapshot before a newest one that is sound: {words}"
            )
        later = [
            name
            for other in snapshot_ids(objects)
            if other > each and other not in can
            for name in result_names(objects, other)
        ]
        if lost := sorted(set(result_names(objects, each)) - set(later)):
            raise KlrayError(
                f"verify.snapshots: no later snapshot has {', '.join(lost)}, a result of {each} that later ones would "
                "continue: make it of the newest snapshot first (klray analyze), then remove"
            )
    paths = [
        path
        for each in asked
        for path in (f"{layout.RESULTS}/{each}", layout.manifest_path(each), layout.snapshot_path(each))
    ]
    for path in paths:  # the manifest before its folder, which is a leftover without one
        objects.delete_tree(path)
    return paths


def _stands(objects: Objects, damage: Damage) -> bool:
    """Whether the commit is the one that was found damaged, and not one made anew after another repair took it out.

    Between this look and the deletion that can still happen: no S3 server at large deletes conditionally.
    """
    try:
        return [commit.path for commit in find_commits(objects, [damage.key])] == [damage.path]
    except StoreDamagedError:
        return not damage.path  # unreadable, as it was


def _is_named(objects: Objects, leftover: Leftover, keys: Sequence[str]) -> bool:
    """Whether something visible names what nothing named when it was found; ``keys`` are committed now."""
    if leftover.kind == "column":
        key8 = leftover.path.rsplit("/", 1)[-1][:8]
        try:
            commits = find_commits(objects, [key for key in keys if key.startswith(key8)])
            return any(commit.path == leftover.path for commit in commits)
        except StoreDamagedError:
            return True  # of a commit that cannot be read nobody knows the folder
    if leftover.kind == "snapshot":
        return objects.get(layout.manifest_path(leftover.path.split("/")[1])) is not None
    if leftover.kind == "result":
        return leftover.path in _result_paths(objects, [f"{leftover.path.rsplit('/', 1)[0]}.json"])
    return False


def _result_paths(objects: Objects, markers: Iterable[str]) -> set[str]:
    """Folders that markers name; of a marker that is damaged, the folder of all attempts at that analysis."""
    named = set()
    for path in markers:
        try:
            marker = read_marker(objects, path)
        except StoreDamagedError:
            named.add(path.removesuffix(".json"))
        else:
            named.update([marker.path] if marker else [])
    return named


def leftovers(
    objects: Objects, columns: Iterable[str], listing: Mapping[str, datetime], unreadable: Iterable[str] = ()
) -> list[Leftover]:
    """What is in ``listing`` that neither a commit (``columns``: their paths), a manifest nor a marker names.

    A claim is left over when its checkpoint is committed, and when it is old; a probe when it is old. Which folder is
    that of an ``unreadable`` commit (their keys) nobody knows: none of that key is left over.
    """
    done = {layout.commit_key(path) for path in listing}
    young = datetime.now(UTC) - CLAIM_LIFE
    results = _result_paths(objects, filter(layout.is_result_marker, listing))
    unknown = {key[:8] for key in unreadable}
    found = [
        *(
            Leftover(path, kind, written)
            for kind, prefix, depth, known in (
                ("column", "columns", 4, set(columns)),
                ("snapshot", layout.SNAPSHOTS, 2, set(map(layout.snapshot_path, snapshot_ids(objects)))),
                ("result", layout.RESULTS, 4, results),
            )
            for path, written in _newest(listing, prefix, depth).items()
            if path not in known and path.rsplit("/", 1)[0] not in known
        ),
        *(
            Leftover(path, "probe", written)
            for path, written in _newest(listing, probe.PREFIX, 2).items()
            if datetime.now(UTC) - written > PROBE_LIFE
        ),
        *(
            Leftover(path, "job", written)
            for path, written in listing.items()
            if layout.job_id(path) is not None and datetime.now(UTC) - written > JOB_LIFE
        ),
        *(
            Leftover(path, "claim", written)
            for path, written in listing.items()
            if path.startswith(f"{layout.CLAIMS}/") and not is_temporary(path)
            if written < young or ((of := layout.claim_of(path)) is not None and of[0] in done)
        ),
        *(
            Leftover(path, "temporary", written)
            for path, written in listing.items()
            if is_temporary(path) and not path.startswith("columns/")
        ),
    ]
    return [each for each in found if each.kind != "column" or each.path.rsplit("/", 1)[-1][:8] not in unknown]


def _newest(listing: Mapping[str, datetime], prefix: str, depth: int) -> dict[str, datetime]:
    """Folders of ``depth`` parts below ``prefix`` that hold objects, with the time of the last write to each."""
    newest: dict[str, datetime] = defaultdict(lambda: datetime.min.replace(tzinfo=UTC))
    for key, written in listing.items():
        parts = key.split("/")
        if parts[0] == prefix and len(parts) > depth:
            path = "/".join(parts[:depth])
            newest[path] = max(newest[path], written)
    return dict(newest)


def _check(objects: Objects, keys: Sequence[str], n_texts: int, text_set: str) -> tuple[list[Commit], list[Damage]]:
    """The commits of ``keys`` that can be read, and what is wrong with them or their columns."""
    commits: list[Commit] = []
    damages: list[Damage] = []
    for key in keys:
        try:
            commits += find_commits(objects, [key])
        except StoreDamagedError as error:
            damages.append(Damage(key, "", str(error)))
    paths = {f"{commit.path}/{name}": sha256 for commit in commits for name, sha256 in commit.objects.items()}
    sizes = {layout.values_path(commit.path): 4 * len(commit.layers) * n_texts for commit in commits}
    wrong = damaged(objects, paths, most_of(max(sizes.values(), default=0)), sizes)
    for commit in commits:
        found = [f"{name} {wrong[path]}" for name in commit.objects if (path := f"{commit.path}/{name}") in wrong]
        where = f"store {objects.url}: column {commit.path} of {commit.identity.repository}"
        if found:
            damages.append(Damage(commit.key, commit.path, f"{where}: {', '.join(found)}; score the checkpoint again"))
        elif other := of_other_texts(commit, text_set):
            damages.append(Damage(commit.key, commit.path, f"{where}: {other}; no snapshot takes it, and {AGAIN}"))
        elif commit.unfit:
            words = f"{where}: the commit's {commit.unfit}; snapshots hold a value in its place, and {AGAIN}"
            damages.append(Damage(commit.key, commit.path, words))
        elif not commit.objects:  # klray 0.1.0 before its first release
            try:
                read_column(objects, commit, n_texts)
            except StoreDamagedError as error:
                damages.append(Damage(commit.key, commit.path, str(error)))
    return commits, damages


def _check_snapshot(objects: Objects, snapshot: str) -> list[Damage]:
    """What is wrong with a snapshot."""
    try:
        manifest = read_manifest(objects, snapshot)
    except StoreUnreachableError:
        raise
    except (StoreError, TypeError) as error:
        return [Damage("", layout.manifest_path(snapshot), str(error))]
    cure = "klray publish makes another snapshot from the columns"
    return [
        Damage("", path, f"store {objects.url}: {path} {what}; {cure}")
        for path, what in damaged_objects(objects, manifest).items()
    ]
