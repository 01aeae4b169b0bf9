"""Keys that take one of a few words: looked at when the config is read, before anything is made of it.

What is an Enum is looked at by OmegaConf. These are words of the library, which takes them as they are.
"""

import dataclasses
from typing import Any

from klray.errors import KlrayError

CHOICES = "choices"


def one_of(default: Any, *choices: str) -> Any:
    """A field of a group that takes one of ``choices``; None, too, where that is its default."""
    return dataclasses.field(default=default, metadata={CHOICES: choices})


def check_choices(config: Any, within: str = "") -> None:
    """Raise the KlrayError that names a key with another word than it takes, and those that it takes."""
    for field in dataclasses.fields(config):
        value, choices = getattr(config, field.name), field.metadata.get(CHOICES)
        if dataclasses.is_dataclass(value):
            check_choices(value, f"{within}{field.name}.")
        elif choices and value not in (field.default, *choices):
            raise KlrayError(f"{within}{field.name}={value}: write {', '.join(choices[:-1])} or {choices[-1]}")
