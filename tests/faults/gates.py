"""Gates: production code in threads, of which exactly one runs, and every storage operation of which can go wrong.

An ``Actor`` runs a function of the store in a thread of its own on ``GatedObjects``. Every operation on objects stops
at the actor's gate until the schedule lets it go on. What runs between two operations touches no storage, so a
schedule is a list of (actor, operations, fault).
"""

from __future__ import annotations

import abc
import collections
import enum
import errno
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from klray.store.objects import Objects

TO_THE_BRINK = 0
UNLIMITED = 10**6
DECIDING = {"conditional_put", "delete_tree", "copy", "fingerprints"}
STUCK_SECONDS = 60.0  # an operation on a folder in memory takes 0.1 ms


class Fault(enum.Enum):
    """What happens to an actor at one operation."""

    NONE = "go on"
    CRASH_BEFORE = "crash before"  # as by SIGKILL: nothing that this actor does later has an effect
    CRASH_AFTER = "crash after"
    ERROR_BEFORE = "error before"  # OSError, and the operation had no effect
    ERROR_AFTER = "lost acknowledgement"  # OSError, and the operation had its effect


class Killed(BaseException):
    """Ends an actor's thread. No ``except Exception`` of the code under test stops it."""


class Actor:
    """One job on the store: ``work(objects)`` in a thread, from gate to gate."""

    def __init__(self, name: str, inner: Objects, work: Callable[[Objects], Any]):
        self.name = name
        self.result: Any = None
        self.error: BaseException | None = None
        self.finished = False
        self.killed = False  # no operation has an effect any more
        self.crashed = False  # by a fault of the schedule
        self.operations: list[str] = []
        self.injected: collections.Counter[str] = collections.Counter()
        self._credit = 0  # operations that may pass before the gate closes
        self._fault = Fault.NONE  # befalls the last of them
        self._arrived: queue.SimpleQueue[None] = queue.SimpleQueue()  # an entry when the actor stops, and when it ends
        self._announced = False
        self._brink = False
        self._waiting: list[Callable[[], Any]] = []  # one entry for each thread that is at the gate
        self._mutex = threading.Lock()
        self._objects = GatedObjects(inner, self)
        self._work = work
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._wait()

    def advance(self, operations: int, fault: Fault) -> None:
        """Let that many operations pass, the last of them with ``fault``, and wait until the actor stops again.

        ``TO_THE_BRINK`` operations: until it is about to make something visible, or to take it out.
        """
        with self._mutex:
            assert not self.finished and self._waiting
            self._credit, self._fault, self._announced = operations or UNLIMITED, fault, False
            self._brink = operations == TO_THE_BRINK
        self._open()
        self._wait()
        if self._waiting and fault in (Fault.ERROR_BEFORE, Fault.ERROR_AFTER):
            # Zarr waits for several threads at once: one has failed, which may end the actor while others stop here.
            self._thread.join(0.02)
        if self.killed or self.finished:
            self.kill()

    def kill(self) -> None:
        """End the actor: what is left of it, threads that nobody waits for any more too, has no effect."""
        self.killed = True
        self._open()
        self._thread.join(STUCK_SECONDS)

    def _open(self) -> None:
        with self._mutex:
            waiting, self._waiting = self._waiting, []
        for resume in waiting:
            resume()

    def _wait(self) -> None:
        try:
            self._arrived.get(timeout=STUCK_SECONDS)
        except queue.Empty:
            raise AssertionError(f"{self.name} is stuck after {self.operations[-3:]}") from None

    def _run(self) -> None:
        try:
            self.result = self._work(self._objects)
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - whoever started the actor looks at it
            self.error = error
        self.finished = True
        self._arrived.put(None)

    def pass_gate(self, operation: str, effect: Callable[[], Any]) -> Any:
        """One operation, in any of the actor's threads."""
        while True:
            go = threading.Event()
            with self._mutex:
                if self._brink and self._credit < UNLIMITED and operation.split(" ")[0] in DECIDING:
                    self._credit = 0
                if self._passes(go.set):
                    return self._happen(operation, effect)
            go.wait()

    def _passes(self, resume: Callable[[], Any]) -> bool:
        if self.killed or self._credit > 0:
            return True
        self._waiting.append(resume)
        if not self._announced:
            self._announced = True
            self._arrived.put(None)
        return False

    def _happen(self, operation: str, effect: Callable[[], Any]) -> Any:
        if self.killed:
            raise Killed
        self._credit -= 1
        fault = self._fault if self._credit == 0 else Fault.NONE
        self.operations.append(operation if fault is Fault.NONE else f"{operation} ({fault.value})")
        if fault is not Fault.NONE:
            self.injected[fault.value] += 1
        if fault is Fault.CRASH_BEFORE:
            self.killed = self.crashed = True
            raise Killed
        if fault is Fault.ERROR_BEFORE:
            raise OSError(errno.EIO, "injected: not done", operation)
        result = effect()
        if fault is Fault.CRASH_AFTER:
            self.killed = self.crashed = True
            raise Killed
        if fault is Fault.ERROR_AFTER:
            raise OSError(errno.EIO, "injected: done, but the answer is lost", operation)
        return result


class GatedObjects(Objects):
    """Objects whose abstract methods, whatever they are, pass the actor's gate; the others run on top of those."""

    def __init__(self, inner: Objects, actor: Actor):
        self.inner = inner
        self.actor = actor
        self.url = inner.url

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def put_many(self, bodies: Mapping[str, bytes]) -> None:
        """One gate for each object: a crash leaves some of them."""
        for key, body in bodies.items():
            self.actor.pass_gate(f"put_many {key}", lambda key=key, body=body: self.inner.put_many({key: body}))


def _through_gate(name: str) -> Callable[..., Any]:
    def method(self: GatedObjects, *args: Any, **kwargs: Any) -> Any:
        what = f"{name} {args[0] if args else ''}"[:120]
        return self.actor.pass_gate(what, lambda: getattr(self.inner, name)(*args, **kwargs))

    return method


for _name in Objects.__abstractmethods__ - {"put_many"}:
    setattr(GatedObjects, _name, _through_gate(_name))
abc.update_abstractmethods(GatedObjects)
