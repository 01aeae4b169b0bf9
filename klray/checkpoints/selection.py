"""Which checkpoints to score: repositories and revision patterns, resolved once to commits and file lists."""

import difflib
import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from klray.checkpoints.asked import by_step, is_glob, match, no_match, strided
from klray.checkpoints.checkpoint import Checkpoint, Facts, RemoteFile, Unavailable
from klray.checkpoints.download import small_file
from klray.checkpoints.elsewhere import Elsewhere
from klray.checkpoints.files import Listed, loadable_files
from klray.checkpoints.gguf import SUFFIX, is_gguf
from klray.checkpoints.gguf_choice import chosen_gguf, gguf_checkpoint, gguf_lineage
from klray.checkpoints.hub import (
    COMMIT,
    Hub,
    Listing,
    SilentHubError,
    check_access,
    current_name,
    is_there,
    listing,
    references,
    repositories_of,
)
from klray.checkpoints.kept import Listings
from klray.checkpoints.local_folder import (
    LOCAL_REVISION,
    folder_lineages,
    folder_revisions,
    local_folder,
    offered_by,
    read_folder,
)
from klray.checkpoints.parents import Lineage, parsed_parents
from klray.checkpoints.spec import RepositorySpec, Selection
from klray.errors import CheckpointError
from klray.words.numbers import counted
from klray.words.outside import fault, fit, printable
from klray.words.revisions import place_of, run_of, step_of

log = logging.getLogger("klray")

REQUESTS_AT_ONCE = 8
NEIGHBOURS = 3  # names in a hint
KEPT_BYTES = 1 << 18  # of an index: that of Pythia 12B has 56,000
TOLD_FROM = 100  # repositories or checkpoints, of which it is told how many are resolved

T = TypeVar("T")
S = TypeVar("S")
Report = Callable[[str, int, int], None]  # what is counted, how many of them are done, and of how many


@dataclass(frozen=True)
class _Wanted:
    spec: RepositorySpec
    repository: str
    revision: str
    commit: str  # "" for a folder, whose commit is the hash of its content
    lineage: Lineage
    known: Listing | None = None
    directory: Path | None = None
    parameters: int | None = None  # of main: the other revisions of a repository have as many, unless they say so
    others: Elsewhere | None = None


N = TypeVar("N", _Wanted, Checkpoint)
_Expansion = list[_Wanted | Unavailable]
_Indexes = dict[str, tuple[str, bytes]]


def resolve(
    hub: Hub, selection: Selection, kept: Path | None = None, report: Report | None = None
) -> tuple[list[Checkpoint], list[Unavailable]]:
    """Resolve a selection to checkpoints, in the order of repositories and steps, and to what is not available and why.

    A repository is known under the name that the hub answers with, whatever older name it was asked by.
    Two revisions of a repository with the same commit are one checkpoint, named by the one of the highest step.
    No weights are downloaded; a repository costs one request when only ``main`` is asked for, else two and one for each
    further commit, 8 at a time. A parent that is not among them costs one request for a file, for it may have another
    name now. Of weights in shards the index is read, once for checkpoints that have the same one.
    Content of local folders is hashed.

    In the folder ``kept`` lies what was answered about commits before: of a repository that is known there only
    branches and tags are asked for. ``report`` is told how far it is, where that takes a while.

    Raises SilentHubError: the hub answers nothing, so that what it holds of the rest cannot be known either.
    """
    indexes: _Indexes = {}
    listings = Listings(hub, kept)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:

        def each_of(what: str, work: Callable[[S], T], items: Sequence[S]) -> list[T]:
            done = []
            for number, found in enumerate(pool.map(work, items), start=1):
                done.append(found)
                if report is not None and len(items) >= TOLD_FROM:
                    report(what, number, len(items))
            return done

        expand = partial(_expand, hub, listings, selection.stride)
        expansions = each_of("repositories", expand, selection.repositories)
        found = [item for expansion in expansions for item in expansion]
        unavailable = [item for item in found if isinstance(item, Unavailable)]
        wanted = _distinct(
            (item for item in found if isinstance(item, _Wanted)),
            lambda item: (item.repository, item.commit or item.directory),
            lambda item: step_of(item.revision),
        )[: selection.limit]
        wanted = _under_current_names(hub, pool, wanted)
        complete = partial(_complete, hub, listings, selection.family, indexes)
        several = each_of("checkpoints", complete, wanted)
        completed = [item for found in several for item in found][: selection.limit]
    unavailable += [item for item in completed if isinstance(item, Unavailable)]
    checkpoints = _distinct(
        (item for item in completed if isinstance(item, Checkpoint)),
        lambda item: (item.repository, item.commit),
        lambda item: item.facts.step,
    )
    return checkpoints, unavailable


