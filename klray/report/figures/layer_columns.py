"""Whose layers are drawn, and by which name: the same in every figure of layers."""

import numpy as np
import xarray as xr

from klray.analysis.facts import facts, strings
from klray.report.figures.panels import COLORS
from klray.report.figures.style import MARKERS

MAX_MODELS = len(COLORS)  # that are told apart


def latest_models(result: xr.Dataset, rows: np.ndarray) -> list[tuple[str, list[np.ndarray]]]:
    """Name and columns of up to `MAX_MODELS` models among these rows; a column is (L,) rows of its layers in order.

    Of each repository the last step counts first, then the last but one of each, and so on. Sorted by repository and
    revision, so that a model has the same place in every figure.
    """
    repositories, revisions, keys = (strings(result, name) for name in ("repository", "revision", "key"))
    steps, layers = facts(result, "step", -1), result["layer"].values
    latest: dict[str, list[str]] = {}
    for row in rows[np.argsort(-steps[rows], kind="stable")]:
        of = latest.setdefault(str(repositories[row]), [])
        if revisions[row] not in of:
            of.append(str(revisions[row]))
    ranked = sorted((place, name, of) for name, each in latest.items() for place, of in enumerate(each))
    chosen = sorted((repository, revision) for _, repository, revision in ranked[:MAX_MODELS])
    found = []
    for name, (repository, revision) in zip(_names(chosen), chosen, strict=True):
        own = rows[(repositories[rows] == repository) & (revisions[rows] == revision)]
        columns = [own[keys[own] == key] for key in dict.fromkeys(keys[own].tolist())]
        found.append((name, [column[np.argsort(layers[column])] for column in columns]))
    return found


def look(at: int) -> tuple[str, str]:
    """Colour and marker of the model at that place."""
    return COLORS[at % len(COLORS)], MARKERS[at % len(MARKERS)]


def _names(models: list[tuple[str, str]]) -> list[str]:
    """The last part of each repository with the revision, the last two parts if one is not enough."""
    for parts in (1, 2):
        names = [f"{'/'.join(repository.rsplit('/', parts)[-parts:])}@{revision}" for repository, revision in models]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]
