"""Train a tuned lens for one checkpoint, judge it on the scoring texts, and write it to a folder."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from klray import config as configs
from klray.analysis.continuing import there_already
from klray.checkpoints import Cache, Checkpoint, Hub
from klray.config import Config
from klray.config import measure as measure_configs
from klray.config import sweep as sweep_configs
from klray.config.job import verb
from klray.errors import KlrayError
from klray.likelihood import loading
from klray.likelihood.lens import Lens, Translators, is_unfinished, load_translators
from klray.likelihood.streams import torch_threads
from klray.likelihood.tokenizer import load_tokenizer
from klray.likelihood.tokens import encode
from klray.measure.lens_training import prediction_kl, train_lens
from klray.measure.settings import LensTraining
from klray.sweep.scorer import versions
from klray.sweep.settings import ScoringSettings
from klray.texts import TextSet
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
                f"models.family={selection.family}: {len(checkpoints):,} checkpoints were selected and a tuned lens is "
                f"for one: set models.repo= and models.revisions={refused}"
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
        model, tokenizer = _loaded(hub, cache, checkpoints[0], settings)
    with torch_threads(settings.threads), Progress(training.steps, "lens", "step") as progress:
        found = train_lens(
            model,
            encode(tokenizer, trained_on.texts, allow_lost=settings.allow_lost),
            training,
            norm=config.lens.norm,
            facts={**facts, "versions": dict(versions())},
            report=lambda step, loss: progress.advance(1, f"{loss:.3f} nats/token"),
        )
    assert found.translators is not None
    found.translators.save(folder)
    with torch_threads(settings.threads):
        _print(checkpoints[0], model, tokenizer, judged_on, found)
    say(f"{found.name} in {folder}; klray score scoring.lens={folder} reads every layer through it")
    return found


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


def _loaded(hub: Hub, cache: Cache, checkpoint: Checkpoint, settings: ScoringSettings) -> tuple[Any, Any]:
    directory = cache.fetch(hub, checkpoint)
    try:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = loading.load(directory, settings.dtype, device, allow_unused=settings.allow_unused)
        return loaded.model, load_tokenizer(directory)
    finally:
        cache.evict(checkpoint)


def _print(checkpoint: Checkpoint, model: Any, tokenizer: Any, judged_on: TextSet, found: Lens) -> None:
    tokens = encode(tokenizer, judged_on.texts, allow_lost=len(judged_on))
    columns = [prediction_kl(model, tokens, each) for each in (Lens(norm=found.norm), found)]
    rows = [(f"{layer}", *(f"{kl:.4f}" for kl in each)) for layer, each in enumerate(zip(*columns, strict=True))]
    show(text_table(("layer", "logit lens", "tuned lens"), rows, text_columns=0))
    say(
        f"KL from the own predictions of {checkpoint.label} to those after each layer, in nats per token, mean over "
        f"{len(judged_on):,} texts of {judged_on.name}"
    )


main = verb(lens)

if __name__ == "__main__":
    main()
