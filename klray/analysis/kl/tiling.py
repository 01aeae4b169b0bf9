"""How large tiles are, how many panels stay in memory, and what that needs: arithmetic alone.

Shapes: K = models, N = texts, T = models on each side of a tile. No value depends on any of it but the memory.
"""

from typing import NamedTuple

from klray.analysis.kl.tiles import DIRECT_VALUES, FINISHED, MOST_ROWS, ROWS, TEXTS

SIDES = (2048, 1024, 512, 256)  # of a tile; with smaller ones centring takes as long as the products
CHUNK = 512  # models on each side of a stored chunk: 2 MB, so that a few pairs are read in little


class Tiling(NamedTuple):
    """How all pairs are computed."""

    tile: int  # T
    room: int  # panels of T rows that stay in memory together
    needed_bytes: int  # at most


def tile_side(n_models: int, threads: int) -> int:
    """T: the largest of SIDES that leaves three tiles of the upper triangle for every two threads."""
    for side in SIDES:
        n = -(-n_models // side)
        if n * (n + 1) >= 3 * threads:
            return side
    return SIDES[-1]


def tiling(
    n_models: int,
    n_texts: int,
    threads: int,
    itemsize: int,
    chunk_models: int,
    budget_bytes: int | None = None,
    tile: int | None = None,
) -> Tiling:
    """The tiles that were asked for, or those that suit the size, with as many panels in memory as the budget allows.

    Values of ``itemsize`` are read in chunks of ``chunk_models``, in ``threads`` threads. Where even the fewest panels
    exceed the budget, smaller tiles are tried, unless ``tile`` was asked for; the last that was tried is returned.
    """
    side = tile or tile_side(n_models, threads)
    while True:
        n = -(-n_models // side)
        base, panel = _needed(n_models, n_texts, side, threads, itemsize, chunk_models)
        fewest = min(n, threads + 2)
        room = n if budget_bytes is None else min(n, max(fewest, (budget_bytes - base) // panel))
        found = Tiling(side, room, base + room * panel)
        if budget_bytes is None or found.needed_bytes <= budget_bytes or tile or side == SIDES[-1]:
            return found
        side = next(each for each in SIDES if each < side)


def reading_bytes(n_texts: int, itemsize: int, chunk_models: int) -> int:
    """Of one chunk while it is read: as it is stored, and clipped."""
    return 2 * chunk_models * n_texts * itemsize


def _needed(n_models: int, n_texts: int, tile: int, threads: int, itemsize: int, chunk_models: int) -> tuple[int, int]:
    """Bytes of everything but the panels that stay, and of one panel."""
    rows = min(tile, n_models)
    side = -(-rows // ROWS) * ROWS
    operands = 2 * 3 * side * TEXTS * 8  # x, x^2, x^3 of both sides
    direct = 3 * max(DIRECT_VALUES, n_texts) * 8
    sums = (2 * side * side + 4 * min(side, MOST_ROWS) ** 2 + 8 * FINISHED**2) * 8
    waiting = 4 * side * side * 8  # finished tiles that the writer has not taken yet, both quantities, and transposed
    panel = rows * n_texts * itemsize
    loading = 2 * panel + reading_bytes(n_texts, itemsize, chunk_models)  # a panel put together from its chunks
    tasks = 3 * (-(-n_models // tile)) ** 2 * 8192  # the graph of both matrices
    return tasks + threads * (operands + direct + sums + waiting + loading), panel
