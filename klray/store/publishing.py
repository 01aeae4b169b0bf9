"""Publishing: gather every committed column into a new snapshot, reading only what the snapshot before lacks."""

import contextlib
import logging
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import numpy as np
import xarray as xr
import zarr

from klray.errors import StoreDamagedError, StoreError
from klray.store import layout
from klray.store.catalog import COORDINATES, Catalog, DamagedColumn, damage_lines, read_catalog
from klray.store.chunks import Report, write_chunks
from klray.store.datasets import encode_dataset
from klray.store.fields import MOST_MODELS
from klray.store.objects import Objects
from klray.store.seal import sha256_of
from klray.store.snapshots import Chunk, Manifest, damaged_objects, move_latest
from klray.store.text_facts import TextFacts
from klray.words.numbers import counted, listed

log = logging.getLogger("klray")

# 10-80 MB suit Dask and are few requests; the lower end, because one more model rewrites the last chunk, of NaN mostly.
FAR_AHEAD = timedelta(days=366)
CHUNK_BYTES = 12 * 2**20


def publish(objects: Objects, texts: TextFacts, report: Report | None = None) -> tuple[Manifest, bool]:
    """Gather every committed column into a snapshot; (manifest, True), or (the latest, False) when nothing is new.

    A latest snapshot that is damaged is made up for by another with the same content.

    Models keep their places: a snapshot starts with those of the one before, as far as their columns still stand, so
    that analyses can be continued.

    A column that is damaged, or whose commit is, stops nobody. It is said, counted in the manifest and left out, unless
    the snapshot before holds its values: `DamagedColumn`.

    Raises StoreError: there is no column, or none that is sound.
    """
    told = report or (lambda what, done, of: None)
    base = move_latest(objects)
    catalog = read_catalog(objects, base, texts.fingerprint, lambda done, of: told("commits", done, of))
    said: set[str] = set()
    while True:
        _say(catalog, said)
        if not len(catalog):
            there = f" that is sound, {len(catalog.damaged):,} are damaged" if catalog.damaged else ""
            raise StoreError(f"store {objects.url} has no committed column{there} to publish; run: klray score")
        if base and base.content == catalog.content:
            damaged = damaged_objects(objects, base)
            if not damaged:
                return base, False
            log.warning("snapshot %s is damaged (%s ...): making another", base.id, next(iter(damaged)))
        written = _write(objects, texts, catalog, told)
        if isinstance(written, Manifest):
            return written, True
        catalog = catalog.without([DamagedColumn(key, str(why)) for key, why in written.items()])


def _say(catalog: Catalog, said: set[str]) -> None:
    """Name the damaged columns that were not ``said`` yet, the first ones of many, and say how many there are."""
    new = [each for each in catalog.damaged if each.key not in said]
    for line in damage_lines(new):
        log.warning("%s", line)
    said.update(each.key for each in new)


def _write(
    objects: Objects, texts: TextFacts, catalog: Catalog, told: Report
) -> Manifest | dict[str, StoreDamagedError]:
    """Write a snapshot and make it visible; or what is wrong with columns that cannot be read, by key."""
    base, content = catalog.base, catalog.content
    identifier = _claim(objects, content, base)
    folder = layout.snapshot_path(identifier)
    n_texts = len(texts.text_bytes)
    chunk_models = min(len(catalog), max(1, CHUNK_BYTES // (4 * n_texts)))
    with ThreadPoolExecutor(1) as beside:
        writing = beside.submit(_write_facts, objects, texts, catalog, identifier, chunk_models)
        chunks, wrong = write_chunks(objects, catalog, identifier, chunk_models, n_texts, told)
        hashes = writing.result()
    if wrong:
        with contextlib.suppress(StoreError):  # this publisher's alone; who may not delete leaves it to verify
            objects.delete_tree(folder)
        return wrong
    # A publisher that was stopped may find that its folder was removed meanwhile as left over.
    prints = objects.fingerprints(folder)
    if not prints.keys() >= {f"{folder}/{name}" for name in [*hashes, *map(layout.chunk_name, range(len(chunks)))]}:
        raise StoreError(f"store {objects.url}: what was written to {folder} was removed meanwhile; run publish again")
    manifest = Manifest(
        id=identifier,
        text_set=texts.fingerprint,
        n_models=len(catalog),
        n_texts=n_texts,
        content=content,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        n_columns=len(catalog.first_rows),
        generation=min(base.generation + 1, MOST_MODELS) if base else 1,
        chunk_models=chunk_models,
        chunks=tuple(Chunk(each, prints[layout.chunk_path(identifier, number)]) for number, each in enumerate(chunks)),
        objects=hashes,
        n_left_out=len(catalog.left_out),
    )
    objects.create(layout.manifest_path(identifier), manifest.to_json())
    move_latest(objects, manifest)
    return manifest


def _claim(objects: Objects, content: str, base: Manifest | None) -> str:
    """An id that is this publisher's alone: its time and content.

    It is above the id of ``base`` even when this machine's clock is behind that of its publisher, and that of a
    publisher of the same content in the same millisecond, who may be at work or dead. Not if ``base`` is of years to
    come: which snapshot is the later one its generation says, too.
    """
    now, last = datetime.now(UTC), base.id if base else ""
    if last and layout.snapshot_time(last) - now > FAR_AHEAD:
        log.warning("snapshot %s is of a clock that is far ahead", last)
        last = ""
    while True:
        if last:
            now = max(now, layout.snapshot_time(last) + timedelta(milliseconds=1))
        identifier = f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03d}Z-{content[:8]}"
        if objects.create(layout.snapshot_claim_path(identifier), uuid.uuid4().hex.encode()):
            return identifier
        last = identifier


def _write_facts(
    objects: Objects, texts: TextFacts, catalog: Catalog, identifier: str, chunk_models: int
) -> dict[str, str]:
    """Write everything of a snapshot but its log-likelihoods; the SHA-256 of each object by its name."""
    shape = len(catalog), len(texts.text_bytes)
    bodies = encode_dataset(_dataset(texts, catalog, identifier), lambda group: _describe(group, shape, chunk_models))
    bodies[layout.CATALOG] = catalog.to_json()
    folder = layout.snapshot_path(identifier)
    objects.put_many({f"{folder}/{name}": body for name, body in bodies.items()})
    return {name: sha256_of(body) for name, body in sorted(bodies.items())}


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
            **({"left_out": _left_out(catalog)} if catalog.left_out else {}),
        },
    )


def _left_out(catalog: Catalog) -> str:
    """What a snapshot lacks, as its readers see it: nothing of the place where the store is."""
    names = [layout.commit_path(each.key) for each in catalog.left_out]
    return f"{counted(len(names), 'committed column')} could not be read when this was published: {listed(names, 8)}"


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
