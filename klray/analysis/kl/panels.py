"""Panels: rows of the matrix that a task reads for itself, where it runs, so that the matrix need not be in memory.

Shapes: K = models, N = texts, T = models of a panel.
"""

import threading
from typing import Any

import dask
import dask.array as da
import numpy as np


class Panel:
    """Some rows, (T, N): read in the thread that needs them, unless they are on the shelf of this process."""

    def __init__(self, rows: da.Array, number: int = 0, shelf: "Shelf | None" = None):
        self._rows, self._number, self._shelf = rows, number, shelf
        self._lock = threading.Lock()

    def read(self) -> np.ndarray:
        """The rows, C-contiguous."""
        if self._shelf is None:
            return self._read()
        with self._lock:  # whoever needs the same panel waits for it
            values = self._shelf.get(self._number)
            if values is None:
                values = self._read()
                self._shelf.put(self._number, values)
        return values

    def _read(self) -> np.ndarray:
        return np.ascontiguousarray(self._rows.compute(scheduler="synchronous"))

    def __reduce__(self) -> tuple[Any, ...]:
        return Panel, (self._rows,)  # in another process there is no shelf

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "Panel", self._rows.name


class Shelf:
    """The panels that stay in memory: at most ``room``, each of which is asked for ``uses`` times in all.

    When one has to go, it is the one that will be asked for least often, and of several the one that was used last:
    whatever order the tiles come in, they come in rows. The last three stay: those of the tiles at work.
    """

    def __init__(self, room: int, uses: int):
        self._room, self._uses = room, uses
        self._panels: dict[int, np.ndarray] = {}  # the one that was asked for last is last
        self._left: dict[int, int] = {}
        self._lock = threading.Lock()

    def get(self, number: int) -> np.ndarray | None:
        """The panel, if it is there."""
        with self._lock:
            self._left[number] = self._left.get(number, self._uses) - 1
            values = self._panels.pop(number, None)
            if values is not None:
                self._panels[number] = values
            return values

    def put(self, number: int, values: np.ndarray) -> None:
        """Keep the panel, and let another go for it."""
        with self._lock:
            self._panels[number] = values
            if len(self._panels) > self._room:
                del self._panels[min(reversed([*self._panels][:-3]), key=self._left.__getitem__)]


def panels(rows: da.Array, room: int) -> list[Panel]:
    """The panels of (K, N) rows in chunks of (T, N), on one shelf with ``room`` for so many."""
    shelf = Shelf(room, rows.numblocks[0])
    return [Panel(dask.optimize(rows.blocks[number])[0], number, shelf) for number in range(rows.numblocks[0])]
