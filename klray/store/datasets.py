"""Zarr as a store uses it: groups made in memory and then put; datasets that plain xarray opens."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from xarray.backends import BackendArray
from xarray.core import indexing
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from klray.errors import StoreDamagedError, StoreError
from klray.store import layout
from klray.store.arrays import StoredGroup
from klray.store.fields import shown
from klray.store.objects import Objects
from klray.store.seal import sha256_of
from klray.store.zarr_store import ZarrStore
from klray.words.outside import parsed

BELOW = "/zarr.json"
# What Zarr, xarray and NumPy raise of metadata and bytes that are not what klray writes.
UNREADABLE = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, RuntimeError, TypeError),
    *(ValueError, FileNotFoundError),
)


def encode_group(
    arrays: Mapping[str, np.ndarray],
    attributes: Mapping[str, Mapping[str, Any]],
    chunks: tuple[int, ...] | None = None,
    **options: Any,
) -> dict[str, bytes]:
    """The objects of a Zarr group by their keys below it: some of ``layout.ARRAYS``, each in one chunk or ``chunks``.

    ``attributes`` are more of those of an array, or of the group (""); ``options`` are Zarr's, for every array.
    """
    buffers: dict[str, Any] = {}
    group = zarr.open_group(MemoryStore(buffers), mode="w-", zarr_format=3, attributes=dict(attributes.get("", {})))
    for name, values in arrays.items():
        dims, dtype, unit, meaning = layout.ARRAYS[name]
        array = group.create_array(
            name,
            shape=values.shape,
            chunks=chunks or values.shape,
            dtype=dtype,
            dimension_names=dims,
            attributes={"units": unit, "long_name": meaning, **attributes.get(name, {})},
            **({"fill_value": float("nan")} if dtype == "float32" else {}),
            **options,
        )
        array[:] = values
    return {key: buffer.to_bytes() for key, buffer in buffers.items()}


def encode_dataset(data: xr.Dataset, fill: Callable[[zarr.Group], None] | None = None) -> dict[str, bytes]:
    """The objects of a Dataset in memory, with consolidated metadata; ``fill`` may add arrays to its group."""
    buffers: dict[str, Any] = {}
    data.to_zarr(MemoryStore(buffers), mode="w-", zarr_format=3, consolidated=False, write_empty_chunks=True)
    if fill is not None:
        fill(zarr.open_group(MemoryStore(buffers), mode="r+", zarr_format=3))
    bodies = {key: buffer.to_bytes() for key, buffer in buffers.items()}
    arrays = {key.removesuffix(BELOW): body for key, body in bodies.items() if key.endswith(BELOW)}
    return {**bodies, "zarr.json": _consolidated(bodies["zarr.json"], arrays)}


def write_dataset(objects: Objects, path: str, data: xr.Dataset) -> None:
    """Write ``data`` below ``path``, which is empty; each Dask block goes straight to its place.

    Those have checksums of their own: what is left of a writing that is cut short may be read (`klray.store.begun`).
    """
    lazy = {str(name): {"compressors": ZstdCodec(checksum=True)} for name, each in data.items() if each.chunks}
    data.to_zarr(
        ZarrStore(objects, path),
        mode="w-",
        zarr_format=3,
        consolidated=False,
        write_empty_chunks=True,
        encoding=lazy,
    )
    there = array_metadata(objects, path, [str(name) for name in data.variables])
    if there is None:
        raise StoreError(f"store {objects.url}: what was written to {path} was removed meanwhile; run it again")
    objects.put(f"{path}/zarr.json", there)


def open_dataset_below(
    objects: Objects,
    path: str,
    cure: str,
    *,
    sizes: Mapping[str, int] | None = None,
    hashes: Mapping[str, str] | None = None,
    n_objects: int = 0,
    whole: str = "",
) -> xr.Dataset:
    """The dataset below ``path``: variables Dask-backed, coordinates read when they are first looked at.

    Labels are ``str`` objects: NumPy's variable-width strings cannot be cast to its fixed-width ones yet. Objects that
    ``hashes`` names are read only as they were written, and chunks of the arrays that match ``whole`` (a pattern) must
    be there: else StoreError, which ends with ``cure``, never other values or fill values. Arrays must agree with
    ``sizes`` of dimensions and with the number of objects that were written (``StoredGroup``).
    """
    where = f"store {objects.url}: {path}{BELOW}"
    body = objects.get(f"{path}{BELOW}")
    if body is None:
        raise StoreDamagedError(f"{where} is missing: it was written and is gone; {cure}")
    if sha256_of(body) != (hashes or {}).get("zarr.json", sha256_of(body)):
        raise StoreDamagedError(f"{where} holds other bytes than were written; {cure}")
    try:
        group = StoredGroup.from_metadata(body)
        group.check(sizes or {}, n_objects)
        store = ZarrStore(objects, path, hashes=hashes, whole=whole, cure=cure, group=group, read_only=True)
        data = xr.open_dataset(store, engine="zarr", chunks=None, cache=False, consolidated=True, zarr_format=3)
        chunked = {name: data[name].variable.chunk(data[name].encoding["preferred_chunks"]) for name in data.data_vars}
        lazy = {name: _cached(each.variable) for name, each in data.coords.items() if name not in data.xindexes}
        labels = {name: data[name].astype(object) for name in data.xindexes if data[name].dtype.kind == "T"}
        return data.assign(chunked).assign_coords({**lazy, **labels})
    except StoreError:
        raise
    except UNREADABLE as error:
        raise StoreDamagedError(f"{where} is no dataset of klray ({shown(str(error))}); {cure}") from error


def read_arrays(
    objects: Objects, path: str, names: Sequence[str], sizes: Mapping[str, int]
) -> dict[str, npt.NDArray[Any]]:
    """Arrays of a group without consolidated metadata, in memory, if dimensions have these ``sizes``.

    Raises FileNotFoundError: metadata are missing; StoreDamagedError: a chunk is missing or none; one of UNREADABLE:
    they are not what klray writes.
    """
    body = array_metadata(objects, path, names)
    if body is None:
        raise FileNotFoundError(f"{path}{BELOW}")
    group = StoredGroup.from_metadata(body)
    group.check(sizes, 0)
    store = ZarrStore(objects, path, whole=".*", cure="what is to be done then", group=group, read_only=True)
    opened = zarr.open_group(store, mode="r", zarr_format=3)
    return {name: np.asarray(opened[name][...]) for name in names}


def array_metadata(objects: Objects, path: str, names: Sequence[str]) -> bytes | None:
    """The ``zarr.json`` of a group with those of its arrays in it; None if one of them is missing."""
    found = list(objects.get_many([f"{path}{BELOW}", *(f"{path}/{name}{BELOW}" for name in names)]))
    for each in found:
        if isinstance(each, StoreDamagedError):
            raise each
    group, *arrays = [each for each in found if isinstance(each, bytes)] or [b""]
    return _consolidated(group, dict(zip(names, arrays, strict=True))) if len(arrays) == len(names) else None


def _consolidated(group: bytes, arrays: Mapping[str, bytes]) -> bytes:
    """A group's zarr.json with those of its arrays in it: readers open the dataset with one request.

    Zarr's own function warns that version 3 does not specify this yet, which cannot be silenced for one of several
    threads. It is right here, because nothing changes afterwards.
    """
    metadata = {name: parsed(arrays[name]) for name in sorted(arrays)}
    inline = {"kind": "inline", "must_understand": False, "metadata": metadata}
    before = parsed(group)
    if not isinstance(before, dict):
        raise ValueError(f"it holds a {type(before).__name__}")
    kind = before.pop("node_type", None)  # last, as Zarr has it
    return json.dumps({**before, "consolidated_metadata": inline, "node_type": kind}, indent=2).encode()


class _Labels(BackendArray):
    """Strings of a Zarr array, as ``str`` objects."""

    def __init__(self, variable: xr.Variable):
        self.variable, self.shape, self.dtype = variable, variable.shape, np.dtype(object)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        return self.variable[key].to_numpy().astype(object)


def _cached(variable: xr.Variable) -> xr.Variable:
    """The variable, read when it is first looked at, and once."""
    array = indexing.LazilyIndexedArray(_Labels(variable)) if variable.dtype.kind == "T" else variable._data
    return xr.Variable(variable.dims, indexing.MemoryCachedArray(array), variable.attrs, variable.encoding)
