"""Model cards: the metadata at the head of a README.md, which anybody writes, read within bounds."""

from pathlib import Path
from typing import Any

import yaml

from klray.words.outside import DEEPEST, beginning, one_line, printable

CARD = "README.md"
CARD_BYTES = 1 << 16  # read of one: YAML takes up to 30 s a megabyte
_FENCE = "---"
# What YAML's reader raises of values that are not what their tags say, beside its own errors.
_UNREADABLE = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


class CardError(ValueError):
    """A card that cannot be read; the words go on from its name."""


def card_metadata(card: Path) -> dict[str, Any]:
    """Metadata at the head of a card, {} where there are none.

    Raises CardError: they are no mapping in YAML, refer to each other, which costs without bound, or do not end within
    `CARD_BYTES`; the card is no regular file. FileNotFoundError: there is no card.
    """
    try:
        body = beginning(card, CARD_BYTES + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise CardError(f"cannot be read: {printable(str(error))}") from error
    first, *lines = body.decode("utf-8-sig", "replace").lstrip().splitlines() or [""]
    if first.rstrip() != _FENCE:
        return {}
    end = next((number for number, line in enumerate(lines) if line.rstrip() == _FENCE), None)
    if end is None:
        if len(body) <= CARD_BYTES:
            return {}
        raise CardError(f"has metadata that do not end within {CARD_BYTES:,} bytes")
    try:
        found = yaml.load("\n".join(lines[:end]), _Plain)  # noqa: S506 - a SafeLoader that takes less
    except _UNREADABLE as error:
        words = f"{type(error).__name__}: {printable(one_line(str(error)))}"
        raise CardError(f"has metadata that are no plain YAML ({words})") from error
    if not isinstance(found, dict | None):
        raise CardError(f"has metadata that are a {type(found).__name__}, no mapping")
    return found or {}


class _Plain(yaml.SafeLoader):
    """YAML without aliases and merged keys, with which time and memory grow exponentially with the text.

    Open brackets are looked at with every token, so that there are few.
    """

    def fetch_flow_collection_start(self, kind: type[yaml.Token]) -> None:
        if self.flow_level >= DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {DEEPEST} levels deep")
        super().fetch_flow_collection_start(kind)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases, which are refused")
        return super().compose_node(parent, index)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("it has merged keys, which are refused")
        super().flatten_mapping(node)
