"""Measure exact weight distances and exponents c_w of training runs, reading each checkpoint once."""

import logging
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr

from jobs.analyze import preprocessing
from klray import config as configs
from klray.analysis.continuing import there_already
from klray.analysis.diffusion import MIN_POINTS, fractal_dimension, late
from klray.analysis.drift import exponents, is_exact
from klray.checkpoints import Cache
from klray.config import Align, Config
from klray.config import sweep as sweep_configs
from klray.config.job import verb
from klray.errors import KlrayError
from klray.measure.weight_distances import (
    Aligner,
    RunDistances,
    as_dataset,
    measure_run,
    read_apart,
    standing_checkpoints,
)
from klray.store import Store
from klray.weights.alignment.matching import aligned_squared_distance
from klray.weights.alignment.symmetry import symmetries
from klray.words.numbers import counted, significant
from klray.words.progress import Progress
from klray.words.tables import say, show, text_table

log = logging.getLogger("klray")


def weights(config: Config) -> tuple[xr.Dataset, list[RunDistances]]:
    """Measure the runs of the selected models, write the result, and return it with what was read for it."""
    selection = sweep_configs.selection(config.models)
    settings = sweep_configs.scoring_settings(config.scoring)
    limit = configs.weights_memory_bytes(config.weights)
    aligner = _aligner(config.weights.align)
    window = config.analysis.window
    if window < MIN_POINTS:
        raise KlrayError(
            f"analysis.window={window}: a line is fitted through its checkpoints; set {MIN_POINTS} or more"
        )
    store = Store.open(configs.store_url(config.store), configs.storage_options(config.store))
    snapshot = store.manifest(config.analysis.snapshot).id
    with sweep_configs.hub(config.models) as hub, Cache(Path(settings.cache_dir), settings.cache_bytes) as cache:
        checkpoints, unavailable = sweep_configs.resolved(hub, selection)
        for refused in unavailable:
            log.warning("%s@%s: %s", refused.repository, refused.revision, refused.message)
        dataset = store.dataset(snapshot)
        runs = standing_checkpoints(checkpoints, dataset, preprocessing(config.analysis).excluded(dataset))
        if not runs:
            raise KlrayError(
                f"models.family={selection.family}: no checkpoint names a step, so there is no run to follow; set "
                'models.revisions="step*"'
            )
        there = _there(store, snapshot, config, {each.commit for run in runs for each in run})
        if there is not None:
            return there, []
        with Progress(sum(map(len, runs)), "weights", "checkpoint") as progress:
            measured = [
                measure_run(
                    hub,
                    cache,
                    run,
                    window,
                    limit_bytes=limit,
                    aligner=aligner,
                    check=partial(read_apart, settings),
                    advance=partial(progress.advance, 1),
                )
                for run in runs
            ]
    if not any(run.checkpoints for run in measured):
        reasons = [reason for run in measured for reason in run.failures.values()]
        raise KlrayError(f"none of {counted(len(reasons), 'checkpoint')} could be measured; the first: {reasons[0]}")
    result = as_dataset(measured, window, config.weights.align.value)
    path = store.write_result(snapshot, config.weights.name, result)
    show(_table(measured, window, config.analysis.min_step))
    say(f"result {store.url}/{path}; klray analyze analysis.weights={config.weights.name} shows it beside KL")
    return result, measured


def _there(store: Store, snapshot: str, config: Config, commits: set[str]) -> xr.Dataset | None:
    """The same result of these checkpoints, the whole of them, if it was written before."""
    name = config.weights.name

    def same(found: xr.Dataset) -> bool:
        if not is_exact(found):
            raise KlrayError(
                f"weights.name={name}: snapshot {snapshot} has a result of that name that is none of klray weights; "
                "choose another name"
            )
        asked = (config.analysis.window, config.weights.align.value)
        made = (found.attrs.get("window"), found.attrs.get("alignment"))
        return made == asked and set(found["commit"].values.tolist()) == commits

    return there_already(
        f"result {name} of this snapshot",
        lambda: store.result(snapshot, name).load() if name in store.result_names(snapshot) else None,
        same,
        "weights.name=",
    )


def _aligner(align: Align) -> Aligner | None:
    if align is Align.none:
        return None
    return lambda named, config: partial(aligned_squared_distance, symmetries=symmetries(named, config, align.value))


def _table(measured: list[RunDistances], window: int, min_step: int) -> str:
    """A row for each run and kind of distance: mean over the last half of its windows, as reports have it."""
    rows = []
    for run in (run for run in measured if run.checkpoints):
        for name, squared in run.distances.items():
            exponent, r_squared, distance = exponents(run.steps, squared, window, min_step)
            fitted = np.isfinite(exponent)
            mean, _ = late(exponent[fitted])
            numbers = (float(distance[-1]), mean, late(r_squared[fitted])[0], float(fractal_dimension(mean)))
            checkpoints = f"{len(run.checkpoints):,}"
            rows.append((run.checkpoints[0].facts.run, name, checkpoints, *map(significant, numbers)))
    header = ("run", "distance", "checkpoints", "last move", "c_w", "R^2", "2/c_w")
    return text_table(header, rows, text_columns=2)


main = verb(weights, lambda found: any(run.failures for run in found[1]))

if __name__ == "__main__":
    main()
