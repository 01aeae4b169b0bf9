"""Weights that a checkpoint has in common with revisions that were not asked for: what is known without a request more.

Half-swapped checkpoints were published, with the first file of the final model: of those that are asked for none may
have that file, too. Of ``main`` a hub is asked anyway; of other revisions what it said before may be kept.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from klray.checkpoints.checkpoint import RemoteFile, short_hash
from klray.checkpoints.hub import Listing
from klray.checkpoints.kept import Listings
from klray.words.outside import fit
from klray.words.revisions import place_of, step_of

MAIN = "main"
_TOLD = 4  # revisions of a checkpoint


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """The revisions of a repository beside those that are ``asked`` for."""

    listings: Listings
    main: Listing
    commits: Mapping[str, str]  # of its branches and tags
    asked: frozenset[str]

    def sharing(self, revision: str, files: Iterable[RemoteFile]) -> tuple[str, ...]:
        """Which of them have weights of a step's ``files``, each with its hashes in the place of those: ``main``, if it
        has some and not all, and other steps of its branch. Of a branch's last step ``main`` may have been made.
        """
        place = place_of(revision)
        own = {file.path: short_hash(file) for file in files if file.is_weight}
        if place.step is None or not all(own.values()):
            return ()
        common = Counter(other for file in own.items() for other in self._holders.get(file, ()))

        def counts(other: str) -> bool:
            if other == MAIN:
                return common[MAIN] < len(own) and place.step != self._last.get(place.branch)
            at = place_of(other)
            return at.branch == place.branch and at.step != place.step

        found = sorted(filter(counts, common), key=lambda other: (other != MAIN, -(step_of(other) or 0)))
        return tuple(" ".join([other, *filter(None, map(self._known[other].get, own))]) for other in found[:_TOLD])

    @cached_property
    def _known(self) -> dict[str, dict[str, str]]:
        """Hashes of weights by path, of each revision of which the files are known."""
        listed = {MAIN: self.main}
        for name, commit in self.commits.items():
            sound = name == fit(name) and len(name.split()) == 1
            kept = self.listings.kept(self.main.repository, commit) if sound and name not in self.asked else None
            if kept is not None and step_of(name) is not None:
                listed[name] = kept
        return {
            name: {file.path: short_hash(file) for file in each.files if file.is_weight}
            for name, each in listed.items()
        }

    @cached_property
    def _holders(self) -> dict[tuple[str, str], list[str]]:
        """Revisions by path and hash."""
        found = defaultdict(list)
        for name, files in self._known.items():
            for file in files.items():
                found[file].append(name)
        return dict(found)

    @cached_property
    def _last(self) -> dict[str, int]:
        """The last step of each branch."""
        last: dict[str, int] = {}
        for place in map(place_of, self.commits):
            if place.step is not None:
                last[place.branch] = max(place.step, last.get(place.branch, 0))
        return last
