"""The page's script and style as they stand in the one HTML file."""

import importlib.resources
import re

_IMPORT = re.compile(r'^import .* from "\./(\w+)\.js";\n', re.M)
_DROPPED = re.compile(r"^\s*(//.*)?\n|^[ \t]+|^export (?=const|function|async|class)", re.M)


def script(module: str = "main") -> str:
    """The module and all that it imports, each once and after what it imports itself, as one module.

    They share one scope there, so names at the top of the modules differ; comments and indentation are left out, so no
    line of a module ends within a string.
    """
    found: dict[str, str] = {}

    def add(name: str) -> None:
        if name not in found:
            text = _read(f"script/{name}.js")
            found[name] = ""  # a circle ends here
            for imported in _IMPORT.findall(text):
                add(imported)
            found[name] = found.pop(name) + _DROPPED.sub("", _IMPORT.sub("", text))

    add(module)
    return "\n" + "".join(found.values())


def style() -> str:
    """The style sheet, without indentation."""
    return re.sub(r"^\s+", "", _read("style.css"), flags=re.M)


def _read(name: str) -> str:
    return importlib.resources.files("klray.report").joinpath(name).read_text(encoding="utf-8")
