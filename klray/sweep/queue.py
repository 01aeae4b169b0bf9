"""What a sweep still has to do, and in which order."""

import dataclasses
import random
from collections import deque
from collections.abc import Iterable, Mapping, Set

from klray.checkpoints import Checkpoint
from klray.store import Identity


@dataclasses.dataclass(eq=False)
class Work:
    """One checkpoint to be scored; with a ``source``, the key of a committed column, its values are there already."""

    checkpoint: Checkpoint
    identity: Identity
    source: str = ""
    attempts: int = 0
    excused: bool = False  # of one attempt, whose worker died once it was scored


class Queue:
    """Works that wait. Of those whose checkpoints hold the same files one is scored; the others wait for its column.

    ``present`` are the keys of committed columns by the content of their checkpoints.
    """

    def __init__(self, works: Iterable[Work], present: Mapping[str, str]):
        self._waiting: deque[Work] = deque()
        self._twins: dict[str, list[Work]] = {}  # by the key of the one that is scored
        leaders: dict[str, Work] = {}
        for work in works:
            content = work.checkpoint.content
            leader = leaders.setdefault(content, work) if content else work
            if content in present:
                work.source = present[content]
            if work is leader or work.source:
                self._waiting.append(work)
            else:
                self._twins.setdefault(leader.identity.key, []).append(work)
        self.go_elsewhere()

    def __len__(self) -> int:
        return len(self._waiting)

    def works(self) -> list[Work]:
        """All that wait, for their turn or for the column of another."""
        return [*self._waiting, *(each for twins in self._twins.values() for each in twins)]

    def take(self, repository: str, taken: Set[str]) -> Work | None:
        """The next work: of ``repository`` if there is any, so that its model is reused; then of one not ``taken``."""
        if not self._waiting:
            return None
        same = (each for each in self._waiting if each.checkpoint.repository == repository)
        other = (each for each in self._waiting if each.checkpoint.repository not in taken)
        work = next(same, None) or next(other, None) or self._waiting[0]
        self._waiting.remove(work)
        return work

    def put_back(self, works: Iterable[Work]) -> None:
        """Let works wait again that were taken and not begun: they are the next ones."""
        self._waiting.extendleft(reversed(list(works)))

    def try_again(self, work: Work) -> None:
        """Let a work wait again that was begun: it is the last one."""
        self._waiting.append(work)

    def settle(self, work: Work, committed: bool) -> None:
        """Take note of a work's end: those that waited for its column take it over, or one of them is scored."""
        twins = self._twins.pop(work.identity.key, [])
        if committed:
            for each in twins:
                each.source = work.identity.key
            self.put_back(twins)
        elif twins:
            self._twins[twins[0].identity.key] = twins[1:]
            self.put_back(twins[:1])

    def go_elsewhere(self) -> None:
        """Go on at another place of the list.

        Jobs that score the same checkpoints at the same time begin at different places, and when they meet, whoever
        works here will be at the next place, too.
        """
        if self._waiting:
            self._waiting.rotate(-random.randrange(len(self._waiting)))  # noqa: S311 - not cryptography
