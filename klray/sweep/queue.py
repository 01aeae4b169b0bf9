"""What a sweep still has to do, and in which order: the largest checkpoints first, so that no worker ends alone."""

import dataclasses
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import cached_property

from klray.checkpoints import Checkpoint
from klray.errors import StoreError
from klray.store import Identity
from klray.sweep.replies import Refusal


@dataclasses.dataclass(eq=False)
class Work:
    """One checkpoint to be scored; with a ``source``, the key of a committed column, its values are there already."""

    checkpoint: Checkpoint
    identity: Identity
    source: str = ""
    attempts: int = 0
    turn: int = 0  # the first claim of its checkpoint that is not known to be over
    excused: bool = False  # of one attempt, whose worker died once it was scored
    lost: int = 0  # nodes that were lost while it was worked on
    refused: dict[str, Refusal | StoreError] = dataclasses.field(
        default_factory=dict
    )  # for what may be the node's fault, by node

    @property
    def bytes(self) -> int:
        """Of its files, in proportion to which it takes time; 0 where nothing is scored."""
        return 0 if self.source else self._bytes

    @cached_property
    def _bytes(self) -> int:
        return self.checkpoint.bytes

    @property
    def size(self) -> int:
        """Works of one size, within a factor of the square root of 2, are as good as equal."""
        return (self.bytes**2).bit_length()


class Queue:
    """Works that wait. Of those whose checkpoints hold the same files one is scored; the others wait for its column.

    ``present`` are the keys of committed columns by the content of their checkpoints.
    """

    def __init__(self, works: Iterable[Work], present: Mapping[str, str]):
        self._waiting: dict[int, dict[str, deque[Work]]] = {}  # by size, by repository; no one is empty
        self._length = 0
        self.bytes = 0  # of what waits for its turn
        self._twins: dict[str, list[Work]] = {}  # by the key of the one that is scored
        leaders: dict[str, Work] = {}
        for work in works:
            content = work.checkpoint.content
            leader = leaders.setdefault(content, work) if content else work
            if content in present:
                work.source = present[content]
            if work is leader or work.source:
                self.try_again(work)
            else:
                self._twins.setdefault(leader.identity.key, []).append(work)
        self._shuffle()

    def __len__(self) -> int:
        return self._length

    @property
    def size(self) -> int:
        """Of the largest that waits; far below that of any if none does."""
        return max(self._waiting, default=-1000)

    def works(self) -> Iterator[Work]:
        """All that wait, for their turn or for the column of another."""
        for repositories in self._waiting.values():
            for works in repositories.values():
                yield from works
        for twins in self._twins.values():
            yield from twins

    def take(self, repository: str, taken: Set[str]) -> Work | None:
        """The next of the largest: of ``repository`` if there is any, so that its model is reused, else of one that is
        not ``taken``.
        """
        if not self._waiting:
            return None
        size = self.size
        repositories = self._waiting[size]
        if repository not in repositories:
            repository = next((each for each in repositories if each not in taken), next(iter(repositories)))
        work = repositories[repository].popleft()
        self._length -= 1
        self.bytes -= work.bytes
        if not repositories[repository]:
            del repositories[repository]
        if not repositories:
            del self._waiting[size]
        return work

    def put_back(self, works: Iterable[Work]) -> None:
        """Let works wait again that were taken and not begun: they are the next ones of their size."""
        for work in reversed(list(works)):
            self._of(work).appendleft(work)

    def try_again(self, work: Work) -> None:
        """Let a work wait again that was begun: it is the last one of its size."""
        self._of(work).append(work)

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

    def _shuffle(self) -> None:
        """Jobs that score the same checkpoints at the same time take them in different orders."""
        for size, repositories in self._waiting.items():
            for works in repositories.values():
                random.shuffle(works)
            names = list(repositories)
            random.shuffle(names)
            self._waiting[size] = {name: repositories[name] for name in names}

    def _of(self, work: Work) -> deque[Work]:
        """Where it is to wait, counted from now on."""
        self._length += 1
        self.bytes += work.bytes
        return self._waiting.setdefault(work.size, {}).setdefault(work.checkpoint.repository, deque())
