"""Every key of every group, from the dataclasses and the comments beside their fields."""

import ast
import dataclasses
import importlib
import inspect
import textwrap
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import conf
from klray.config import Config
from klray.config.choices import CHOICES


class Key(NamedTuple):
    """One key, as a user is told of it."""

    name: str  # group.key; [] for those of the things in a list
    values: tuple[str, ...]  # the words that it takes, where they are few
    kind: str  # else its type in a user's words
    default: str
    comment: str


def groups() -> dict[str, type]:
    """The dataclass of each group, by its name."""
    hints = typing.get_type_hints(Config)
    return {each.name: hints[each.name] for each in dataclasses.fields(Config)}


def choices_of(group: str) -> list[str]:
    """Files of ``conf/`` with values for a group; none where there is but one."""
    found = sorted(path.stem for path in (Path(str(conf.__file__)).parent / group).glob("*.yaml"))
    return found if len(found) > 1 else []


def first_line(kind: type) -> str:
    """What a group is, in a sentence."""
    module = importlib.import_module(kind.__module__)
    return (inspect.getdoc(kind) or inspect.getdoc(module) or "").splitlines()[0]


def keys(name: str, kind: type) -> Iterator[Key]:
    """Keys of the group of that name, and of what is in its lists."""
    hints, comments = typing.get_type_hints(kind), _comments(kind)
    for field in dataclasses.fields(kind):
        values = field.metadata.get(CHOICES, ()) or _values(hints[field.name])
        kind_words = "" if values else _type(hints[field.name])
        yield Key(f"{name}.{field.name}", values, kind_words, _default(field), comments.get(field.name, ""))
        inner = next((each for each in typing.get_args(hints[field.name]) if dataclasses.is_dataclass(each)), None)
        if inner:
            yield from keys(f"{name}.{field.name}[]", typing.cast(type, inner))


def _values(kind: Any) -> tuple[str, ...]:
    parts = [each for each in (kind, *typing.get_args(kind)) if isinstance(each, type) and issubclass(each, Enum)]
    in_list = typing.get_origin(kind) is list
    return tuple(str(each.value) for each in parts[0]) if parts and not in_list else ()


def _type(kind: Any) -> str:
    """A type in a user's words."""
    parts = typing.get_args(kind)
    if type(None) in parts:
        return _type(next(each for each in parts if each is not type(None)))
    origin = typing.get_origin(kind)
    if origin is list:
        return f"list of {', '.join(_values(parts[0])) or _type(parts[0])}"
    words = {int: "whole number", float: "number", str: "text", bool: "true or false", dict: "keys and values"}
    return words.get(origin or kind, "" if kind is Any else getattr(kind, "__name__", str(kind)))


def _default(field: "dataclasses.Field[Any]") -> str:
    value = field.default if field.default is not dataclasses.MISSING else typing.cast(Any, field.default_factory)()
    value = value.value if isinstance(value, Enum) else value
    if isinstance(value, list) and value and all(isinstance(each, Enum) for each in value):
        value = f"[{', '.join(each.value for each in value)}]"
    if value is None or value == "" or value in ([], {}):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _comments(kind: type) -> dict[str, str]:
    """The comment beside each field, or above it; those of a field that is another class's default, from there."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        lines = textwrap.dedent(inspect.getsource(each)).splitlines()
        body = next(node for node in ast.parse("\n".join(lines)).body if isinstance(node, ast.ClassDef)).body
        for node in body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = _comment(lines, node.lineno - 1, (node.end_lineno or node.lineno) - 1)
    return found


def _comment(lines: list[str], first: int, last: int) -> str:
    words = [lines[last].partition("  # ")[2]]
    while first and lines[first - 1].lstrip().startswith("# "):
        first -= 1
        words.insert(0, lines[first].lstrip().removeprefix("# "))
    return " ".join(filter(None, words))
