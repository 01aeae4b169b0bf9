"""Serving the embedded family on this machine's hub for the length of a job."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from klray.checkpoints import Hub
from klray.errors import KlrayError
from klray.tiny.family import train_family
from klray.tiny.hub_server import local_hub
from klray.tiny.study_recipe import RECIPES


def embedded_root(recipe: str) -> Path:
    """Folder of the embedded family as hub repositories; trains what is missing.

    Raises KlrayError if there is no such recipe, or its training failed.
    """
    if recipe not in RECIPES:
        raise KlrayError(f"models.recipe={recipe}: choose {' or '.join(RECIPES)}")
    return train_family(RECIPES[recipe])


@contextlib.contextmanager
def embedded_hub(recipe: str) -> Iterator[Hub]:
    """The hub of the embedded family, in a process of its own for the length of the context."""
    with local_hub(embedded_root(recipe)) as (endpoint, token):
        yield Hub(endpoint, token)
