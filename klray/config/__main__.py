"""The configuration reference, from the dataclasses and the comments beside their fields: docs/configuration.md."""

import sys

from klray.config.keys import Key, choices_of, first_line, groups, keys

HEAD = """# Configuration

Every key that a job can be told, from the classes of `klray/config/`. This page is made by `make reference`; a test
holds that it is what the classes say.

    klray VERB group.key=value group=choice

`klray VERB --cfg job` prints all keys with their values. A choice is a file of `conf/`, with values for its group.
"""


def reference() -> str:
    """The page, as Markdown."""
    return HEAD + "".join(_group(name, kind) for name, kind in groups().items())


def _group(name: str, kind: type) -> str:
    choices = choices_of(name)
    choosing = f"\nChoices: {', '.join(f'`{name}={each}`' for each in choices)}.\n" if choices else ""
    table = "\n| key | type | default | |\n|---|---|---|---|\n" + "".join(map(_row, keys(name, kind)))
    return f"\n## {name}\n\n{first_line(kind)}\n{choosing}{table}"


def _row(key: Key) -> str:
    kind = ", ".join(f"`{each}`" for each in key.values) or key.kind
    cells = (f"`{key.name}`", kind, f"`{key.default}`" if key.default else "", key.comment)
    return "| " + " | ".join(each.replace("|", "\\|") for each in cells).rstrip() + " |\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
