"""Results: what analyses of a snapshot wrote, as Zarr that plain xarray opens."""

import dataclasses
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime

import xarray as xr

from klray.errors import StoreDamagedError, StoreError
from klray.store import layout
from klray.store.datasets import open_dataset_below, write_dataset
from klray.store.fields import SHA256, form, names, record
from klray.store.objects import NO_OBJECT, Objects
from klray.store.objects.base import OBJECT_BYTES
from klray.store.seal import read_parsed, sealed, unsealed

# Verbs other than klray analyze give their results their own names, unless told otherwise.
OTHER_VERBS = ("compare", "scale", "weights")


def write_result(objects: Objects, snapshot: str, name: str, result: xr.Dataset) -> str:
    """Write an analysis chunk by chunk, each Dask block straight to its place; returns its path in the store.

    Every attempt has a folder of its own, and the marker that names it is written last: a result that was cut short is
    never read, and a result may be computed from the one that it takes the place of. The old folder stays, because
    somebody may be reading it.
    """
    if not layout.is_name(name):
        words = "use letters, digits, dots, dashes and underscores only, and no .json at the end"
        raise StoreError(f"analysis.name={name!r}: {words}")
    path = layout.result_path(snapshot, name, uuid.uuid4().hex)
    write_dataset(objects, path, result)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    marker = {"path": path, "created": created, "objects": objects.fingerprints(path)}
    if f"{path}/zarr.json" not in marker["objects"]:
        raise StoreError(f"store {objects.url}: what was written to {path} was removed meanwhile; run analyze again")
    objects.put(layout.result_marker_path(snapshot, name), sealed(marker))
    return path


def publish_report(objects: Objects, snapshot: str, name: str, page: bytes) -> str:
    """Put an HTML page beside the results of a snapshot; returns the address at which a browser finds it.

    It takes the place of an earlier one of this name, whole or not at all. The same page is not written again.
    """
    key = layout.report_path(snapshot, name)
    try:
        there = objects.get(key, OBJECT_BYTES) == page
    except StoreDamagedError:  # larger than any page
        there = False
    if not there:
        objects.put(key, page, "text/html; charset=utf-8")
    return objects.address(key)


@dataclasses.dataclass(frozen=True)
class Marker:
    """Which attempt at an analysis is the result, and the fingerprints of its objects by their keys."""

    path: str
    created: str
    objects: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, path: str, body: bytes) -> "Marker":
        """Of the object at ``path``. Raises ValueError: the bytes are not what was written."""
        found = record(cls, unsealed(body))
        if not layout.is_result_path(found.path, path):
            raise ValueError("it names another place")
        for key, fingerprint in found.objects.items():
            folder, _, name = key.partition(f"{found.path}/")
            form(layout.DATASET_OBJECT, objects=name)
            names(objects=folder + fingerprint)
            if folder:
                raise ValueError("it names objects of another place")
        return found


def read_marker(objects: Objects, path: str) -> Marker | None:
    """A result's marker; None if there is none. Raises StoreError: the marker is damaged."""
    found = next((each for _, each in read_parsed(objects, [path], Marker.from_json)), None)
    if isinstance(found, Exception):
        raise StoreDamagedError(f"store {objects.url}: {path} is damaged ({found}); run klray analyze again") from found
    return found


def damaged_results(objects: Objects, markers: Iterable[str]) -> dict[str, str]:
    """Markers and objects of results that are not what was written, and what is wrong with each."""
    wrong = {}
    for path in markers:
        try:
            marker = read_marker(objects, path)
        except StoreDamagedError as error:
            wrong[path] = str(error)
            continue
        if marker is None or not marker.objects:
            continue
        there = objects.fingerprints(marker.path)
        for name, before in marker.objects.items():
            now = there.get(name)
            if now is None:
                wrong[name] = "is missing"
            elif now != before and (len(now) == len(before) or now in NO_OBJECT):  # of another length: a moved store
                wrong[name] = "is not what was written"
    return wrong


def result_names(objects: Objects, snapshot: str) -> list[str]:
    """Names of the finished analyses of a snapshot."""
    folder = f"{layout.RESULTS}/{snapshot}"
    found = [name for name in objects.names(folder) if layout.is_result_marker(f"{folder}/{name}")]
    return [name.removesuffix(".json") for name in found]


def open_finished(objects: Objects, snapshot: str, name: str) -> xr.Dataset:
    """A finished analysis, Dask-backed. Raises StoreError: there is none of this name for this snapshot."""
    marker = read_marker(objects, layout.result_marker_path(snapshot, name)) if layout.is_name(name) else None
    if marker is None:
        there = f" ({', '.join(result_names(objects, snapshot)) or 'none'} there)" if objects.listable else ""
        made_by = f"klray {name}" if name in OTHER_VERBS else f"klray analyze analysis.name={name}"
        raise StoreError(
            f"analysis.name={name}: snapshot {snapshot} of store {objects.url} has no such result{there}; "
            f"run: {made_by} store.url={objects.url}"
        )
    # A folder's fingerprints are SHA-256: what they name is read as it was written, or not at all; ETags are none.
    hashes = {
        key.removeprefix(f"{marker.path}/"): each for key, each in marker.objects.items() if SHA256.fullmatch(each)
    }
    return open_dataset_below(
        objects,
        marker.path,
        "the command that wrote it makes another result (klray analyze with analysis.recipe=fit)",
        hashes=hashes,
        n_objects=len(marker.objects),
        whole=".*",
    )
