"""Checkpoints with weights of another step, told by the hashes of their files, before anything is fetched."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import xarray as xr

from klray.analysis.facts import facts, strings
from klray.analysis.runs import run_names
from klray.words.numbers import listed

MISPLACED = "weights of another step: "  # begins the reason of an exclusion for this
_NAMED = 3  # other steps in a reason


def misplaced(checkpoints: Iterable[tuple[str, int | None, Sequence[str]]]) -> dict[tuple[str, int], str]:
    """Why a checkpoint of a run holds weights of another step, by (run, step).

    ``checkpoints`` are (run, step, hashes of the weight files). Training changes every file of weights between two
    saved steps; so of those that have a file in common at most one is whole. Which one is, hashes do not tell: a
    revision that was uploaded again gets files of a later one, so the latest of them is left in its place. A file that
    more than half of the run's steps have is frozen and says nothing; runs of fewer than four steps are passed over.
    """
    steps: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for run, step, hashes in checkpoints:
        if step is not None and step >= 0 and hashes:
            steps[run][step].update(hashes)
    found = {}
    for run, of_run in steps.items():
        holders: dict[str, list[int]] = defaultdict(list)
        for step in sorted(of_run):
            for each in of_run[step]:
                holders[each].append(step)
        shared = {each: held for each, held in holders.items() if 1 < len(held) <= len(of_run) / 2}
        for step, own in of_run.items():
            later = sorted({other for each in own & shared.keys() for other in shared[each] if other > step})
            if later:
                those = f"{len(own & shared.keys())} of {len(own)} files are byte for byte those of step"
                found[run, step] = f"{MISPLACED}{those} {listed([f'{other:,}' for other in reversed(later)], _NAMED)}"
    return found


def misplaced_in(dataset: xr.Dataset) -> list[str]:
    """(K,) why each model of a snapshot has weights of another step; "" where it has not, or nobody knows."""
    steps = [int(step) for step in facts(dataset, "step", -1)]
    runs = run_names(dataset).tolist()
    files = [hashes.split() for hashes in strings(dataset, "weight_files").tolist()]
    found = misplaced(zip(runs, steps, files, strict=True))
    return [found.get((run, step), "") if own else "" for run, step, own in zip(runs, steps, files, strict=True)]
