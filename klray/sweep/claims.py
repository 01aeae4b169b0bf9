"""What a worker tells other jobs before it scores a checkpoint, and what it hears from them."""

import dataclasses
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from klray.errors import StoreError
from klray.store import Store
from klray.store.claims import Claim

log = logging.getLogger("klray")

AT_ONCE = 4


@dataclasses.dataclass(frozen=True)
class Held:
    """Another job says that it is scoring the checkpoint of ``key``."""

    key: str
    job: str
    host: str
    warnings: tuple[str, ...] = ()


class Claims:
    """The claims that one worker of a job makes; those of other workers of the job count as its own.

    Where they cannot be written, that is told once, and checkpoints are scored without.
    """

    def __init__(self, store: Store, job: str):
        self._store, self._job = store, job
        self._turns: dict[str, int] = {}  # of the claims that stand, by key
        self._without = self._unremoved = False

    def take(self, key: str, turn: int = 0) -> Held | bool:
        """Claim a checkpoint: whether it is to be scored, False if its column is there by now.

        ``turn`` is the first one that is not known to be over. Raises StoreError: the store cannot be read.
        """
        if key in self._turns:
            return True
        if not self._without:
            try:
                found = self._store.claim(key, self._job, turn)
            except (StoreError, OSError) as error:
                self._without = True
                log.warning("no claims can be written, and other jobs may score the same checkpoints: %s", error)
            else:
                if isinstance(found, Claim):
                    return Held(key, found.job, found.host)
                if found is None:
                    return False
                self._turns[key] = found
                return True
        return not self._store.is_committed(key)

    def take_each(self, keys: Sequence[str]) -> list[bool]:
        """``take`` of several: which of them are to be scored."""
        if len(keys) < 2:
            return [self.take(key) is True for key in keys]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return [found is True for found in pool.map(self.take, keys)]

    def drop(self, key: str) -> None:
        """Take a claim back: its checkpoint is committed, or has failed here."""
        turn = self._turns.pop(key, None)
        if turn is None:
            return
        try:
            self._store.release(key, turn)
        except (StoreError, OSError) as error:
            if not self._unremoved:
                self._unremoved = True
                log.warning("claims cannot be removed, klray verify verify.repair=true does: %s", error)


def withdraw(store: Store, job: str) -> None:
    """Take back what the workers of a job had claimed and were ended before they could."""
    try:
        store.withdraw_claims(job)
    except (StoreError, OSError) as error:
        log.debug("claims stay in the store until they are over: %s", error)
