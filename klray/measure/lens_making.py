"""A checkpoint's files to a tuned lens in a folder, and how near it comes: all that takes the model, in one process."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from klray.likelihood import loading
from klray.likelihood.lens import Lens
from klray.likelihood.streams import torch_threads
from klray.likelihood.tokenizer import load_tokenizer
from klray.likelihood.tokens import encode
from klray.measure.lens_training import prediction_kl, train_lens
from klray.measure.settings import LensTraining
from klray.sweep.settings import ScoringSettings
from klray.texts import TextSet


@dataclass(frozen=True)
class LensWork:
    """What is trained on which texts, judged on which others, and kept where, with which facts."""

    directory: Path
    settings: ScoringSettings
    training: LensTraining
    norm: str | None
    trained_on: TextSet
    judged_on: TextSet
    facts: Mapping[str, Any]
    folder: Path

    def __call__(self, report: Callable[[str], None]) -> list[tuple[float, float]]:
        """Train and save the lens; KL to the model's own predictions under the logit lens and under the trained one,
        nats per token, of each layer before the last. ``report`` is told the loss of each step in words.

        Raises CheckpointError if the model cannot be loaded; as ``train_lens``.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch_threads(self.settings.threads):
            loaded = loading.load(self.directory, self.settings.dtype, device, allow_unused=self.settings.allow_unused)
            tokenizer = load_tokenizer(self.directory)
            trained_on, judged_on = (
                encode(tokenizer, each.texts, allow_lost=self.settings.allow_lost)
                for each in (self.trained_on, self.judged_on)
            )
            lens = train_lens(
                loaded.model,
                trained_on,
                self.training,
                norm=self.norm,
                facts=dict(self.facts),
                report=lambda step, loss: report(f"{loss:.3f} nats/token"),
            )
            assert lens.translators is not None
            lens.translators.save(self.folder)
            logit, tuned = (prediction_kl(loaded.model, judged_on, each) for each in (Lens(norm=lens.norm), lens))
        return list(zip(logit.tolist(), tuned.tolist(), strict=True))
