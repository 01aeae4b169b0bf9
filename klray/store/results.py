"""Results: what analyses of a snapshot wrote, as Zarr that plain xarray opens."""

import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import xarray as xr

from klray.errors import StoreDamagedError, StoreError
from klray.store import layout
from klray.store.datasets import open_dataset_below, write_dataset
from klray.store.objects import Objects
from klray.store.seal import sealed, unsealed

_SHA256 = 64  # hex digits; an ETag has 32


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
    created = datetime.now(UTC).isoformat(timespec="seconds")
    marker = {"path": path, "created": created, "objects": objects.fingerprints(path)}
    if f"{path}/zarr.json" not in marker["objects"]:
        raise StoreError(f"store {objects.url}: what was written to {path} was removed meanwhile; run analyze again")
    objects.put(layout.result_marker_path(snapshot, name), sealed(marker))
    return path


def read_marker(objects: Objects, path: str) -> dict[str, Any] | None:
    """A result's marker: where the result is, and the fingerprints of its objects; None if there is no marker.

    Raises StoreError: the marker is damaged.
    """
    found = objects.get_json(path)
    if found is None:
        return None
    try:
        marker = unsealed(found)
        if str(marker["path"]).startswith(path.removesuffix(".json")):
            return marker
        raise ValueError("it names another place")
    except (ValueError, KeyError) as error:
        raise StoreDamagedError(f"store {objects.url}: {path} is damaged ({error}); run klray analyze again") from error


def damaged_results(objects: Objects, markers: Iterable[str]) -> dict[str, str]:
    """Markers and objects of results that are not what was written, and what is wrong with each."""
    wrong = {}
    for path in markers:
        try:
            marker = read_marker(objects, path) or {}
        except StoreDamagedError as error:
            wrong[path] = str(error)
            continue
        there = objects.fingerprints(str(marker["path"])) if "objects" in marker else {}
        for name, before in marker.get("objects", {}).items():
            now = there.get(name)
            if now is None:
                wrong[name] = "is missing"
            elif len(now) == len(before) and now != before:  # of another length in a store that was moved
                wrong[name] = "is not what was written"
    return wrong


def result_names(objects: Objects, snapshot: str) -> list[str]:
    """Names of the finished analyses of a snapshot."""
    names = objects.names(f"{layout.RESULTS}/{snapshot}")
    return [name.removesuffix(".json") for name in names if name.endswith(".json")]


def open_finished(objects: Objects, snapshot: str, name: str) -> xr.Dataset:
    """A finished analysis, Dask-backed. Raises StoreError: there is none of this name for this snapshot."""
    marker = read_marker(objects, layout.result_marker_path(snapshot, name))
    if marker is None:
        there = f" ({', '.join(result_names(objects, snapshot)) or 'none'} there)" if objects.listable else ""
        raise StoreError(
            f"analysis.name={name}: snapshot {snapshot} of store {objects.url} has no such result{there}; "
            f"run: klray analyze store.url={objects.url} analysis.name={name}"
        )
    path = str(marker["path"])
    # A folder's fingerprints are SHA-256: what they name is read as it was written, or not at all; ETags are none.
    hashes = {
        key.removeprefix(f"{path}/"): each for key, each in marker.get("objects", {}).items() if len(each) == _SHA256
    }
    return open_dataset_below(
        objects,
        path,
        "the command that wrote it makes another result (klray analyze with analysis.recipe=fit)",
        hashes=hashes,
        whole=".*" if "objects" in marker else "",
    )
