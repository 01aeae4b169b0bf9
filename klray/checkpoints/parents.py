"""Lineage: which models a model was made from, and how, as the metadata of its card says."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from klray.words.outside import fit

# What the hub calls the ways from a parent to a child; "" where neither the card nor the hub says.
RELATIONS = ("finetune", "adapter", "merge", "quantized")
_ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True)
class Lineage:
    """The parents of a model: repositories in the card's order, each once and without the model itself.

    ``relation`` is one of ``RELATIONS`` or "": several parents are a merge, whatever else is said of them. ``revision``
    is that of the single parent, when one is named (``org/name@revision``), else ""; ``unread`` why a card could not be
    read, else "".
    """

    parents: tuple[str, ...] = ()
    relation: str = ""
    revision: str = ""
    unread: str = ""

    @property
    def single(self) -> str:
        """The single parent; "" when there is none, or several."""
        return self.parents[0] if len(self.parents) == 1 else ""


def lineage_of(repository: str, info: Mapping[str, Any]) -> Lineage:
    """Lineage from the hub's answer about a model (``/api/models/{repository}``).

    Parents are ``cardData.base_model``, a name or a list of names. The relation is ``cardData.base_model_relation``;
    else what the hub worked out, which is in the tags as ``base_model:<relation>:<parent>``; else several parents are
    a merge, and one parent with an adapter's config among the files is an adapter's.
    """
    card = info.get("cardData") or {}
    card = card if isinstance(card, Mapping) else {}
    named = card.get("base_model") or []
    named = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    found = parsed_parents(each for each in named if isinstance(each, str))
    parents = tuple(parent for parent in found if parent != repository)
    if not parents:
        return Lineage()
    said = [card.get("base_model_relation"), *_tagged(info.get("tags"))]
    relation = next((each for each in said if each in RELATIONS), "")
    files = [str(each.get("rfilename")) for each in info.get("siblings") or [] if isinstance(each, Mapping)]
    if len(parents) > 1:
        relation = "merge"
    elif not relation and _ADAPTER_FILE in files:
        relation = "adapter"
    return Lineage(parents, relation, found[parents[0]] if len(parents) == 1 else "")


def parsed_parents(names: Iterable[str]) -> dict[str, str]:
    """Parents with the revision that is named for each, "" for none: ``org/name@revision`` or ``org/name``.

    A path, which begins with / or a dot, is taken as it is. Names are made fit to be kept (`klray.words.outside.fit`).
    """
    parents: dict[str, str] = {}
    for name in map(fit, names):
        parent, _, revision = (name.strip(), "", "") if name.startswith(("/", ".")) else name.strip().partition("@")
        if parent:
            parents.setdefault(parent, revision)
    return parents


def _tagged(tags: Any) -> list[str]:
    """Relations in the tags, such as ``base_model:finetune:org/name``."""
    parts = [str(tag).split(":") for tag in tags] if isinstance(tags, list) else []
    return [part[1] for part in parts if len(part) > 2 and part[0] == "base_model"]
