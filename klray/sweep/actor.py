"""What runs inside Ray: a scorer with its process, which keeps the pauses that all scorers of a sweep keep."""

import dataclasses
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, TypeVar

import ray
import ray.exceptions

from klray.checkpoints import Checkpoint, Hub, Patience
from klray.errors import CheckpointError, StoreError
from klray.store import Column, Store
from klray.sweep.board import Sent
from klray.sweep.claims import Claims, Held
from klray.sweep.examining import Expected, examine, here
from klray.sweep.model_process import ModelProcess
from klray.sweep.processes import spare_loopback
from klray.sweep.replies import Outcome, Pending, Refusal, Unfit, WorkerFacts
from klray.sweep.scorer import Scorer
from klray.sweep.settings import ScoringSettings
from klray.texts import TextSet
from klray.words.heard import Heard
from klray.words.outside import fit

log = logging.getLogger("klray")

T = TypeVar("T")
A = TypeVar("A", bound="Outcome | Pending | Held | Refusal")

ANSWER_SECONDS = 10.0
SILENT_SECONDS = 60.0  # for which an actor of pauses is not asked again that did not answer


class SharedPatience(Patience):
    """Patience of all scorers of a sweep: what the hub tells one of them, a Ray actor, a plain ``Patience``, tells the
    others, in seconds from now, because clocks differ.
    """

    def __init__(self, actor: Any):
        super().__init__()
        self._actor = actor
        self._ask_from = 0.0

    def pause(self, seconds: float) -> None:
        """Let no scorer of the sweep ask the hub for anything before ``seconds`` have passed."""
        super().pause(seconds)
        self._actor.pause.remote(seconds)

    def left(self) -> float:
        """Seconds until the hub may be asked. Where the actor does not answer, this process goes by its own for a
        while: it is asked before each file.
        """
        own = super().left()
        if own or time.monotonic() < self._ask_from:
            return own
        try:
            return float(ray.get(self._actor.left.remote(), timeout=ANSWER_SECONDS))
        except ray.exceptions.RayError:
            self._ask_from = time.monotonic() + SILENT_SECONDS
            return own


class ScorerActor:
    """A Scorer in a Ray actor, with its arguments; ``board`` is the handle of a sweep's ``Board``. What it scores it
    claims in the name of the job.

    Commits have a thread of their own: the next checkpoint is scored meanwhile.
    """

    CONCURRENCY: ClassVar = {"commits": 1}
    _sent: Sent | None = None

    def __init__(
        self,
        board: Any,
        hub: Hub,
        store_url: str,
        storage_options: Mapping[str, Any],
        text_set: TextSet,
        settings: ScoringSettings,
    ):
        spare_loopback()
        self._compute = ModelProcess(settings, text_set)  # first, because its imports take longest
        self._open = partial(
            Scorer, hub, store_url, storage_options, text_set, settings, self._compute, SharedPatience(board)
        )
        self._sent = Sent(board, socket.gethostname())
        log.addHandler(self._sent)
        log.setLevel(logging.INFO)
        self._store = store_url, storage_options
        self._scored: dict[str, Column] = {}
        self._facts: dict[str, Any] = {}  # of this worker, for its commits

    def ready(self, wanted: Expected) -> WorkerFacts | Unfit:
        """Examined, as ``klray.sweep.examining`` says; it may be asked again, and then sees what has become of it."""
        assert self._heard is not None  # from now on
        place = here(ray.get_runtime_context().get_node_id())
        found = examine(
            place,
            wanted,
            self._store[0],
            lambda: Store.open(*self._store).objects,
            lambda: self.scorer.cache,
            self._compute.try_device,
        )
        if isinstance(found, WorkerFacts):
            gpu = {} if found.device == "cpu" else {"gpu": found.device}
            self._facts = fit({"host": place.host, **gpu, "job": wanted.job})
        return found

    @cached_property
    def scorer(self) -> Scorer:
        """Opened when the store was found to be the driver's."""
        return self._open()

    @cached_property
    def claims(self) -> Claims:
        """Of this worker, in the name of the job."""
        return Claims(self.scorer.store, self._facts["job"])

    def score(
        self, checkpoint: Checkpoint, upcoming: Sequence[Checkpoint], source: str, turn: int
    ) -> Outcome | Pending | Held | Refusal:
        """As ``Scorer.column``, or ``Scorer.take_over`` from the column with the key ``source`` if that is not "", once
        the checkpoint is claimed, at ``turn`` or later; those that are upcoming are claimed before they are fetched.

        What concerns this checkpoint alone is returned as a Refusal.
        """
        key = self.scorer.key(checkpoint)
        if self._sent is not None:
            self._sent.checkpoint = checkpoint.label

        def work() -> Outcome | Pending | Held:
            claimed = self.claims.take(key, turn)
            if not isinstance(claimed, bool):
                return claimed
            if not claimed:
                return Outcome(key, first=False, tokens=0)
            taken = self.scorer.take_over(checkpoint, source) if source else None
            if taken is not None:
                self.claims.drop(key)
                return taken
            ours = self.claims.take_each([self.scorer.key(each) for each in upcoming])
            column = self.scorer.column(checkpoint, [each for each, own in zip(upcoming, ours, strict=True) if own])
            self._scored[key] = dataclasses.replace(column, facts={**column.facts, **self._facts})
            return Pending(key, tuple(column.facts.get("warnings", ())))

        answer = _refused(checkpoint.label, work)
        if isinstance(answer, Refusal):
            self.claims.drop(key)
        return self._told(answer)

    @ray.method(concurrency_group="commits")
    def commit(self, key: str) -> Outcome | Refusal:
        """As ``Scorer.commit`` for the column that ``score`` left; a StoreError is raised."""
        answer = _refused(key, lambda: self.scorer.commit(self._scored.pop(key)))
        self.claims.drop(key)
        return self._told(answer)

    @cached_property
    def _heard(self) -> Heard:
        """What this process warns of: its cache, hub and store; what the model's warns of is a fact of the column."""
        handler = Heard()
        log.addHandler(handler)
        return handler

    def _told(self, answer: A) -> A:
        return dataclasses.replace(answer, warnings=(*answer.warnings, *self._heard.take()))


def _refused(what: str, work: Callable[[], T]) -> T | Refusal:
    """What ``work`` returns, or why it could not; what concerns the whole store is raised."""
    try:
        return work()
    except CheckpointError as error:
        return Refusal(error.reason, error.message)
    except StoreError:
        raise
    except Exception as error:
        log.exception("%s", what)
        return Refusal("unexpected", f"{type(error).__name__}: {error}")
