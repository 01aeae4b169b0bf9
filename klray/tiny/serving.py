"""Serving the embedded family on this machine's hub for the length of a job."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from klray.errors import KlrayError
from klray.tiny.family import train_family
from klray.tiny.family_recipe import DEFAULT, SMALLEST
from klray.tiny.hub_server import local_hub
from klray.tiny.study_recipe import STUDY

RECIPES = {"default": DEFAULT, "smallest": SMALLEST, "study": STUDY}


def embedded_root(recipe: str) -> Path:
    """Folder of the embedded family as hub repositories; trains what is missing.

    Raises
    ------
    KlrayError
        There is no such recipe, or its training failed.
    """
    if recipe not in RECIPES:
        raise KlrayError(f"models.recipe={recipe}: choose {' or '.join(RECIPES)}")
    return train_family(RECIPES[recipe])


@contextlib.contextmanager
def embedded_hub(recipe: str) -> Iterator[None]:
    """Serve the embedded family: inside, HF_ENDPOINT and HF_TOKEN lead to it; nothing else is different."""
    with local_hub(embedded_root(recipe)) as (endpoint, token), _environment(HF_ENDPOINT=endpoint, HF_TOKEN=token):
        yield


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
