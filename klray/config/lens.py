"""Group ``lens``: the final norm of a lens, and how klray lens trains a tuned one."""

import dataclasses
from dataclasses import dataclass

from klray.config.texts import TextsConfig, TextSource, TextSplit, text_set
from klray.errors import KlrayError
from klray.measure.settings import LensTraining
from klray.texts import TextSet
from klray.words.numbers import counted


@dataclass
class LensConfig:
    """How layers are read, and how a tuned lens is trained."""

    norm: str | None = None  # dotted path to the model's final norm, where klray does not find it
    path: str | None = None  # the folder for the trained lens
    texts_path: str | None = None  # texts to train on: as texts.path; python_stdlib needs none, it has a train split
    n: int | None = 2000  # draw so many of these
    steps: int = LensTraining.steps
    tokens_per_step: int = LensTraining.tokens_per_step
    learning_rate: float = LensTraining.learning_rate
    seed: int = LensTraining.seed


def lens_training(config: LensConfig) -> LensTraining:
    """How a tuned lens is trained."""
    return LensTraining(config.steps, config.tokens_per_step, config.learning_rate, config.seed)


def lens_texts(config: LensConfig, texts: TextsConfig, scoring: TextSet) -> TextSet:
    """The texts that a lens is trained on, none of which is in ``scoring``, the texts that ``texts`` asks for.

    KlrayError: it is not said which, or the two have texts in common.
    """
    asked = dataclasses.replace(texts, seed=config.seed, n=None)
    if texts.source is TextSource.python_stdlib:
        if texts.split is TextSplit.train:
            raise KlrayError(
                "texts.split=train: a lens is trained on these texts and is judged on others; leave texts.split out"
            )
        asked.split = TextSplit.train
    elif config.texts_path is None:
        raise KlrayError(
            f"a tuned lens needs texts of its own beside texts={texts.source.value}: set lens.texts_path= to a file or "
            "folder of the same kind"
        )
    else:
        asked.path = config.texts_path
    every = text_set(asked)
    if config.n is not None and config.n < len(every):
        every = text_set(dataclasses.replace(asked, n=config.n))
    shared = set(every.texts) & set(scoring.texts)
    if shared:
        raise KlrayError(
            f"{len(shared):,} of the {counted(len(every), 'text')} of {every.name} are also scored: a lens must be "
            "trained on other texts; set lens.texts_path= to some"
        )
    return every
