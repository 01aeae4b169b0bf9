"""Fetching ahead: the checkpoints that are wanted next come in while the present one is worked on."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from klray.checkpoints.cache import Cache
from klray.checkpoints.checkpoint import Checkpoint
from klray.checkpoints.hub import Hub


class Fetcher:
    """Fetches into ``cache``, one checkpoint after another in the order in which they are wanted, each several files at
    once: the first is there as soon as the hub's rate allows. How many are ahead is bounded by the cache's bytes.
    """

    def __init__(self, hub: Hub, cache: Cache):
        self.hub = hub
        self.cache = cache
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fetch")
        self._ahead: dict[Checkpoint, Future[Path]] = {}  # in the order in which they are fetched

    def take(self, checkpoint: Checkpoint, upcoming: Sequence[Checkpoint] = ()) -> Path:
        """Folder of ``checkpoint``, in use until the cache's ``evict``; meanwhile and after it, fetch ``upcoming``.

        What an earlier call named, and this one does not, is given up. Raises as ``Cache.fetch``.
        """
        wanted = (checkpoint, *upcoming)
        # What is fetched waits for room until what was fetched before it is worked on: the order must be the same.
        in_order = tuple(self._ahead)[:1] == (checkpoint,)
        for each in [each for each in self._ahead if each not in wanted or not in_order]:
            self._give_up(each)
        for each in wanted:
            if each not in self._ahead:
                self._ahead[each] = self._pool.submit(self.cache.fetch, self.hub, each)
        return self._ahead.pop(checkpoint).result()

    def _give_up(self, checkpoint: Checkpoint) -> None:
        def evict(done: Future[Path]) -> None:
            if done.exception() is None:
                self.cache.evict(checkpoint)

        future = self._ahead.pop(checkpoint)
        if not future.cancel():
            future.add_done_callback(evict)
