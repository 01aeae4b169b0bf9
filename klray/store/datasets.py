"""Datasets that plain xarray opens: written once, with consolidated metadata, read many times."""

from __future__ import annotations

import warnings

import xarray as xr

from klray.store.objects import Objects


def write_dataset(objects: Objects, path: str, data: xr.Dataset) -> None:
    """Write ``data`` below ``path``, which is empty; each Dask block goes straight to its place."""
    with warnings.catch_warnings():
        # Zarr v3 does not specify consolidated metadata yet. It is right here, because nothing changes afterwards, and
        # readers open the dataset with one request in place of one for each array.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        data.to_zarr(objects.zarr(path), mode="w-", zarr_format=3, consolidated=True)


def open_dataset_below(objects: Objects, path: str) -> xr.Dataset:
    """The dataset below ``path``: arrays Dask-backed, coordinates in memory, labels as ``str`` objects."""
    data = xr.open_zarr(objects.zarr(path, read_only=True), consolidated=True, zarr_format=3)
    data = data.assign_coords({name: coordinate.load() for name, coordinate in data.coords.items()})
    labels = {name: coordinate for name, coordinate in data.coords.items() if coordinate.dtype.kind == "T"}
    # NumPy's variable-width strings cannot be compared with or cast to its fixed-width ones everywhere yet.
    return data.assign_coords({name: label.astype(object) for name, label in labels.items()})
