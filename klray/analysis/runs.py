"""Runs: which models of a snapshot are checkpoints of one training run, in which order. Nothing else decides it.

Shapes: K = models of the snapshot (or of a result: both have the coordinates), T = saved checkpoints of a run.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import xarray as xr

from klray.analysis.facts import facts, labels, strings
from klray.words.numbers import listed
from klray.words.revisions import run_of

Group = TypeVar("Group", bound=Hashable)

_NAMED = 3  # other revisions in a reason
VARIANT = ("dtype", "quantization", "lens", "layer")  # runs that differ in one of these are not one run


@dataclass(frozen=True)
class Run:
    """The saved checkpoints of one run, of one dtype, quantization, lens and layer, in the order of their steps.

    ``run`` and what follows it are as the coordinates of the first checkpoint have them.
    """

    name: str  # the run's, with what sets it apart where another variant of it has two or more checkpoints, too
    models: np.ndarray  # (T,) int64, positions in the snapshot
    steps: np.ndarray  # (T,) int64, strictly increasing
    included: np.ndarray  # (T,) bool, False for a checkpoint that is excluded
    # (S,) int64, positions of further models of these steps, in whose place others stand
    superseded: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    run: str = ""
    family: str = ""
    size: str = ""
    seed: int | None = None
    parameters: int = 0  # unknown: 0
    branch: str = ""  # of its repository, such as a stage; "" where the repository is the run

    def at(self, chosen: np.ndarray) -> "Run":
        """The run cut to the checkpoints that are ``chosen`` (T,) bool."""
        return replace(self, models=self.models[chosen], steps=self.steps[chosen], included=self.included[chosen])


def by_step(groups: Iterable[Group], steps: Iterable[int]) -> dict[Group, dict[int, list[int]]]:
    """Positions by group and step, steps ascending; of who has a step (0 or more)."""
    found: dict[Group, dict[int, list[int]]] = {}
    for position, (group, step) in enumerate(zip(groups, steps, strict=True)):
        if step >= 0:
            found.setdefault(group, {}).setdefault(int(step), []).append(position)
    return {group: dict(sorted(of_group.items())) for group, of_group in found.items()}


def standing(positions: Sequence[int], excluded: np.ndarray, revisions: Sequence[str]) -> int | None:
    """Which of several models at one step of a run counts: the last, among those that are not ``excluded`` (K,) if any.

    None where these have more than one of the ``revisions`` (K,): one revision that moved was scored again, but two
    names for one step are two checkpoints, of which none can be told to be the run's.
    """
    kept = [position for position in positions if not excluded[position]] or list(positions)
    return max(kept) if len({revisions[position] for position in kept}) == 1 else None


def run_names(dataset: xr.Dataset) -> np.ndarray:
    """(K,) the run of each model, "" where it has none; of columns made before branches were runs, too."""
    names, repositories, revisions = (strings(dataset, name).tolist() for name in ("run", "repository", "revision"))
    found = zip(names, repositories, revisions, strict=True)
    return np.array([run_of(of, at) if name and name == of else name for name, of, at in found], dtype=str)


def runs(dataset: xr.Dataset, excluded: np.ndarray | None = None) -> list[Run]:
    """Runs of the snapshot: models with a ``run`` and a step, grouped also by dtype, quantization, lens and layer.

    Where a step was scored again (the same revision under two commits) the last model stands, among those that are not
    ``excluded`` (K,) if there are any. A step that two revisions claim is no step of the run: see `contested`.
    """
    out = _excluded(dataset, excluded)
    found, revisions = _grouped(dataset)
    repositories = strings(dataset, "repository")
    several = Counter(name for (name, *_), of_run in found.items() if len(of_run) > 1)
    told = {name: strings(dataset, name) for name in ("family", "size")}
    seeds, parameters = facts(dataset, "seed", -1), facts(dataset, "parameters", 0)
    result = []
    for (name, *variant), of_run in found.items():
        stand = {step: standing(positions, out, revisions) for step, positions in of_run.items()}
        at = {step: position for step, position in stand.items() if position is not None}
        if not at:
            continue
        models = np.array(list(at.values()))
        every = np.concatenate([np.array(of_run[step]) for step in at])
        first = models[0]
        result.append(
            Run(
                name=_with_variant(name, variant) if several[name] > 1 and len(models) > 1 else name,
                models=models,
                steps=np.array(list(at)),
                included=~out[models],
                superseded=np.setdiff1d(every, models),
                run=name,
                **{fact: str(values[first]) for fact, values in told.items()},
                seed=None if seeds[first] < 0 else int(seeds[first]),
                parameters=int(parameters[first]),
                branch=name.removeprefix(own) if name.startswith(own := f"{repositories[first]}@") else "",
            )
        )
    return result


def contested(dataset: xr.Dataset, excluded: np.ndarray | None = None) -> dict[str, str]:
    """Models, by label, that are in no run because another one is at the same step of it, and why."""
    names, (found, revisions) = labels(dataset), _grouped(dataset)
    runs_alone = ((name, of_run) for (name, *_), of_run in found.items())
    return {str(names[at]): why for at, why in claims(runs_alone, _excluded(dataset, excluded), revisions).items()}


def claims(
    found: Iterable[tuple[str, Mapping[int, list[int]]]], excluded: np.ndarray, revisions: Sequence[str]
) -> dict[int, str]:
    """Positions for which no model stands, and why, of (run, positions by step): see `standing`."""
    reasons = {}
    for run, of_run in found:
        for step, positions in of_run.items():
            if standing(positions, excluded, revisions) is None:
                for at in positions:
                    others = listed(sorted({revisions[other] for other in positions} - {revisions[at]}), _NAMED)
                    reasons[at] = f"step {step:,} of {run} is {others}, too: none is taken for a step of the run"
    return reasons


def _excluded(dataset: xr.Dataset, excluded: np.ndarray | None) -> np.ndarray:
    return np.zeros(dataset.sizes["model"], dtype=bool) if excluded is None else np.asarray(excluded, dtype=bool)


def _grouped(dataset: xr.Dataset) -> tuple[dict[tuple[str, ...], dict[int, list[int]]], list[str]]:
    """Positions by run and variant, and by step; the revision of each model."""
    names = run_names(dataset)
    steps = np.where(names == "", -1, facts(dataset, "step", -1))
    groups = zip(names.tolist(), *(strings(dataset, name).tolist() for name in VARIANT), strict=True)
    return by_step(groups, steps.tolist()), strings(dataset, "revision").tolist()


def trajectories(result: xr.Dataset) -> list[Run]:
    """Runs of a result that have two or more checkpoints, by family, number of parameters, size, seed and name."""
    return sorted(
        (run for run in runs(result, result["excluded"].values) if len(run.models) > 1),
        key=lambda run: (run.family, run.parameters, run.size, -1 if run.seed is None else run.seed, run.name),
    )


def single_models(result: xr.Dataset, found: Iterable[Run]) -> np.ndarray:
    """Positions on the model axis, int array, of the models that belong to none of the runs ``found``."""
    alone = np.ones(result.sizes["model"], dtype=bool)
    for run in found:
        alone[run.models] = alone[run.superseded] = False
    return np.flatnonzero(alone)


def _with_variant(run: str, variant: Sequence[str]) -> str:
    *read, layer = variant
    parts = [*read, f"layer {layer}" if layer not in ("", "-1") else ""]
    return f"{run} ({', '.join(part for part in parts if part and part != 'none')})"