def _distinct(items: Iterable[N], key: Callable[[N], Hashable], step: Callable[[N], int | None]) -> list[N]:
    """Keep one item of each key, at the place of the one kept: that of the highest step, or else the first.

    Two steps that are one commit are told: a branch that nobody filled has the commit that it was made from.
    """
    kept: dict[Hashable, N] = {}
    for item in items:
        earlier = kept.setdefault(key(item), item)
        least, last = step(earlier), step(item)
        if last is None or least == last:
            continue
        if least is not None:
            first, stands = sorted((earlier, item), key=lambda each: step(each) or 0)
            words = "%s: %s and %s are one commit, which counts as %s alone"
            log.warning(
                words, printable(item.repository), *(printable(each.revision) for each in (first, stands, stands))
            )
        if least is None or last > least:
            del kept[key(item)]
            kept[key(item)] = item
    return list(kept.values())


def _expand(hub: Hub, listings: Listings, stride: int, spec: RepositorySpec) -> _Expansion:
    folder = local_folder(spec.repository)
    if folder and is_gguf(folder) and folder.is_file():
        folder, spec = folder.parent, replace(spec, files=folder.name)
    no_folder = (
        "" if folder or spec.repository.count("/") == 1 else f" (nor is there a folder {spec.repository!r} here)"
    )
    try:
        if spec.directory:
            found: _Expansion = [_named(spec)]
        else:
            found = _expand_folder(folder, spec) if folder else _expand_repository(hub, listings, spec)
    except CheckpointError as error:
        if isinstance(error, SilentHubError) and not is_there(hub):
            raise SilentHubError(error.message + no_folder, error.reason) from error
        message = error.message
        if error.reason == "repository_not_found":
            message += no_folder + ("" if folder else _neighbours(hub, spec.repository))
        return [Unavailable(spec.repository, ", ".join(spec.patterns), error.reason, message)]
    wanted = [item for item in found if isinstance(item, _Wanted)]
    kept = strided({place_of(item.revision) for item in wanted}, stride)
    wanted = [item for item in wanted if (at := place_of(item.revision)).step is None or (at.branch, at.step) in kept]
    wanted.sort(key=lambda item: by_step(item.revision))
    return [*wanted, *(item for item in found if isinstance(item, Unavailable))]


def _neighbours(hub: Hub, repository: str) -> str:
    """What the organisation has instead of a repository that is not there."""
    organisation, slash, name = repository.partition("/")
    if not slash or "/" in name:
        return ""
    there = sorted(each.partition("/")[2] for each in repositories_of(hub, organisation))
    near = difflib.get_close_matches(name, there, n=NEIGHBOURS) or there[:NEIGHBOURS]
    such = ", ".join(f"{organisation}/{each}" for each in near)
    return f"; {organisation} has {counted(len(there), 'model')} there, such as {such}" if near else ""


def _named(spec: RepositorySpec) -> _Wanted:
    """What a folder holds that stands for a repository."""
    folder = Path(spec.directory)
    if not folder.is_dir():
        raise CheckpointError(f"folder {folder} of {spec.repository} does not exist", "repository_not_found")
    return _Wanted(spec, spec.repository, spec.patterns[0], "", _lineage(spec, Lineage()), directory=folder)


