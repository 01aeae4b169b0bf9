"""Measure the noise floor: the KL that a checkpoint has with itself across batch plans, devices and precisions."""

import logging
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from klray import config as configs
from klray.analysis.continuing import there_already
from klray.analysis.noise_floor import ROWS_MEAN, ModelNoise, NoiseFloor
from klray.checkpoints import Cache, Checkpoint, Hub
from klray.config import Config
from klray.config import measure as measure_configs
from klray.config import sweep as sweep_configs
from klray.config.job import verb
from klray.errors import CheckpointError, KlrayError
from klray.measure.efforts import work_of_noise
from klray.measure.noise_scorings import Ways, measure, spread
from klray.sweep.child import apart
from klray.sweep.limits import limits_of
from klray.sweep.scorer import versions
from klray.sweep.settings import ScoringSettings
from klray.texts import TextSet
from klray.words.numbers import counted
from klray.words.progress import Progress
from klray.words.tables import say, show
from klray.words.whole import write_whole

log = logging.getLogger("klray")

WIDTH = 120  # columns of the closing words


def noise(config: Config) -> NoiseFloor:
    """Measure, print the table, write it where the user said, and return it."""
    selection = sweep_configs.selection(config.models)
    settings = sweep_configs.scoring_settings(config.scoring)
    ways = measure_configs.noise_ways(config.noise, settings)
    path = configs.noise_path(config.noise)
    text_set = configs.text_set(config.texts)
    with sweep_configs.hub(config.models) as hub, Cache(Path(settings.cache_dir), settings.cache_bytes) as cache:
        checkpoints, unavailable = sweep_configs.resolved(hub, selection)
        for refused in unavailable:
            log.warning("%s@%s: %s", refused.repository, refused.revision, refused.message)
        if not checkpoints:
            raise KlrayError(f"models.family={selection.family}: there is nothing to measure; look at klray plan")
        chosen = spread(checkpoints, config.noise.models)
        there = _there(path, chosen, text_set, settings.dtype, ways)
        if there is not None:
            _print(there, len(checkpoints), ways)
            return there
        with Progress(len(chosen) * ways.scorings, "noise", "scoring") as progress:
            measured = tuple(_measured(hub, cache, each, text_set, settings, ways, progress) for each in chosen)
    found = NoiseFloor(
        dtypes=ways.dtypes,
        default_dtype=settings.dtype,
        text_set=text_set.fingerprint,
        text_set_name=text_set.name,
        n_texts=len(text_set),
        mean_bytes=float(text_set.n_bytes.mean()),
        models=measured,
        versions=versions(),
        threads=ways.threads,
    )
    _print(found, len(checkpoints), ways)
    if path is not None:
        write_whole(path, found.to_json())
        say(f"noise floor {path}; klray report report.noise={path} shows it")
    return found


def _there(
    path: Path | None, chosen: Sequence[Checkpoint], text_set: TextSet, default: str, ways: Ways
) -> NoiseFloor | None:
    """What ``path`` holds, if it is what would be measured now, and nothing failed."""
    plans = [(device, budget) for device in ways.devices for budget in ways.budgets_on(device)]
    asked = {(dtype, *plan) for dtype in ways.dtypes for plan in plans}

    def same(found: NoiseFloor) -> bool:
        return (
            (found.text_set, found.default_dtype, found.dtypes, dict(found.versions), found.threads)
            == (text_set.fingerprint, default, ways.dtypes, dict(versions()), ways.threads)
            and [model.commit for model in found.models] == [each.commit for each in chosen]
            and all(
                {(each.dtype, each.device, each.tokens_per_batch) for each in model.variants[1:]} == asked
                and model.variants[0].device == ways.devices[-1]
                for model in found.models
            )
        )

    return there_already(
        f"noise floor {path}",
        lambda: NoiseFloor.read(path) if path is not None and path.is_file() else None,
        same,
        "noise.path=",
        unreadable=KlrayError,
    )


def _measured(
    hub: Hub,
    cache: Cache,
    checkpoint: Checkpoint,
    text_set: TextSet,
    settings: ScoringSettings,
    ways: Ways,
    progress: Progress,
) -> ModelNoise:
    """Fetch a checkpoint, and measure it in a process that is held to limits; a failure in place of its numbers."""
    directory = Path()
    try:
        directory = cache.fetch(hub, checkpoint)
        try:
            limits = limits_of(checkpoint, text_set, settings, work_of_noise(ways, text_set, directory))
            return apart(partial(measure, checkpoint, directory, text_set, ways), limits, progress.advance)
        finally:
            cache.evict(checkpoint)
    except CheckpointError as error:
        progress.advance(ways.scorings)
        # where this machine keeps its files says nothing to whoever reads the table
        words = error.message.replace(str(directory), checkpoint.label) if directory.name else error.message
        log.warning("%s: %s", checkpoint.label, words)
        return ModelNoise(checkpoint.label, checkpoint.commit, failures=dict.fromkeys(ways.dtypes, words))


def _print(found: NoiseFloor, selected: int, ways: Ways) -> None:
    show(found.table())
    budgets = "; ".join(
        f"{device}: {', '.join(f'{budget:,}' for budget in ways.budgets_on(device))}" for device in ways.devices
    )
    say(
        f"\n{len(found.models)} of {counted(selected, 'checkpoint')} on {counted(found.n_texts, 'text')} of "
        f"{found.text_set_name}, {found.mean_bytes:,.0f} bytes each on average; tokens per batch {budgets}"
    )
    show("\n".join(textwrap.wrap(ROWS_MEAN, WIDTH)))
    for row in found.rows():
        if row.failure:
            say(f"failed: {row.model} in {row.dtype}: {row.failure}")
    say()
    show("\n".join(found.verdicts()))


main = verb(noise, lambda found: not found.default_is_fine)

if __name__ == "__main__":
    main()
