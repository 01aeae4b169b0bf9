"""Models and their log-likelihoods as files hold them: pickles, NPZ, JSON and Parquet.

Shapes: K = models, N = texts. What publications and klray's own export write is told apart by what is in it:

    {name: values}                               a dictionary of (N,) values, as of 1,018 models (arXiv:2502.16173)
    [{"model_name": ..., "log-likelihood...": values, ...}]    one dictionary for each model, with facts
    {name: {number: values}}                     steps of runs, or layers of models (arXiv:2505.15353)
    {"model": [names], "log_likelihood": (K, N)}
"""

import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from klray.errors import KlrayError
from klray.store.adopted.pickles import Array, read_pickle
from klray.store.fields import MOST_MODELS
from klray.words.numbers import counted
from klray.words.outside import contents, fit, parsed, printable

Inner = Literal["", "steps", "layers"]

KINDS = (".pkl", ".pickle", ".npz", ".json", ".parquet")
JSON_BYTES = 2**28  # 1,018 models and 10,000 texts with all digits have 203 MB
MOST_BRACKETS = 2**20  # of JSON: lists and dictionaries
MATRIX_BYTES = 2**31
NAMES = ("model_name", "model", "names", "models")
_VALUES = re.compile(r"log[-_ ]?likelihoods?([-_].*)?|logp")
TEXT_SET = "text_set"  # fingerprint, where a file says it


@dataclass(frozen=True)
class Published:
    """One model of a file: its name there, (N,) nats by layer (-1: its own output), and what is said of it."""

    name: str
    values: dict[int, np.ndarray]
    step: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedFile:
    """A file of log-likelihoods. ``models`` gives them one by one; ``without`` are names that have no values."""

    name: str
    models: Callable[[], Iterator[Published]]
    without: tuple[str, ...] = ()
    text_set: str = ""  # fingerprint of its texts, if the file says it


def read_published(path: Path, n_texts: int, inner: Inner = "") -> PublishedFile:
    """Open a file of log-likelihoods of ``n_texts`` texts; ``inner`` says what the inner numbers of a nested one are.

    Raises KlrayError: there is none, it is of another kind, or what it holds is no log-likelihoods of so many texts.
    """
    kind = path.suffix.lower()
    if not path.is_file():
        raise KlrayError(f"adopt.path={path}: there is no such file")
    if kind not in KINDS:
        raise KlrayError(f"adopt.path={path.name}: klray reads {', '.join(KINDS)}; save it as one of these")
    if kind == ".npz":
        return _arranged(path, _npz(path, n_texts), n_texts, inner, math.inf)
    if kind == ".parquet":
        from klray.store.adopted.parquet import read_table  # noqa: PLC0415 - pyarrow is an extra

        return _arranged(path, read_table(path, n_texts), n_texts, inner, math.inf)
    found = _json(path) if kind == ".json" else read_pickle(path)
    return _arranged(path, found, n_texts, inner, path.stat().st_size)


def _json(path: Path) -> Any:
    try:
        body = contents(path, JSON_BYTES)
        if body.count(b"[") + body.count(b"{") > MOST_BRACKETS:
            raise ValueError(f"more than {MOST_BRACKETS:,} lists and dictionaries")
        return parsed(body)
    except ValueError as error:
        raise KlrayError(f"adopt.path={path.name} is no JSON that klray reads: {error}; save it as NPZ") from error


