"""The configuration reference, from the dataclasses and the comments beside their fields: docs/configuration.md."""

import ast
import dataclasses
import importlib
import inspect
import sys
import textwrap
import typing
from enum import Enum
from pathlib import Path
from typing import Any

import conf
from klray.config import Config
from klray.config.choices import CHOICES

HEAD = """# Configuration

Every key that a job can be told, from the classes of `klray/config/`. This page is made by `make reference`; a test
holds that it is what the classes say.

    klray VERB group.key=value group=choice

`klray VERB --cfg job` prints all keys with their values. A choice is a file of `conf/`, with values for its group.
"""


def reference() -> str:
    """The page, as Markdown."""
    hints = typing.get_type_hints(Config)
    return HEAD + "".join(_group(each.name, hints[each.name]) for each in dataclasses.fields(Config))


def _group(name: str, kind: type) -> str:
    folder = Path(str(conf.__file__)).parent / name
    choices = sorted(path.stem for path in folder.glob("*.yaml"))
    choosing = f"\nChoices: {', '.join(f'`{name}={each}`' for each in choices)}.\n" if len(choices) > 1 else ""
    table = "\n| key | type | default | |\n|---|---|---|---|\n" + "".join(_rows(name, kind))
    return f"\n## {name}\n\n{_first_line(kind)}\n{choosing}{table}"


def _rows(name: str, kind: type) -> list[str]:
    hints, comments = typing.get_type_hints(kind), _comments(kind)
    rows = []
    for field in dataclasses.fields(kind):
        kinds = ", ".join(f"`{each}`" for each in field.metadata.get(CHOICES, ())) or _type(hints[field.name])
        cells = (f"`{name}.{field.name}`", kinds, _default(field), comments.get(field.name, ""))
        rows.append("| " + " | ".join(each.replace("|", "\\|") for each in cells).rstrip() + " |\n")
        inner = next((each for each in typing.get_args(hints[field.name]) if dataclasses.is_dataclass(each)), None)
        rows += _rows(f"{name}.{field.name}[]", typing.cast(type, inner)) if inner else []
    return rows


def _type(kind: Any) -> str:
    """A type in a user's words."""
    parts = typing.get_args(kind)
    if type(None) in parts:
        return _type(next(each for each in parts if each is not type(None)))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{each.value}`" for each in kind)
    origin = typing.get_origin(kind)
    if origin is list:
        return f"list of {_type(parts[0])}"
    words = {int: "whole number", float: "number", str: "text", bool: "true or false", dict: "keys and values"}
    return words.get(origin or kind, "" if kind is Any else getattr(kind, "__name__", str(kind)))


def _default(field: "dataclasses.Field[Any]") -> str:
    value = field.default if field.default is not dataclasses.MISSING else typing.cast(Any, field.default_factory)()
    value = value.value if isinstance(value, Enum) else value
    if value is None or value == "" or value in ([], {}):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


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


def _first_line(kind: type) -> str:
    module = importlib.import_module(kind.__module__)
    return (inspect.getdoc(kind) or inspect.getdoc(module) or "").splitlines()[0]


if __name__ == "__main__":
    sys.stdout.write(reference())
