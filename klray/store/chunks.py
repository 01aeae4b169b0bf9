"""The chunks of a snapshot's log-likelihoods, (model, text).

Chunks that hold the same models as before are copied where they are stored; the others are put together from rows of
the chunk before and from columns. Memory holds four chunks at most, whatever the number of models.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from klray.errors import StoreDamagedError
from klray.store import layout
from klray.store.catalog import Catalog
from klray.store.columns import StoredColumn, sound_columns
from klray.store.objects import Objects
from klray.store.seal import read_whole, sha256_of

log = logging.getLogger("klray")

Report = Callable[[str, int, int], None]  # what is being done, how much of it is done, of how much

COLUMNS_AT_ONCE = 64  # read by one thread
READERS, WRITERS = 4, 2


def write_chunks(
    objects: Objects, catalog: Catalog, identifier: str, chunk_models: int, n_texts: int, told: Report
) -> tuple[list[str], dict[str, StoreDamagedError]]:
    """Write all chunks of snapshot ``identifier``, ``chunk_models`` rows each; the SHA-256 of each, in order.

    And by key what is wrong with columns that turned out to be damaged: what was written is no snapshot then.
    """
    n_models = len(catalog)
    ranges = [(start, min(start + chunk_models, n_models)) for start in range(0, n_models, chunk_models)]
    hashes: list[str] = []
    wrong: dict[str, StoreDamagedError] = {}
    with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(WRITERS) as writers:
        writing: deque[Future[None]] = deque()  # chunks are written while the next is put together
        copying = [
            readers.submit(_copied, objects, catalog, identifier, number, start, stop, (chunk_models, n_texts))
            for number, (start, stop) in enumerate(ranges)
        ]
        try:
            for number, (start, stop) in enumerate(ranges):
                sha256 = copying[number].result()
                if sha256 is None:
                    body = bytearray(4 * chunk_models * n_texts)
                    block = np.frombuffer(body, "<f4").reshape(chunk_models, n_texts)
                    block[stop - start :] = np.nan
                    for rows in _gather(objects, catalog, number, start, stop, block, readers, wrong):
                        told("models", start + rows, n_models)
                    if wrong:  # the other columns are looked at, and nothing more is written
                        continue
                    if rows != stop - start:  # what is not filled would be zeros
                        raise AssertionError(f"chunk {number}: {rows} of {stop - start} rows were filled")
                    del block
                    sha256 = sha256_of(body)
                    if len(writing) == WRITERS:
                        writing.popleft().result()
                    writing.append(writers.submit(objects.put, layout.chunk_path(identifier, number), body))
                    del body
                hashes.append(sha256)
                told("models", stop, n_models)
            for each in writing:
                each.result()
        except BaseException:
            for copy in copying:  # hundreds may wait
                copy.cancel()
            raise
    return hashes, wrong


def _copied(
    objects: Objects, catalog: Catalog, identifier: str, number: int, start: int, stop: int, shape: tuple[int, int]
) -> str | None:
    """Copy the same chunk of the snapshot before if it holds the same models; its SHA-256, or None."""
    base = catalog.base
    if base is None or (base.chunk_models, base.n_texts) != shape or not catalog.unchanged[start:stop].all():
        return None
    if min(start + shape[0], base.n_models) != stop:  # there it ended earlier
        return None
    chunk = base.chunks[number]
    source, target = layout.chunk_path(base.id, number), layout.chunk_path(identifier, number)
    if objects.copy(source, target, chunk.fingerprint):
        return chunk.sha256
    log.warning("%s could not be copied, or is not what it was: reading it", source)
    return None


def _gather(
    objects: Objects,
    catalog: Catalog,
    number: int,
    start: int,
    stop: int,
    block: npt.NDArray[np.float32],
    readers: ThreadPoolExecutor,
    wrong: dict[str, StoreDamagedError],
) -> Iterator[int]:
    """Fill ``block`` with the rows from ``start`` to ``stop``; yields how many of them are there.

    Rows of columns that are damaged are not filled; ``wrong`` says by key what each is.
    """
    done = _rows_before(objects, catalog, number, start, stop, block)
    missing = [
        (row, column)
        for row, column in catalog.columns(start, stop)
        if not done[max(row, start) - start : min(row + column.n_layers, stop) - start].all()
    ]
    yield int(done.sum())
    n_texts = block.shape[1]

    def read(part: list[tuple[int, StoredColumn]]) -> int:
        filled = 0
        sound, damaged = sound_columns(objects, [each for _, each in part], n_texts)
        wrong.update(damaged)
        for row, column in part:
            if column.key in damaged:
                continue
            values = sound[column.key]
            first, last = max(row, start), min(row + column.n_layers, stop)
            block[first - start : last - start] = values[first - row : last - row]
            filled += int((~done[first - start : last - start]).sum())
        return filled

    parts = [missing[place : place + COLUMNS_AT_ONCE] for place in range(0, len(missing), COLUMNS_AT_ONCE)]
    there = int(done.sum())
    for filled in readers.map(read, parts):
        there += filled
        yield there


def _rows_before(
    objects: Objects, catalog: Catalog, number: int, start: int, stop: int, block: npt.NDArray[np.float32]
) -> npt.NDArray[np.bool_]:
    """Take what did not change from the chunk that the snapshot before has in this place; which rows that were."""
    done = np.zeros(stop - start, dtype=bool)
    base = catalog.base
    if base is None or not base.chunks or number >= len(base.chunks) or number * base.chunk_models != start:
        return done
    rows = slice(0, min(base.chunk_models, stop - start))
    wanted = catalog.unchanged[start:stop][rows]
    if not wanted.any():
        return done
    source = layout.chunk_path(base.id, number)
    whole, wrong = read_whole(objects, {source: base.chunks[number].sha256}, base.chunk_bytes)
    if wrong or len(whole[source]) != base.chunk_bytes or base.n_texts != block.shape[1]:
        log.warning("%s is missing or damaged: reading columns", source)
        return done
    before = np.frombuffer(whole[source], "<f4").reshape(base.chunk_models, -1)
    np.copyto(block[rows], before[rows], where=wanted[:, None])
    done[rows] = wanted
    return done