def _npz(path: Path, n_texts: int) -> dict[str, Any]:
    """Arrays of an NPZ file, each read when it is asked for: nothing in it is a pickle, and no zip unfolds too far."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        found: dict[str, Any] = {}
        for each in entries:
            found[each.filename.removesuffix(".npy")] = _Member(path, each.filename, n_texts)
        for name in (*NAMES, TEXT_SET):
            if name in found:
                read = found[name].read(labels=True)
                found[name] = str(read) if read.ndim == 0 else [str(each) for each in read.ravel()]
        return found
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError, RuntimeError) as error:
        if isinstance(error, KlrayError):
            raise
        raise KlrayError(f"adopt.path={path.name} is no NPZ file that klray reads: {error}; save it anew") from error


@dataclass(frozen=True)
class _Member:
    """An array in an NPZ file."""

    path: Path
    name: str
    n_texts: int

    def read(self, labels: bool = False) -> np.ndarray:
        """Its values; ValueError or KlrayError if they are no numbers (or ``labels``), or more than belong there."""
        with zipfile.ZipFile(self.path) as archive, archive.open(self.name) as stream:
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(stream)
            if dtype.kind not in ("U" if labels else "fiub"):
                raise KlrayError(f"adopt.path={self.path.name}: {printable(self.name)} holds no numbers ({dtype})")
            needed = math.prod(shape) * dtype.itemsize
            if needed > MATRIX_BYTES:
                raise KlrayError(f"adopt.path={self.path.name}: {printable(self.name)} claims {needed:,} bytes")
            if not labels and (not shape or shape[-1] != self.n_texts):
                raise KlrayError(_other_texts(self.path.name, self.name, shape[-1] if shape else 0, self.n_texts))
            body = stream.read(needed)
        if len(body) != needed:
            raise ValueError(f"{self.name} is cut")
        return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")


def _arranged(path: Path, found: Any, n_texts: int, inner: Inner, most: float) -> PublishedFile:
    """The models of what was read; ``most`` numbers can be in a file of so many bytes."""
    name = path.name
    rows, text_set = _rows(name, found)
    if not 0 < len(rows) <= MOST_MODELS:
        raise KlrayError(f"adopt.path={name} holds no models: {' or '.join(KINDS)} with values by their names are read")
    without = [label for label, values, _ in rows if values is None]
    there = [(label, values, facts) for label, values, facts in rows if values is not None]
    nested = [label for label, values, _ in there if type(values) is dict]
    if nested and not inner:
        raise KlrayError(
            f"adopt.path={name}: {printable(nested[0])} has values by numbers, which may be steps of a run or layers "
            "of a model: say which, adopt.inner=steps or adopt.inner=layers"
        )
    if nested and len(nested) < len(there):
        raise KlrayError(f"adopt.path={name}: some models have values, others values by numbers: make two files of it")
    count = sum(len(values) if type(values) is dict else 1 for _, values, _ in there) * n_texts
    if count > most:
        raise KlrayError(
            f"adopt.path={name} claims {count:,} numbers in {most:,} bytes, one for each model and text: it is no "
            "file of values, or its texts are fewer than those of texts="
        )

    def models() -> Iterator[Published]:
        for label, values, facts in there:
            if type(values) is not dict:
                yield Published(label, {-1: _vector(name, label, values, n_texts)}, facts=facts)
                continue
            rows = {
                _number(name, label, number): _vector(name, f"{label}, {number}", each, n_texts)
                for number, each in values.items()
                if each is not None
            }
            if inner == "layers" and rows:
                yield Published(label, dict(sorted(rows.items())), facts=facts)
            for step, row in rows.items() if inner == "steps" else ():
                yield Published(label, {-1: row}, step, facts)

    return PublishedFile(name, models, tuple(map(printable, without)), text_set)


def _rows(name: str, found: Any) -> tuple[list[tuple[str, Any, Mapping[str, Any]]], str]:
    """(name, values, facts) of each model, and the fingerprint of the texts if the file says it."""
    text_set = ""
    if isinstance(found, list):
        rows: list[tuple[str, Any, Mapping[str, Any]]] = []
        for each in found:
            if type(each) is not dict:
                raise KlrayError(f"adopt.path={name} is a list of what are no dictionaries: values need names")
            label = next((each[key] for key in NAMES if type(each.get(key)) is str), None)
            keys = [key for key in each if type(key) is str and _VALUES.fullmatch(key)]
            if label is None or len(keys) != 1:
                raise KlrayError(
                    f"adopt.path={name}: a model has no {NAMES[0]}, or not one field called log_likelihood: "
                    "it is told from the others by that"
                )
            text_set = each.get(TEXT_SET, text_set) if type(each.get(TEXT_SET)) is str else text_set
            rows.append((label, each[keys[0]], {key: value for key, value in each.items() if key not in keys}))
        return rows, text_set
    if type(found) is not dict:
        raise KlrayError(f"adopt.path={name} holds a {type(found).__name__}: values by the names of models are read")
    if type(found.get(TEXT_SET)) is str:
        text_set = found[TEXT_SET]
        found = {key: value for key, value in found.items() if key != TEXT_SET}
    labels = next((found[key] for key in NAMES if type(found.get(key)) is list), None)
    keys = [key for key in found if type(key) is str and _VALUES.fullmatch(key)]
    if labels is not None and len(keys) == 1:
        matrix = _plain(found[keys[0]])
        fits = hasattr(matrix, "__len__") and len(matrix) == len(labels)
        if not fits or not all(type(each) is str for each in labels):
            raise KlrayError(f"adopt.path={name} has {len(labels):,} names, and not as many rows of values")
        return [(label, row, {}) for label, row in zip(labels, matrix, strict=True)], text_set
    return [(str(label), values, {}) for label, values in found.items()], text_set


def _plain(values: Any) -> Any:
    values = values.read() if isinstance(values, _Member) else values
    return values.values if type(values) is Array else values


def _vector(name: str, label: str, values: Any, n_texts: int) -> np.ndarray:
    """(N,) float64 nats."""
    values = _plain(values)
    if type(values) not in (np.ndarray, list, tuple):
        raise KlrayError(f"adopt.path={name}: {printable(label)} has a {type(values).__name__} in place of values")
    if len(values) != n_texts or np.ndim(values[0]):
        raise KlrayError(_other_texts(name, label, len(values), n_texts))
    try:
        if isinstance(values, list | tuple) and not {type(each) for each in values} <= {int, float}:
            raise TypeError("it is a list of what are no numbers")
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise KlrayError(f"adopt.path={name}: the values of {printable(label)} are no numbers: {error}") from error
    wrong = np.flatnonzero(~np.isfinite(found) | (found > 0))
    if wrong.size:
        raise KlrayError(
            f"adopt.path={name}: {printable(label)} has {found[wrong[0]]} at text {wrong[0]:,}, and the logarithm of a "
            "probability is finite and at most 0: these are no log-likelihoods, or the model failed; leave it out"
        )
    return found


def _number(name: str, label: str, number: Any) -> int:
    found = int(number) if type(number) is str and number.isdecimal() and len(number) < 19 else number
    if type(found) is not int or not 0 <= found < 2**62:
        raise KlrayError(f"adopt.path={name}: {printable(label)} has values at what is no step or layer")
    return found


def _other_texts(name: str, label: str, found: int, n_texts: int) -> str:
    return (
        f"adopt.path={name}: {printable(label)} has {counted(found, 'value')}, and the texts that were given are "
        f"{n_texts:,}: values of other texts cannot be compared; set texts= to those that the models were scored on"
    )


def told(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of a model, as klray calls it: family, size, parents."""
    kind, size = facts.get("model_type"), facts.get("model_size")
    tags = facts.get("tags")
    parts = [each.split(":") for each in tags if type(each) is str] if type(tags) is list else []
    parents = list(dict.fromkeys(fit(part[1]) for part in parts if len(part) == 2 and part[0] == "base_model"))
    relations = [part[1] for part in parts if len(part) == 3 and part[0] == "base_model"]
    found: dict[str, Any] = {}
    if type(kind) is str:
        found["family"] = fit(kind)
    if isinstance(size, int | float) and 0 < size < 1e6:
        found["size"] = f"{size:g}b"
    if parents:
        found["parents"] = ", ".join(parents)
        found["base_model"] = parents[0] if len(parents) == 1 else ""
        found["relation"] = "merge" if len(parents) > 1 else fit(relations[0]) if relations else ""
    return found
