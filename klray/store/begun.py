"""Results that were cut short: what an analysis had written of its matrices serves the one that takes its place."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import zarr

from klray.errors import StoreDamagedError
from klray.store import layout
from klray.store.arrays import StoredGroup
from klray.store.datasets import UNREADABLE, array_metadata
from klray.store.objects import Objects
from klray.store.results import read_marker
from klray.store.zarr_store import ZarrStore

log = logging.getLogger("klray")


@dataclasses.dataclass(frozen=True)
class Begun:
    """Square matrices of K models, of which some chunks are there, each written whole and with a checksum."""

    objects: Objects
    path: str
    names: tuple[str, ...]  # of the matrices
    group: StoredGroup
    there: frozenset[str]  # names of chunks

    def has(self, rows: slice, others: slice) -> bool:
        """Whether these rows and columns of every matrix were written."""
        return self.there.issuperset(
            f"{name}/c/{i}/{j}"
            for name in self.names
            for i in _chunks(rows, self.group.arrays[name].chunk[0])
            for j in _chunks(others, self.group.arrays[name].chunk[1])
        )

    def read(self, rows: slice, others: slice) -> tuple[np.ndarray, ...] | None:
        """These rows and columns of each matrix; None where they are gone, or not what was written."""
        store = ZarrStore(
            self.objects, self.path, whole=".*", cure="they are computed anew", group=self.group, read_only=True
        )
        try:
            opened = zarr.open_group(store, mode="r", zarr_format=3)
            return tuple(np.asarray(opened[name][rows, others]) for name in self.names)
        except (StoreDamagedError, *UNREADABLE) as error:
            log.warning("%s", error)
            return None

    def __dask_tokenize__(self) -> tuple[str, ...]:
        return "Begun", self.objects.url, self.path

    def __reduce__(self) -> tuple[Any, ...]:
        # a task knows that its chunks are there
        return Begun, (self.objects, self.path, self.names, self.group, frozenset())


def begun_results(
    objects: Objects, snapshot: str, name: str, matrices: tuple[str, ...], n_models: int, attributes: Mapping[str, Any]
) -> Iterator[Begun]:
    """Attempts at an analysis that no marker names, the one with most chunks first.

    Those with ``matrices`` of ``n_models`` and with these ``attributes``, among others; what is none is passed over.
    """
    marker = layout.result_marker_path(snapshot, name)
    try:
        finished = read_marker(objects, marker)
    except StoreDamagedError:
        finished = None
    there: dict[str, set[str]] = {}
    for key in objects.walk(marker.removesuffix(".json")):
        path, inner = "/".join(key.split("/")[:4]), "/".join(key.split("/")[4:])
        if layout.is_result_path(path, marker) and (finished is None or path != finished.path):
            there.setdefault(path, set()).add(inner)
    for path, chunks in sorted(there.items(), key=lambda each: -len(each[1])):
        try:
            body = array_metadata(objects, path, matrices)
            group = None if body is None else StoredGroup.from_metadata(body)
        except (StoreDamagedError, *UNREADABLE):
            continue
        if group is not None and _is_of(group, n_models, attributes):
            yield Begun(objects, path, matrices, group, frozenset(chunks))


def _is_of(group: StoredGroup, n_models: int, attributes: Mapping[str, Any]) -> bool:
    square = all(array.shape == (n_models, n_models) and array.dtype == "float64" for array in group.arrays.values())
    return square and all(group.attributes.get(name) == value for name, value in attributes.items())


def _chunks(part: slice, size: int) -> range:
    return range(part.start // size, -(-part.stop // size))
