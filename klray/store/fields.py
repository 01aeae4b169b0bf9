"""Fields of records, whoever wrote them: each is of the type and form that its record declares, or the record is none.

Everything that comes from an object passes here when it becomes a value: what is built of it later (paths, sizes, rows)
needs no further look.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from klray.words.outside import LONGEST, printable

T = TypeVar("T")

LONGEST_TEXT = 65_536  # letters; messages of failures
MOST_TEXTS = 2**25  # 134 MB a model
MOST_MODELS = 2**24
MOST_LAYERS = 10_000  # of a model

SHA256 = re.compile(r"[0-9a-f]{64}")
ATTEMPT = re.compile(r"[0-9a-f]{8,64}")


def record(kind: type[T], fields: Any) -> T:
    """``kind``, a dataclass, of the parsed JSON of its fields.

    Raises ValueError: a field is missing, unknown, or not of its type.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"it holds a {type(fields).__name__}")
    declared = {each.name: each for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(fields) - set(declared)):
        raise ValueError(f"it has fields that klray does not know: {', '.join(map(shown, unknown[:3]))}")
    needed = {name for name, each in declared.items() if each.default is each.default_factory is dataclasses.MISSING}
    if missing := sorted(needed - set(fields)):
        raise ValueError(f"it has no {', '.join(missing)}")
    kinds = typing.get_type_hints(kind)
    return kind(**{name: _typed(name, kinds[name], value) for name, value in fields.items()})


def form(pattern: re.Pattern[str], **values: str) -> None:
    """Raises ValueError: one of ``values`` does not match ``pattern`` whole."""
    for name, value in values.items():
        if not pattern.fullmatch(value):
            raise ValueError(f"its {name} is {shown(value)}")


def bounded(most: int, least: int = 0, **values: int) -> None:
    """Raises ValueError: one of ``values`` is below ``least`` or above ``most``."""
    for name, value in values.items():
        if not least <= value <= most:
            raise ValueError(f"its {name} is {shown(value)}")


def names(**values: str) -> None:
    """Raises ValueError: one of ``values`` cannot be a name: too long, or with control characters."""
    for name, value in values.items():
        if len(value) > LONGEST or not value.isprintable():
            raise ValueError(f"its {name} is {shown(value)}")


def shown(value: object) -> str:
    """A value as an error may repeat it."""
    return printable(ascii(value), 60)


def _typed(name: str, kind: Any, value: Any) -> Any:
    """``value`` as ``kind`` says it is in memory: lists become tuples, objects records."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(name, inner[0], each) for each in value)
    if origin is dict and isinstance(value, dict):
        return {key: _typed(name, inner[1], each) for key, each in value.items()}
    if dataclasses.is_dataclass(kind):
        return record(typing.cast(type[Any], kind), value)
    if origin is typing.Literal:
        kind = str
    if kind is not Any and not _is(kind, value):
        raise ValueError(f"its {name} is {shown(value)}")
    return value


def _is(kind: Any, value: Any) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
    if kind is float:
        return isinstance(value, float) or _is(int, value)  # a larger integer is no float
    if kind is str:
        return isinstance(value, str) and len(value) <= LONGEST_TEXT
    return not isinstance(kind, types.GenericAlias) and isinstance(value, kind)


def objects_of(hashes: Mapping[str, str], pattern: re.Pattern[str]) -> None:
    """Raises ValueError: a key of ``hashes`` does not match ``pattern``, or a value is no SHA-256."""
    for key, sha256 in hashes.items():
        form(pattern, objects=key)
        form(SHA256, objects=sha256)
