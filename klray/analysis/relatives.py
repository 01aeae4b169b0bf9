"""Relatives: which model of a snapshot another one came from, by quantisation or by fine-tuning.

Shapes: K = models of the snapshot (or of a result: both have the coordinates).
"""

import numpy as np
import xarray as xr

from klray.analysis.facts import facts, own_output, quantised, strings, usual_dtype
from klray.analysis.runs import run_names


def unquantised(dataset: xr.Dataset, excluded: np.ndarray | None = None) -> np.ndarray:
    """(K,) int64 position of each quantised model's unquantised self, -1 where there is none.

    That is the own output of the same commit without quantisation, of the same dtype if there is one, else of the
    dtype that most unquantised models have; of several the last. Those ``excluded`` (K,) are and have none.
    """
    repositories, commits, dtypes = (strings(dataset, name) for name in ("repository", "commit", "dtype"))
    usable = own_output(dataset)
    if excluded is not None:
        usable &= ~np.asarray(excluded, dtype=bool)
    whole, changed = usable & ~quantised(dataset), usable & quantised(dataset)
    usual = usual_dtype(dtypes, whole)
    best: dict[tuple[str, ...], int] = {}
    for position in np.flatnonzero(whole).tolist():
        at = repositories[position], commits[position]
        best[at] = best[(*at, dtypes[position])] = position
    found = np.full(len(usable), -1, dtype=np.int64)
    for position in np.flatnonzero(changed).tolist():
        at = repositories[position], commits[position]
        choices = [(*at, dtypes[position]), (*at, usual), at]
        found[position] = next((best[choice] for choice in choices if choice in best), -1)
    return found


def finals(dataset: xr.Dataset, among: np.ndarray) -> dict[str, int]:
    """Where each repository's final checkpoint is, of models ``among`` (K,) bool: ``main``, else its largest step.

    Of several, and where nothing has a step, it is the last. Without ``main``, a repository of several runs has none:
    which of its branches ends it is not known. In the order of the repositories' first models.
    """
    repositories, main = strings(dataset, "repository"), strings(dataset, "revision") == "main"
    steps = facts(dataset, "step", -1)
    names = run_names(dataset)
    branches: dict[str, set[str]] = {}
    for position in np.flatnonzero(among & (steps >= 0)).tolist():
        branches.setdefault(str(repositories[position]), set()).add(str(names[position]))
    found: dict[str, tuple[bool, int, int]] = {}
    for position in np.flatnonzero(among).tolist():
        rank = (bool(main[position]), int(steps[position]), position)
        found[str(repositories[position])] = max(rank, found.get(str(repositories[position]), rank))
    return {
        repository: position
        for repository, (is_main, _, position) in found.items()
        if is_main or len(branches.get(repository, ())) < 2
    }


def parents(dataset: xr.Dataset) -> np.ndarray:
    """(K,) int64 position of each fine-tuned model's parent, -1 where there is none.

    The parent is the unquantised own output of the repository that ``base_model`` names: its final checkpoint, see
    `finals`. Quantised models and layers have none of their own.
    """
    repositories, bases = strings(dataset, "repository"), strings(dataset, "base_model")
    whole = own_output(dataset) & ~quantised(dataset)
    final = finals(dataset, whole)
    found = np.full(len(whole), -1, dtype=np.int64)
    for position in np.flatnonzero(whole & (bases != "") & (bases != repositories)):
        found[position] = final.get(str(bases[position]), -1)
    return found
