"""Results: what analyses of a snapshot wrote, as Zarr that plain xarray opens."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime

import xarray as xr

from klray.errors import StoreError
from klray.objects import Objects
from klray.store import layout
from klray.store.datasets import open_dataset_below, write_dataset


def write_result(objects: Objects, snapshot: str, name: str, result: xr.Dataset) -> str:
    """Write an analysis chunk by chunk, each Dask block straight to its place; returns its path in the store.

    Every attempt has a folder of its own, and the marker that names it is written last: a result that was cut short is
    never read, and a result may be computed from the one that it takes the place of. The old folder stays, because
    somebody may be reading it.
    """
    if not layout.is_name(name):
        raise StoreError(f"analysis.name={name!r}: use letters, digits, dots, dashes and underscores only")
    path = layout.result_path(snapshot, name, uuid.uuid4().hex)
    write_dataset(objects, path, result)
    marker = {"path": path, "created": datetime.now(UTC).isoformat(timespec="seconds")}
    objects.put(layout.result_marker_path(snapshot, name), json.dumps(marker).encode())
    return path


def result_names(objects: Objects, snapshot: str) -> list[str]:
    """Names of the finished analyses of a snapshot."""
    names = objects.names(f"{layout.RESULTS}/{snapshot}")
    return [name.removesuffix(".json") for name in names if name.endswith(".json")]


def open_finished(objects: Objects, snapshot: str, name: str) -> xr.Dataset:
    """A finished analysis, Dask-backed.

    Raises
    ------
    StoreError
        There is none of this name for this snapshot.
    """
    marker = objects.get_json(layout.result_marker_path(snapshot, name))
    if marker is None:
        there = f" ({', '.join(result_names(objects, snapshot)) or 'none'} there)" if objects.listable else ""
        raise StoreError(
            f"analysis.name={name}: snapshot {snapshot} of store {objects.url} has no such result{there}; "
            f"run: klray analyze store.url={objects.url} analysis.name={name}"
        )
    return open_dataset_below(objects, str(marker["path"]))
