"""Tables in Parquet, read and written: the only door to pyarrow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from klray.errors import KlrayError
from klray.store.adopted.pickles import Array
from klray.words.outside import printable

TEXT_SET = b"klray.text_set"  # in the metadata of a table: the fingerprint of its texts
LARGEST_TABLE = 2**32  # bytes in memory
VALUES = "log_likelihood"


class TableWriter:
    """A Parquet file that is written part by part, whole or not at all; ``text_set`` is kept in its metadata."""

    def __init__(self, path: Path, text_set: str = ""):
        self.path = path
        self._beside = path.with_name(f".{path.name}.part")
        self._text_set = text_set
        self._writer: Any = None

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
        if kind is None:
            self._beside.replace(self.path)
        else:
            self._beside.unlink(missing_ok=True)

    def write(self, columns: Mapping[str, Any]) -> None:
        """Add rows: columns are arrays, lists, or lists of dictionaries; (R, N) arrays become lists of N values."""
        table = pa.table({name: _column(values) for name, values in columns.items()})
        if self._writer is None:
            metadata = {TEXT_SET: self._text_set.encode()} if self._text_set else {}
            self._writer = pq.ParquetWriter(self._beside, table.schema.with_metadata(metadata), compression="zstd")
        self._writer.write_table(table.replace_schema_metadata(self._writer.schema.metadata))


def _column(values: Any) -> pa.Array:
    if not isinstance(values, np.ndarray):
        return pa.array(values)
    if values.ndim == 1:
        return pa.array(values.astype(object) if values.dtype.kind in "TU" else values)
    offsets = np.arange(len(values) + 1, dtype=np.int64) * values.shape[1]
    return pa.LargeListArray.from_arrays(offsets, pa.array(values.ravel()))


def read_table(path: Path, n_texts: int) -> Any:
    """Models of a Parquet file: a row for each with its name and a list of values, or a column of values for each."""
    try:
        with pq.ParquetFile(path) as file:
            sizes = (file.metadata.row_group(each).total_byte_size for each in range(file.metadata.num_row_groups))
            if sum(sizes) > LARGEST_TABLE:
                raise KlrayError(f"adopt.path={path.name} holds more than {LARGEST_TABLE:,} bytes: make several of it")
            table = file.read()
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, KlrayError):
            raise
        raise KlrayError(f"adopt.path={path.name} is no Parquet that can be read: {printable(str(error))}") from error
    text_set = (table.schema.metadata or {}).get(TEXT_SET, b"").decode("ascii", "replace")
    lists = [field.name for field in table.schema if pa.types.is_list(field.type) or pa.types.is_large_list(field.type)]
    if VALUES not in lists:
        return {"text_set": text_set, **{name: _values(table[name]) for name in table.column_names}}
    told = [name for name in table.column_names if name not in lists]
    rows = table.select(told).to_pylist()
    values = table[VALUES]
    return [{**row, "text_set": text_set, VALUES: _values(values[number].values)} for number, row in enumerate(rows)]


def _values(column: Any) -> Array:
    found = Array()
    found.values = np.empty(0) if column is None else column.to_numpy()
    return found
