"""Tables of a snapshot and a result, for other programs: Parquet or CSV.

Shapes: K = models, N = texts, R = rows written at a time.

    models          a row for each model: facts, bits per byte, what the result says of it, its place and its neighbours
    texts           a row for each text: number, bytes, domain, whether the recipe keeps it
    log_likelihood  a row for each model: its values as they were scored, nats
    pairs           a row for each pair that the result knows: KL and its standard error, bits per byte
"""

import csv
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import xarray as xr

from klray.analysis.facts import labels
from klray.errors import KlrayError
from klray.units import bits_per_byte

Kind = Literal["parquet", "csv"]
Columns = Mapping[str, Any]

ROWS = 256
NEIGHBOURS = 15  # of each model, in the table of models
MAPS = ("map_tsne", "map_pca")  # the first that a result has gives x and y
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would compute a label that begins so


class Writer(Protocol):
    """A table that is written part by part."""

    def write(self, columns: Columns) -> None:
        """Add rows."""

    def __enter__(self) -> "Writer": ...

    def __exit__(self, *_: Any) -> None: ...


class CsvWriter:
    """A table as CSV, whole or not at all; dictionaries are JSON, (R, N) arrays N columns."""

    def __init__(self, path: Path):
        self.path = path
        self._beside = path.with_name(f".{path.name}.part")

    def __enter__(self) -> "CsvWriter":
        self._file = self._beside.open("w", encoding="utf-8", newline="")
        self._csv, self._headed = csv.writer(self._file), False
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._file.close()
        if kind is None:
            self._beside.replace(self.path)
        else:
            self._beside.unlink()

    def write(self, columns: Columns) -> None:
        """Add rows."""
        wide = {name: each for name, each in columns.items() if isinstance(each, np.ndarray) and each.ndim == 2}
        if not self._headed:
            spread = {name: [f"{name}_{n}" for n in range(each.shape[1])] for name, each in wide.items()}
            self._csv.writerow([each for name in columns for each in spread.get(name, [name])])
            self._headed = True
        cells = [
            wide[name].tolist() if name in wide else [[_cell(value)] for value in _listed(each)]
            for name, each in columns.items()
        ]
        for row in zip(*cells, strict=True):
            self._csv.writerow([value for part in row for value in part])


def _listed(values: Any) -> list[Any]:
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, str) and value.startswith(FORMULA):
        return f"'{value}"
    return value


def export(dataset: xr.Dataset, result: xr.Dataset | None, folder: Path, kind: Kind) -> list[Path]:
    """Write the tables of a snapshot, and of a result made of it, to ``folder``; their paths.

    The table of models opens in Embedding Atlas: columns x, y, text and neighbors are what it asks for. Memory holds
    one chunk of log-likelihoods, or as many rows of the matrices.

    Raises KlrayError: the result is of another snapshot; ModuleNotFoundError: Parquet, and there is no pyarrow.
    """
    if result is not None and result.attrs.get("snapshot") != dataset.attrs.get("snapshot"):
        raise KlrayError(
            f"the result is of snapshot {result.attrs.get('snapshot')}, and what is exported is "
            f"{dataset.attrs.get('snapshot')}: name one of both"
        )
    writer_of: Callable[[Path], Writer] = CsvWriter
    if kind == "parquet":
        from klray.store.adopted.parquet import TableWriter  # noqa: PLC0415 - pyarrow is an extra

        writer_of = functools.partial(TableWriter, text_set=str(dataset.attrs.get("text_set", "")))
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []

    def table(name: str) -> Writer:
        paths.append(folder / f"{name}.{kind}")
        return writer_of(paths[-1])

    sizes = dataset["text_bytes"].values
    per_byte = np.empty(dataset.sizes["model"])
    with table("log_likelihood") as writer:
        for start, rows in _rows(dataset["log_likelihood"]):
            chosen = slice(start, start + len(rows))
            means = rows.mean(axis=1, dtype=np.float64)
            per_byte[chosen] = [bits_per_byte(-each, float(sizes.mean())) for each in means]
            keys = dataset["key"].values[chosen]
            writer.write({"model": labels(dataset)[chosen], "key": keys, "log_likelihood": rows})
    with table("texts") as writer:
        kept = {} if result is None else {"kept": result["text_kept"].values}
        domain = dataset["domain"].values.astype(object)
        writer.write({"text": np.arange(len(sizes)), "bytes": sizes, "domain": domain, **kept})
    with table("models") as writer:
        writer.write(_models(dataset, result, per_byte))
    if result is not None and ("kl" in result or "neighbour" in result):
        with table("pairs") as writer:
            for part in _pairs(result):
                writer.write(part)
    return paths


