"""Checkpoints with weights of another step, told by the hashes of their files, before anything is fetched."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import xarray as xr

from klray.analysis.facts import facts, strings
from klray.analysis.runs import run_names
from klray.words.heard import parted
from klray.words.numbers import listed
from klray.words.revisions import step_of

MISPLACED = "weights of another step: "  # begins the reason of an exclusion for this
_NAMED = 3  # other steps in a reason
_TELLING = 4  # steps of a run, of which two with files in common tell something
_LAST = math.inf  # the place of main


def misplaced(
    checkpoints: Iterable[tuple[str, int | None, Sequence[str]]], elsewhere: Iterable[tuple[str, str]] = ()
) -> dict[tuple[str, int], str]:
    """Why a checkpoint of a run holds weights of another step, by (run, step).

    ``checkpoints`` are (run, step, hashes of the weight files). Training changes every file of weights between two
    saved steps; so of those that have a file in common at most one is whole. Which one is, hashes do not tell: a
    revision that was uploaded again gets files of a later one, so the latest of them is left in its place. A file that
    more than half of the run's steps have is frozen and says nothing; runs of fewer than four steps are passed over.
    Of steps that are equal in all files, however many, the latest stands, too; but where the run's first step is among
    them, that one: nothing had moved yet.

    ``elsewhere`` are (run, name and hashes) of revisions that are not among them, as ``Checkpoint.elsewhere`` has them.
    They count as the steps that they name, and main as the last; but not if all its files are those of steps: it is one
    of these, or mixed itself.
    """
    steps: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for run, step, hashes in checkpoints:
        if step is not None and step >= 0 and hashes:
            steps[run][step].update(hashes)
    others: dict[str, set[str]] = defaultdict(set)
    for run, told in elsewhere:
        others[run].add(told)
    found = {}
    for run, scored in steps.items():
        of_run: dict[float, set[str]] = {step: own for step, own in scored.items()}
        for told in sorted(others[run]):
            name, *hashes = told.split() or [""]
            step = step_of(name)
            if step not in scored and (step is not None or not set().union(*scored.values()).issuperset(hashes)):
                of_run[_LAST if step is None else step] = set(hashes)
        holders: dict[str, list[float]] = defaultdict(list)
        for place in sorted(of_run):
            for each in of_run[place]:
                holders[each].append(place)
        shared = {each: held for each, held in holders.items() if 1 < len(held) <= len(of_run) / 2}
        equal = defaultdict(list)
        for place in sorted(of_run) if len(of_run) >= _TELLING else ():
            equal[frozenset(of_run[place])].append(place)
        for step, own in scored.items():
            same = equal[frozenset(own)]
            if len(same) > 1:
                stands = min(of_run) if min(of_run) in same else same[-1]
                if step != stands:
                    those = f"{len(own)} of {len(own)} files are byte for byte those of"
                    found[run, step] = f"{MISPLACED}{those} {_named([each for each in same if each != step])}"
                continue
            later = sorted({other for each in own & shared.keys() for other in shared[each] if other > step})
            if later:
                those = f"{len(own & shared.keys())} of {len(own)} files are byte for byte those of"
                found[run, step] = f"{MISPLACED}{those} {_named(later)}"
    return found


def misplaced_in(dataset: xr.Dataset) -> list[str]:
    """(K,) why each model of a snapshot has weights of another step; "" where it has not, or nobody knows."""
    steps = [int(step) for step in facts(dataset, "step", -1)]
    runs = run_names(dataset).tolist()
    files = [hashes.split() for hashes in strings(dataset, "weight_files").tolist()]
    told = strings(dataset, "files_elsewhere").tolist()
    elsewhere = [(run, each) for run, several in zip(runs, told, strict=True) for each in parted(several)]
    found = misplaced(zip(runs, steps, files, strict=True), elsewhere)
    return [found.get((run, step), "") if own else "" for run, step, own in zip(runs, steps, files, strict=True)]


def _named(places: Sequence[float]) -> str:
    """Ascending places in words, the latest first."""
    steps = listed([f"{place:,}" for place in reversed(places) if place != _LAST], _NAMED)
    return " and ".join([*(["main"] if _LAST in places else []), *([f"step {steps}"] if steps else [])])
