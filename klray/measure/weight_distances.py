"""Exact weight distances of a run: its checkpoints are streamed through a cache in their order, each read once."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from klray.analysis.facts import strings
from klray.analysis.runs import by_step, runs, standing
from klray.checkpoints import Cache, Checkpoint, Fetcher, Hub, model_config
from klray.checkpoints.tensors import stored_tensors
from klray.errors import CheckpointError, KlrayError
from klray.measure.reading import read
from klray.sweep.child import apart
from klray.sweep.limits import limits_of
from klray.sweep.settings import ScoringSettings
from klray.weights.parameters import parameters
from klray.weights.windows import Distance, Named, WindowDistances, window_bytes
from klray.words.numbers import counted

log = logging.getLogger("klray")

# From a checkpoint's parameters and config.json to a distance that knows which of its units can be permuted.
Aligner = Callable[[Named, Mapping[str, Any]], Distance]


@dataclass(frozen=True)
class RunDistances:
    """The checkpoints of one run that could be read, by step, and their squared distances (T, T), NaN beyond a window.

    ``distances`` has "raw" and, if it was asked for, "aligned"; ``failures`` says why others are missing.
    """

    checkpoints: tuple[Checkpoint, ...]
    distances: dict[str, np.ndarray]
    failures: dict[str, str] = field(default_factory=dict)  # label: why

    @property
    def steps(self) -> np.ndarray:
        """(T,) int64."""
        return np.array([each.facts.step for each in self.checkpoints], dtype=np.int64)


def standing_checkpoints(
    checkpoints: Sequence[Checkpoint], dataset: xr.Dataset, excluded: np.ndarray
) -> list[list[Checkpoint]]:
    """The runs of these checkpoints, each in the order of its steps, one checkpoint for each step.

    Of several at one step it is the one that stands in a run of the snapshot ``dataset`` whose ``excluded`` (K,) models
    are left out (`klray.analysis.runs`); of several that do, or where none is in the snapshot, the last, and none where
    these are of several revisions.
    """
    commits = list(zip(strings(dataset, "repository").tolist(), strings(dataset, "commit").tolist(), strict=True))
    stand = {commits[model] for run in runs(dataset, excluded) for model in run.models}
    elsewhere = np.array([(each.repository, each.commit) not in stand for each in checkpoints], dtype=bool)
    steps = [-1 if each.facts.step is None or not each.facts.run else each.facts.step for each in checkpoints]
    found = by_step((each.facts.run for each in checkpoints), steps)
    revisions = [each.revision for each in checkpoints]
    places = [[standing(at, elsewhere, revisions) for at in of_run.values()] for of_run in found.values()]
    return [[checkpoints[place] for place in of_run if place is not None] for of_run in places]


def measure_run(
    hub: Hub,
    cache: Cache,
    checkpoints: Sequence[Checkpoint],
    window: int,
    *,
    limit_bytes: int,
    aligner: Aligner | None = None,
    check: Callable[[Checkpoint, Path], None] = lambda checkpoint, directory: None,
    advance: Callable[[str], None] = lambda label: None,
) -> RunDistances:
    """Squared distances of each checkpoint of a run to the ``window`` before it, float64, of the stored values.

    Each is fetched and read once, the next while the present one is compared; ``window_bytes`` are in memory. One that
    cannot be read, or compared with those before it, is left out with its reason, as if it had not been saved.
    ``advance`` is told of each one. Checkpoints without a step are left out. ``check`` raises a CheckpointError for
    files that are not to be read here, such as `read_apart`.

    Raises KlrayError if a window needs more than ``limit_bytes``, or the architecture cannot be aligned.
    """
    with_step = [(each.facts.step, each) for each in checkpoints if each.facts.step is not None]
    ordered = [each for _, each in sorted(with_step, key=lambda pair: pair[0])]
    largest = max((sum(file.size_bytes for file in each.files if file.is_weight) for each in ordered), default=0)
    needed = window_bytes(largest, window, aligned=aligner is not None)
    if needed > limit_bytes:
        raise KlrayError(
            f"a window of {counted(window, 'checkpoint')} of {ordered[0].repository}, {largest / 1e9:.2f} GB of "
            f"weights each, takes {needed / 1e9:.2f} GB, the budget is {limit_bytes / 1e9:.2f} GB: raise "
            "weights.memory_gigabytes, lower analysis.window, or rest on the sketches that klray score keeps"
        )
    windows: WindowDistances | None = None
    compared: list[Checkpoint] = []
    failures: dict[str, str] = {}
    fetcher = Fetcher(hub, cache)
    for place, checkpoint in enumerate(ordered):
        try:
            directory = fetcher.take(checkpoint, ordered[place + 1 : place + 2])
            try:
                check(checkpoint, directory)
                stored = stored_tensors(directory)
                if windows is None:
                    aligned = {"aligned": aligner(parameters(stored), model_config(directory))} if aligner else {}
                    windows = WindowDistances(window, aligned)
                try:
                    windows.add(checkpoint.label, stored)
                except KlrayError as error:  # its parameters have other names or shapes, or no values to compare
                    raise CheckpointError(str(error), "load_failed") from error
                compared.append(checkpoint)
            finally:
                cache.evict(checkpoint)
        except CheckpointError as error:
            failures[checkpoint.label] = error.message
            log.warning("%s: %s", checkpoint.label, error.message)
        advance(checkpoint.label)
    matrices = {name: windows.matrix(name) for name in windows.distances} if windows else {}
    return RunDistances(tuple(compared), matrices, failures)


def read_apart(settings: ScoringSettings, checkpoint: Checkpoint, directory: Path) -> None:
    """Read a checkpoint's tensors in a process that is held to limits, as they are read here next.

    Raises CheckpointError: they cannot be read, or take more than they may.
    """
    apart(partial(read, directory), limits_of(checkpoint, None, settings))


def as_dataset(measured: Sequence[RunDistances], window: int, alignment: str) -> xr.Dataset:
    """Runs as the result that ``klray analyze`` reads: ``squared_distance`` (model, back), NaN where there is none.

    ``back`` counts saved checkpoints before the model, ``other_commit`` and ``other_step`` say which it is. Aligned
    distances are in ``squared_distance_aligned``.
    """
    every = [each for run in measured for each in run.checkpoints]
    text = np.dtypes.StringDType()
    facts = {
        "model": np.array([each.label for each in every], dtype=text),
        "repository": np.array([each.repository for each in every], dtype=text),
        "revision": np.array([each.revision for each in every], dtype=text),
        "commit": np.array([each.commit for each in every], dtype=text),
        "run": np.array([each.facts.run for each in every], dtype=text),
        "step": np.array([each.facts.step for each in every], dtype=np.int64),
    }
    kinds = {name for run in measured for name in run.distances}
    names = {name: "squared_distance" + ("" if name == "raw" else f"_{name}") for name in sorted(kinds, reverse=True)}
    values = {name: np.full((len(every), window), np.nan) for name in names}
    others = np.full((len(every), window), "", dtype=text)
    other_steps = np.full((len(every), window), -1, dtype=np.int64)
    row = 0
    for run in measured:
        for t in range(len(run.checkpoints)):
            for back in range(1, min(window, t) + 1):
                others[row, back - 1] = run.checkpoints[t - back].commit
                other_steps[row, back - 1] = run.steps[t - back]
                for name, matrix in run.distances.items():
                    values[name][row, back - 1] = matrix[t, t - back]
            row += 1
    return xr.Dataset(
        {
            **{names[name]: (("model", "back"), array, {"units": "1"}) for name, array in values.items()},
            "other_commit": (("model", "back"), others),
            "other_step": (("model", "back"), other_steps),
        },
        coords={"back": np.arange(1, window + 1), **{name: ("model", column) for name, column in facts.items()}},
        attrs={
            "title": "Squared distances of the stored parameters of checkpoints, exact",
            "references": "arXiv:2505.15353",
            "window": window,
            "alignment": alignment,
            "made": datetime.now(UTC).isoformat(),
        },
    )
