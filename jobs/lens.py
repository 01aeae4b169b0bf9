"""Train a tuned lens for one checkpoint, judge it on the scoring texts, and write it to a folder."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from klray import config as configs
from klray.analysis.continuing import there_already
from klray.checkpoints import Cache, Checkpoint, Hub
from klray.config import Config
from klray.config import measure as measure_configs
from klray.config import sweep as sweep_configs
from klray.config.job import verb
from klray.errors import CheckpointError, KlrayError
from klray.likelihood.lens import Lens, Translators, is_unfinished, load_translators
from klray.measure.efforts import work_of_lens
from klray.measure.lens_making import LensWork
from klray.measure.settings import LensTraining
from klray.sweep.child import apart
from klray.sweep.limits import limits_of
from klray.sweep.scorer import versions
from klray.words.numbers import counted
from klray.words.progress import Progress
from klray.words.tables import say, show, text_table


def lens(config: Config) -> Lens:
    """Train, print the table, write the lens, and return it."""
    selection = sweep_configs.selection(config.models)
    settings = sweep_configs.scoring_settings(config.scoring)
    training = configs.lens_training(config.lens)
    folder = measure_configs.lens_folder(config.lens)
    judged_on = configs.text_set(config.texts)
    trained_on = configs.lens_texts(config.lens, config.texts, judged_on)
    with sweep_configs.hub(config.models) as hub, Cache(Path(settings.cache_dir), settings.cache_bytes) as cache:
        checkpoints, unavailable = sweep_configs.resolved(hub, selection)
        if len(checkpoints) != 1:
            refused = "".join(f"; {each.repository}@{each.revision}: {each.message}" for each in unavailable)
            raise KlrayError(
                f"models.family={selection.family}: {counted(len(checkpoints), 'checkpoint')} were selected and a "
                f"tuned lens is for one: set models.repo= and models.revisions={refused}"
            )
        facts: dict[str, Any] = {
            **{name: getattr(checkpoints[0], name) for name in ("repository", "revision", "commit")},
            "dtype": settings.dtype,
            "text_set": trained_on.fingerprint,
            "text_set_name": trained_on.name,
        }
        there = _there(folder, facts, training)
        if there is not None:
            return there

        def work(directory: Path) -> LensWork:
            told = {**facts, "versions": dict(versions())}
            return LensWork(directory, settings, training, config.lens.norm, trained_on, judged_on, told, folder)

        columns = _made(hub, cache, checkpoints[0], work, training.steps)
    translators = load_translators(folder)
    found = Lens(translators, config.lens.norm)
    rows = [(f"{layer}", *(f"{kl:.4f}" for kl in each)) for layer, each in enumerate(columns)]
    show(text_table(("layer", "logit lens", "tuned lens"), rows, text_columns=0))
    say(
        f"KL from the own predictions of {checkpoints[0].label} to those after each layer, in nats per token, mean "
        f"over {counted(len(judged_on), 'text')} of {judged_on.name}"
    )
    say(f"{found.name} in {folder}; klray score scoring.lens={folder} reads every layer through it")
    return found


def _made(
    hub: Hub, cache: Cache, checkpoint: Checkpoint, work: Callable[[Path], LensWork], steps: int
) -> list[tuple[float, float]]:
    """Fetch the checkpoint, and do the work in a process that is held to limits; its answer."""
    directory = cache.fetch(hub, checkpoint)
    try:
        asked = work(directory)
        limits = limits_of(checkpoint, asked.judged_on, asked.settings, work_of_lens(asked))
        with Progress(steps, "lens", "step") as progress:
            return apart(asked, limits, partial(progress.advance, 1))
    except CheckpointError as error:  # where this machine keeps its files says nothing
        raise CheckpointError(error.message.replace(str(directory), checkpoint.label), error.reason) from error
    finally:
        cache.evict(checkpoint)


def _there(folder: Path, facts: Mapping[str, Any], training: LensTraining) -> Lens | None:
    """The lens in a folder that holds one, if it is of the same checkpoint and texts and was trained alike.

    Columns are known by their lens: another one never takes its place.
    """

    def same(found: Translators) -> bool:
        of = f"{found.facts.get('repository')}@{found.facts.get('revision')}"
        if any(found.facts.get(name) != value for name, value in facts.items()):
            raise KlrayError(
                f"lens.path={folder}: a lens of {of}, in {found.facts.get('dtype')}, trained on "
                f"{found.facts.get('text_set_name')} is there already, and another was asked for; name a new folder"
            )
        differ = [name for name, value in asdict(training).items() if found.facts.get(name) != value]
        if differ:
            both = (found.facts, asdict(training))
            was, now = (" ".join(f"lens.{name}={values.get(name)}" for name in differ) for values in both)
            raise KlrayError(
                f"lens.path={folder}: a lens of {of} is there already that was trained with {was}, and {now} was asked "
                "for; name a new folder"
            )
        return True

    found = there_already(
        f"lens {folder}",
        lambda: load_translators(folder) if folder.is_dir() and not is_unfinished(folder) else None,
        same,
        "lens.path=",
    )
    return None if found is None else Lens(found)


main = verb(lens)

if __name__ == "__main__":
    main()
