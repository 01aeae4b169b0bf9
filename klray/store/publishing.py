"""Publishing: gather every committed column into a new snapshot, reading only what the snapshot before lacks.

The chunks of log_likelihood that hold the same models as before are copied where they are stored; the others are put
together from rows of the chunk before and from columns. Memory holds two chunks, whatever the number of models.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr

from klray.errors import StoreError
from klray.objects import Objects
from klray.store import layout
from klray.store.catalog import COORDINATES, Catalog, read_catalog
from klray.store.columns import StoredColumn, read_columns
from klray.store.datasets import encode_dataset
from klray.store.snapshots import Chunk, Manifest, TextFacts, damaged_objects, move_latest

log = logging.getLogger("klray")

Report = Callable[[str, int, int], None]  # what is being done, how much of it is done, of how much

CHUNK_BYTES = (
    16 * 2**20
)  # 10-80 MB suit Dask; smaller objects are read-poor on S3, larger ones are rewritten for one row
COLUMNS_AT_ONCE = 64  # read by one thread
THREADS = 4


def publish(objects: Objects, texts: TextFacts, report: Report | None = None) -> tuple[Manifest, bool]:
    """Gather every committed column into a snapshot; (manifest, True), or (the latest, False) when nothing is new.

    A latest snapshot that is damaged is made up for by another with the same content.

    Models keep their places: a snapshot starts with those of the one before, as far as their columns still stand, so
    that analyses can be continued.

    Raises
    ------
    StoreError
        There is no column, a column is damaged, or another publisher made the same snapshot at the same moment.
    """
    told = report or (lambda what, done, of: None)
    base = move_latest(objects)
    catalog = read_catalog(objects, base, lambda done, of: told("commits", done, of))
    if not len(catalog):
        raise StoreError(f"store {objects.url} has no committed column to publish; run: klray score")
    content = catalog.content
    if base and base.content == content:
        damaged = damaged_objects(objects, base)
        if not damaged:
            return base, False
        log.warning("snapshot %s is damaged (%s ...): making another", base.id, next(iter(damaged)))
    now = datetime.now(UTC)
    identifier = _identifier(now, content, base)
    if not objects.create(layout.claim_path(identifier), uuid.uuid4().hex.encode()):
        raise StoreError(
            f"store {objects.url}: another publisher is writing snapshot {identifier} this moment; run publish again"
        )
    chunk_models = min(len(catalog), max(1, CHUNK_BYTES // (4 * len(texts.text_bytes))))
    shape = len(catalog), len(texts.text_bytes)
    bodies = encode_dataset(_dataset(texts, catalog, identifier), lambda group: _describe(group, shape, chunk_models))
    bodies[layout.CATALOG] = catalog.to_json()
    folder = layout.snapshot_path(identifier)
    objects.put_many({f"{folder}/{name}": body for name, body in bodies.items()})
    manifest = Manifest(
        id=identifier,
        text_set=texts.fingerprint,
        n_models=len(catalog),
        n_texts=len(texts.text_bytes),
        content=content,
        created=now.isoformat(timespec="milliseconds"),
        n_columns=len(catalog.first_rows),
        generation=base.generation + 1 if base else 1,
        chunk_models=chunk_models,
        chunks=_write_chunks(objects, catalog, identifier, chunk_models, len(texts.text_bytes), told),
        objects={name: hashlib.sha256(body).hexdigest() for name, body in sorted(bodies.items())},
    )
    # A publisher that was stopped may find that its folder was removed meanwhile as left over.
    gone = {f"{folder}/{name}" for name in manifest.objects} - objects.walk(folder).keys()
    if gone or not all(chunk.fingerprint for chunk in manifest.chunks):
        raise StoreError(f"store {objects.url}: what was written to {folder} was removed meanwhile; run publish again")
    objects.create(layout.manifest_path(identifier), manifest.to_json())
    move_latest(objects, manifest)
    return manifest, True


def _identifier(now: datetime, content: str, base: Manifest | None) -> str:
    """Time and content; above the id of ``base`` even when this machine's clock is behind that of its publisher."""
    identifier = f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03d}Z-{content[:8]}"
    if base and identifier <= base.id:
        then = datetime.strptime(base.id.rpartition("-")[0], "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC)
        return _identifier(then + timedelta(milliseconds=1), content, None)
    return identifier


def _dataset(texts: TextFacts, catalog: Catalog, identifier: str) -> xr.Dataset:
    """The coordinates of a snapshot."""
    _, _, unit, meaning = layout.ARRAYS["text_bytes"]
    return xr.Dataset(
        coords={
            "model": catalog.labels(),
            **{
                name: ("model", catalog.rows[name], {"long_name": each.long_name} if each.long_name else {})
                for name, each in COORDINATES.items()
            },
            "text": np.arange(len(texts.text_bytes), dtype=np.int64),
            "text_bytes": ("text", texts.text_bytes, {"units": unit, "long_name": meaning}),
            "domain": ("text", np.array(texts.domains, dtype=np.dtypes.StringDType())),
        },
        attrs={
            "title": "Log-likelihood of texts under language models",
            "snapshot": identifier,
            "text_set": texts.fingerprint,
            "text_set_name": texts.name,
            "schema": layout.SCHEMA_VERSION,
            "references": layout.REFERENCES,
        },
    )


def _describe(group: zarr.Group, shape: tuple[int, int], chunk_models: int) -> None:
    """Make the array of a snapshot's log-likelihoods, whose chunks are written one by one."""
    _, dtype, unit, meaning = layout.ARRAYS["log_likelihood"]
    group.create_array(
        "log_likelihood",
        shape=shape,
        chunks=(chunk_models, shape[1]),
        dtype=dtype,
        fill_value=float("nan"),
        dimension_names=("model", "text"),
        attributes={"units": unit, "long_name": meaning},
        compressors=None,  # the bytes of a chunk are its values
    )


def _write_chunks(
    objects: Objects, catalog: Catalog, identifier: str, chunk_models: int, n_texts: int, told: Report
) -> tuple[Chunk, ...]:
    n_models = len(catalog)
    hashes: list[str] = []
    with ThreadPoolExecutor(THREADS) as readers, ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None  # a chunk is written while the next is put together
        ranges = [(start, min(start + chunk_models, n_models)) for start in range(0, n_models, chunk_models)]
        copying = [
            readers.submit(_copied, objects, catalog, identifier, number, start, stop, chunk_models)
            for number, (start, stop) in enumerate(ranges)
        ]
        for number, (start, stop) in enumerate(ranges):
            sha256 = copying[number].result()
            if sha256 is None:
                block = np.full((chunk_models, n_texts), np.nan, dtype="<f4")
                for rows in _gather(objects, catalog, number, start, stop, block, readers):
                    told("models", start + rows, n_models)
                body = block.tobytes()
                del block
                sha256 = hashlib.sha256(body).hexdigest()
                if writing:
                    writing.result()
                writing = writer.submit(objects.put, layout.chunk_path(identifier, number), body)
                del body
            hashes.append(sha256)
            told("models", stop, n_models)
        if writing:
            writing.result()
    prints = objects.fingerprints(f"{layout.snapshot_path(identifier)}/log_likelihood/c")
    return tuple(
        Chunk(sha256, prints.get(layout.chunk_path(identifier, number), "")) for number, sha256 in enumerate(hashes)
    )


def _copied(
    objects: Objects, catalog: Catalog, identifier: str, number: int, start: int, stop: int, chunk_models: int
) -> str | None:
    """Copy the same chunk of the snapshot before if it holds the same models; its SHA-256, or None."""
    base = catalog.base
    if base is None or base.chunk_models != chunk_models or not catalog.unchanged[start:stop].all():
        return None
    if min(start + chunk_models, base.n_models) != stop:  # there it ended earlier
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
) -> Iterator[int]:
    """Fill ``block`` with the rows from ``start`` to ``stop``; yields how many of them are there."""
    done = _rows_before(objects, catalog, number, start, stop, block)
    missing = [
        (row, column)
        for row, column in catalog.columns(start, stop)
        if not done[max(row, start) - start : min(row + column.n_layers, stop) - start].all()
    ]
    yield int(done.sum())

    def read(part: list[tuple[int, StoredColumn]]) -> int:
        filled = 0
        for (row, column), values in zip(part, read_columns(objects, [column for _, column in part]), strict=True):
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
    body = objects.get(source)
    if body is None or hashlib.sha256(body).hexdigest() != base.chunks[number].sha256:
        log.warning("%s is missing or damaged: reading columns", source)
        return done
    before = np.frombuffer(body, "<f4").reshape(base.chunk_models, -1)
    done[rows] = wanted
    block[: stop - start][done] = before[rows][wanted]
    return done