def _expand_folder(folder: Path, spec: RepositorySpec) -> _Expansion:
    if not folder.is_dir():
        raise CheckpointError(f"folder {folder} does not exist: check the path", "repository_not_found")
    if why := fault(str(folder)):
        raise CheckpointError(f"folder {folder}: its name {why}: rename it", "repository_not_found")
    models = folder_revisions(folder)
    if not models:
        raise CheckpointError(
            f"folder {folder} holds no config.json and no GGUF file, and no folder in it does, so there is no model to "
            "load: give a "
            "folder that transformers saved a model to, or one with a folder of that kind for each revision (if "
            f"{spec.repository!r} is meant as the name of a repository on the hub, run in another folder: here it is "
            "this one)",
            "repository_not_found",
        )
    patterns = [LOCAL_REVISION if pattern == "main" else pattern for pattern in spec.patterns]
    names, unmatched = match(patterns, list(models))
    unavailable = [
        no_match(str(folder), each, list(models), "models (folders with a config.json or GGUF files)")
        for each in unmatched
    ]
    want = partial(_Wanted, spec, str(folder), commit="")
    lineages = folder_lineages({name: models[name] for name in names}, folder)
    return [
        *(want(name, lineage=_lineage(spec, known), directory=models[name]) for name, known in lineages.items()),
        *unavailable,
    ]


def _expand_repository(hub: Hub, listings: Listings, spec: RepositorySpec) -> _Expansion:
    commits: dict[str, str] | None = None
    main = None
    if spec.patterns != ("main",) and listings.any(spec.repository):
        current, commits = references(hub, spec.repository)
        main = listings.kept(spec.repository, commits.get("main", "")) if current else None
    main = main or listings.main(spec.repository)
    if main.gated:
        check_access(hub, spec.repository)
    name = main.repository
    want = partial(_Wanted, spec, name, lineage=_lineage(spec, main.lineage), parameters=main.parameters)
    if spec.patterns == ("main",):
        return [want("main", main.commit, known=main)]
    commits = references(hub, name)[1] if commits is None else commits
    names, unmatched = match(spec.patterns, list(commits))
    want = partial(want, others=Elsewhere(listings, main, dict(commits), frozenset(names)))
    commits |= {name: name for name in unmatched if COMMIT.fullmatch(name)}
    found: _Expansion = []
    for revision in [*names, *unmatched]:
        if revision in commits:
            found.append(want(revision, commits[revision], known=main if commits[revision] == main.commit else None))
        elif known := None if is_glob(revision) else _unlisted(hub, name, revision):
            found.append(want(revision, known.commit, known=known))
        else:
            found.append(no_match(name, revision, list(commits), "branches and tags"))
    return found


def _under_current_names(hub: Hub, pool: ThreadPoolExecutor, wanted: Sequence[_Wanted]) -> list[_Wanted]:
    """The same, with single parents under the names that the hub has for them now: cards go on naming old ones."""
    current = {item.spec.repository: item.repository for item in wanted}
    named = {item.lineage.single for item in wanted if item.directory is None} - {"", *current, *current.values()}
    current |= zip(sorted(named), pool.map(partial(current_name, hub), sorted(named)), strict=True)

    def renamed(item: _Wanted) -> _Wanted:
        single = current.get(item.lineage.single, item.lineage.single)
        if item.lineage.single in ("", single):
            return item
        own = single == item.repository
        return replace(item, lineage=Lineage() if own else replace(item.lineage, parents=(single,)))

    return [renamed(item) for item in wanted]


def _lineage(spec: RepositorySpec, known: Lineage) -> Lineage:
    """The parent that the selection names, else the hub's; how the child was made stays if both name the same one."""
    if not spec.base_model:
        return known
    ((parent, revision),) = parsed_parents([spec.base_model]).items() or (("", ""),)
    return Lineage((parent,) if parent else (), known.relation if known.single == parent else "", revision)


