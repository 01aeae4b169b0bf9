"""The scale as the published code has it, where klray's own differs by choice: shimo-lab/modelmap, kl-scale.

Shapes: K = models of the snapshot, P = pairs. Pairs are two positions in the snapshot.
"""

from dataclasses import replace

import numpy as np
import xarray as xr

from klray.analysis.defaults import Choice
from klray.analysis.recipe import KNOWN_ANOMALIES, PUBLISHED, Exclusion, Recipe
from klray.analysis.runs import Run
from klray.analysis.scale.choosing_pairs import setting_pairs
from klray.analysis.scale.compared_models import Models
from klray.analysis.scale.generations import lineages

EXCLUDED: tuple[Exclusion, ...] = tuple(each for each in KNOWN_ANOMALIES if each.reason == PUBLISHED)
MEANING = (
    "As published: later, early and size are of runs of the sizes {sizes}, with one recipe fitted to these runs; seed "
    "has a recipe fitted to its own runs; everything else is neither clipped nor without outlier texts. 4-bit is fp4."
)
_OF_RUNS, _OF_SEEDS = ("later", "early", "size"), ("seed",)


def published_pairs(models: Models, choice: Choice) -> dict[str, np.ndarray]:
    """Pairs by setting: as ``setting_pairs`` but for runs of other sizes than ``choice.sizes``, and what is drawn.

    The first and the last ``choice.number`` pairs of a run count whole, also where they overlap. Random pairs are drawn
    with replacement from the models that are in fine-tuning pairs, within each architecture class of the children.
    """
    chosen = [run for run in models.runs if not choice.sizes or run.size in choice.sizes]
    models = replace(models, runs=chosen)
    of_runs, _ = _runs(models, choice)
    found = setting_pairs(models, choice)
    for name in ("early", "later"):
        found[name] = np.concatenate([_window(run, choice, name) for run in of_runs] or [np.empty((0, 2), np.int64)])
    found["4-bit"] = found.pop("4-bit fp4", found["4-bit"])
    children = lineages(models).pairs
    types = models.labels["architecture"]
    within, everybody = [], set[int]()
    for number, name in enumerate(sorted(set(types[children[:, 0]].tolist()) - {""})):
        related = children[types[children[:, 0]] == name]
        everybody |= set(related.ravel().tolist())
        generator = np.random.default_rng([choice.seed, 3, number])
        within.append(_drawn(np.unique(related), choice.draws or len(related), generator))
    found["intra-type"] = np.concatenate(within) if within else np.empty((0, 2), np.int64)
    generator = np.random.default_rng([choice.seed, 4])
    found["random"] = _drawn(np.array(sorted(everybody), dtype=np.int64), choice.draws or len(children), generator)
    return found


def published_parts(
    dataset: xr.Dataset, models: Models, choice: Choice
) -> list[tuple[xr.DataArray, tuple[str, ...] | None, Recipe | None]]:
    """Values with the settings that are measured on them (None: all others), and their recipe if there is one."""
    parts: list[tuple[xr.DataArray, tuple[str, ...] | None, Recipe | None]] = []
    models = replace(models, runs=[run for run in models.runs if not choice.sizes or run.size in choice.sizes])
    for names, runs in zip((_OF_RUNS, _OF_SEEDS), _runs(models, choice), strict=True):
        if runs:
            members = np.sort(np.concatenate([run.models for run in runs]))
            recipe = Recipe.fit(dataset.isel(model=members), exclude=EXCLUDED, exclude_misplaced=False)
            parts.append((recipe.apply(dataset), names, recipe))
    raw = dataset["log_likelihood"].transpose("model", "text")
    return [*parts, (raw, None, None)]


def _runs(models: Models, choice: Choice) -> tuple[list[Run], list[Run]]:
    """The runs that are compared by step and size, and those that are compared by seed."""
    pairs = setting_pairs(models, choice)
    at = {name: set(pairs[name].ravel().tolist()) for name in ("seed", "size")}
    of_seeds = [run for run in models.runs if at["seed"] & set(run.models.tolist())]
    names = {run.name for run in of_seeds}
    of_runs = [run for run in models.runs if run.name not in names or at["size"] & set(run.models.tolist())]
    return of_runs, of_seeds


def _window(run: Run, choice: Choice, name: str) -> np.ndarray:
    usable = (np.diff(run.steps) == choice.spacing) & (run.steps[1:] > choice.min_step)
    pairs = np.stack([run.models[:-1], run.models[1:]], axis=1)[usable]
    return pairs[: choice.number] if name == "early" else pairs[-choice.number :]


def _drawn(places: np.ndarray, wanted: int, generator: np.random.Generator) -> np.ndarray:
    if len(places) < 2:
        return np.empty((0, 2), np.int64)
    return np.array([generator.choice(places, 2, replace=False) for _ in range(wanted)], dtype=np.int64).reshape(-1, 2)