def _rows(values: xr.DataArray) -> Iterator[tuple[int, np.ndarray]]:
    """Parts of (K, N) as they are stored, and where each begins."""
    start = 0
    for size in values.chunks[0] if values.chunks else (len(values),):
        yield start, values.isel(model=slice(start, start + size)).values
        start += size


def _models(dataset: xr.Dataset, result: xr.Dataset | None, per_byte: np.ndarray) -> dict[str, Any]:
    names = sorted(map(str, dataset.coords), key=lambda name: (name != "model", name))
    found: dict[str, Any] = {name: dataset[name].values for name in names if dataset[name].dims == ("model",)}
    found = {name: each.astype(object) if each.dtype.kind in "TU" else each for name, each in found.items()}
    found["bits_per_byte"] = per_byte
    facts = (found.get(name, np.full(len(per_byte), "")) for name in ("model", "family", "run", "architecture"))
    found["text"] = [" ".join(dict.fromkeys(str(each) for each in row if each)) for row in zip(*facts, strict=True)]
    if result is None:
        return found
    found |= {str(name): each.values for name, each in result.data_vars.items() if each.dims == ("model",)}
    for name in MAPS:
        if name in result:
            found |= {f"{name}_{axis}": result[name].values[:, axis] for axis in (0, 1)}
    named = next((name for name in MAPS if name in result), None)
    if named:
        found["x"], found["y"] = result[named].values[:, 0], result[named].values[:, 1]
    if "neighbour" in result or "kl" in result:
        found["neighbors"] = [{"ids": ids.tolist(), "distances": kl.tolist()} for ids, kl in _nearest(result)]
    return found


def _nearest(result: xr.Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions and KL of the nearest of each model, nearest first; none of an excluded one."""
    if "neighbour" in result:
        for ids, kl in zip(result["neighbour"].values, result["neighbour_kl"].values, strict=True):
            yield ids[ids >= 0], kl[ids >= 0]
        return
    excluded = result["excluded"].values
    for start in range(0, result.sizes["model"], ROWS):
        part = result["kl"].isel(model=slice(start, start + ROWS)).values
        for model, row in enumerate(part, start):
            row = np.where(excluded | (np.arange(len(row)) == model), np.inf, row)
            ids = np.argsort(row, kind="stable")[:NEIGHBOURS]
            ids = ids[np.isfinite(row[ids])] if not excluded[model] else ids[:0]
            yield ids, row[ids]


def _pairs(result: xr.Dataset) -> Iterator[Columns]:
    """Each pair once, of all pairs; of neighbours as they are kept."""
    names = labels(result).astype(object)
    for start in range(0, result.sizes["model"], ROWS):
        rows = {"model": slice(start, start + ROWS)}
        if "kl" in result:
            kl, error = (result[name].isel(rows).values for name in ("kl", "kl_standard_error"))
            first, second = np.triu_indices(kl.shape[0], 1 + start, kl.shape[1])
            second_of = second
        else:
            kl, error = (result[name].isel(rows).values for name in ("neighbour_kl", "neighbour_kl_standard_error"))
            position = result["neighbour"].isel(rows).values
            first, second = np.nonzero(position >= 0)
            second_of = position[first, second]
        yield {
            "model": names[first + start],
            "other": names[second_of],
            "kl": kl[first, second],
            "kl_standard_error": error[first, second],
        }