def _unlisted(hub: Hub, repository: str, revision: str) -> Listing | None:
    """Look up a revision that is neither branch nor tag, such as ``refs/pr/1``."""
    try:
        return listing(hub, repository, revision)
    except CheckpointError as error:
        if error.reason == "revision_not_found":
            return None
        raise


def _offered(hub: Hub, repository: str, known: Listing, label: str, indexes: _Indexes) -> Listed:
    """What a commit offers; of each repository the last index that was read is kept in ``indexes``."""
    by_path = {file.path: file for file in known.files}

    def read(file: RemoteFile) -> bytes:
        content, body = indexes.get(repository, ("", b""))
        if not content or content != file.content:
            body = small_file(hub, repository, known.commit, file)
            if len(body) <= KEPT_BYTES:
                indexes[repository] = file.content, body
        return body

    paths = [path for path in by_path if "/" not in path]
    return Listed(label, paths, by_path.get, read, [path for path in by_path if path.endswith(SUFFIX)])


def _facts(family: str, wanted: _Wanted, lineage: Lineage) -> Facts:
    revision = fit(wanted.revision)
    place = place_of(revision)
    return Facts(
        family=family,
        run=run_of(wanted.repository, revision),
        step=place.step,
        size=wanted.spec.size,
        seed=wanted.spec.seed,
        base_model=lineage.single,
        base_revision=lineage.revision,
        parents=", ".join(lineage.parents),
        relation=lineage.relation,
        card=lineage.unread,
        trained_tokens=place.tokens,
    )


def _complete(
    hub: Hub, listings: Listings, family: str, indexes: _Indexes, wanted: _Wanted
) -> list[Checkpoint | Unavailable]:
    """The checkpoint at a commit or in a folder, or several: each GGUF file is one."""
    spec, label = wanted.spec, f"{wanted.repository}@{wanted.revision}"
    revision = fit(wanted.revision)  # of anybody; what is scored is the commit
    facts = _facts(family, wanted, wanted.lineage)
    make = partial(Checkpoint, wanted.repository, revision, facts=facts)
    unavailable = partial(Unavailable, wanted.repository, revision)
    folder = wanted.directory
    try:
        known = None
        if folder is not None:
            offered = offered_by(folder)
        else:
            known = wanted.known or listings.of(wanted.repository, wanted.commit)
            offered = _offered(hub, wanted.repository, known, label, indexes)
        if chosen := chosen_gguf(offered, spec.file_patterns):
            return [_of_gguf(family, wanted, offered, known, path) for path in chosen]
        if folder is not None:
            return [make(*read_folder(folder), directory=str(folder))]
        assert known is not None
        files = loadable_files(offered)
        elsewhere = wanted.others.sharing(wanted.revision, files) if wanted.others else ()
        return [make(known.commit, files, parameters=known.parameters or wanted.parameters, elsewhere=elsewhere)]
    except CheckpointError as error:
        if isinstance(error, SilentHubError) and not is_there(hub):
            raise
        return [unavailable(error.reason, error.message)]
    except OSError as error:
        return [unavailable("load_failed", f"{label} cannot be read ({error}): check the folder's permissions")]


def _of_gguf(
    family: str, wanted: _Wanted, offered: Listed, known: Listing | None, path: str
) -> Checkpoint | Unavailable:
    named = bool(wanted.spec.base_model)
    lineage = gguf_lineage(wanted.lineage, None if named else offered, wanted.repository, wanted.revision)
    facts, revision = _facts(family, wanted, lineage), fit(wanted.revision)
    try:
        found = gguf_checkpoint(
            offered,
            path,
            wanted.repository,
            revision,
            facts,
            directory=str(wanted.directory or ""),
            commit=known.commit if known else "",
        )
    except CheckpointError as error:
        return Unavailable(f"{wanted.repository}/{printable(path)}", revision, error.reason, error.message)
    return replace(found, parameters=found.parameters or (known.parameters if known else None))
