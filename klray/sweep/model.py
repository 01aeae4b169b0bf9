"""A checkpoint's folder to the log-likelihoods of the texts, in this process: tokens, model, sketch, forward passes."""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from klray.checkpoints import Checkpoint
from klray.checkpoints.causes import explained
from klray.checkpoints.gguf import read_gguf
from klray.checkpoints.gguf_choice import said_lineage
from klray.errors import KlrayError
from klray.likelihood import loading, tokens
from klray.likelihood.choices import LOGIT, NONE
from klray.likelihood.lens import Lens, load_translators
from klray.likelihood.score import score
from klray.likelihood.tokenizer import load_tokenizer, tokenizer_fingerprint
from klray.sweep.settings import Computed, ScoringSettings
from klray.texts import TextSet
from klray.weights.sketch import Sketch, sketch
from klray.words.heard import heard

log = logging.getLogger("klray")


class Compute:
    """Scores checkpoints one after another; parameters go into the last one's model where they fit. Raises as
    :func:`load_lens`.
    """

    def __init__(self, settings: ScoringSettings, text_set: TextSet):
        torch.set_num_threads(settings.threads)
        self.settings = settings
        self.text_set = text_set
        self.lens = load_lens(settings)
        self.model: loading.Loaded | None = None
        self._tokens_per_batch: int | None = None
        self._tokens: dict[str, tuple[tokens.Tokens, list[str]]] = {}  # with what was warned of
        self._tokens_of: list[tuple[str, str]] = []
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="sketch")

    def score(self, checkpoint: Checkpoint, directory: Path, read: Callable[[], None]) -> Computed:
        """As ``klray.sweep.settings.Computing.score``."""
        with heard() as warned:
            computed = self._score(checkpoint, directory, read)
        # Of this checkpoint, wherever it lies: those of others are equal, and told with them.
        # A file's own path is the beginning of its label.
        texts = [each.replace(checkpoint.label, str(directory)) for each in warned.take()]
        texts = [each.replace(str(directory), checkpoint.label) for each in texts]
        texts = [each.removeprefix(checkpoint.label).lstrip(": ") for each in texts]
        return replace(computed, facts={**computed.facts, "warnings": texts}) if texts else computed

    def _score(self, checkpoint: Checkpoint, directory: Path, read: Callable[[], None]) -> Computed:
        timings: dict[str, float] = {}
        start = time.monotonic()
        settings, before = self.settings, self.model
        beside: list[Future[Any]] = []

        def begin_sketch(stored: Mapping[str, torch.Tensor]) -> None:
            beside.append(self._beside.submit(self._sketch, checkpoint, stored, timings))

        try:
            try:
                self.model = loading.load(
                    directory,
                    dtype=settings.dtype,
                    device=settings.device,
                    quantization=settings.quantization,
                    reuse=self.model,
                    look=begin_sketch if settings.sketch else None,
                    allow_unused=settings.allow_unused,
                )
                encoded = self._encode(checkpoint, directory)
            finally:
                beside.append(self._beside.submit(read))  # behind the sketch, which reads the files, too
            timings["load_seconds"] = time.monotonic() - start
            start = time.monotonic()
            if self.model is not before:
                self._tokens_per_batch = settings.tokens_per_batch
            with explained(directory, doing="run"):
                scores = score(self.model.model, encoded, tokens_per_batch=self._tokens_per_batch, lens=self.lens)
            timings["score_seconds"] = time.monotonic() - start
        finally:
            wait(beside)  # nothing of this checkpoint goes on beside the next one
        self._tokens_per_batch = scores.tokens_per_batch  # halved where memory ran out: the next one is no smaller
        *sketches, _ = [each.result() for each in beside]
        sketched: Sketch | None = sketches[0] if sketches else None
        facts = {
            "architecture": self.model.architecture,
            "parameters": self.model.parameters,
            "stored_quantization": self.model.stored_quantization,
            "bits_per_parameter": self.model.bits_per_parameter,
            "quantised_share": self.model.quantised_share,
            **(encoded.tokenizer.as_facts() if encoded.tokenizer else {}),
            "head": scores.head,
            "head_why": scores.why,
            "tokens_per_batch": scores.tokens_per_batch,
            "sketch": sketched.label if sketched else "",
        }
        if checkpoint.gguf and not checkpoint.facts.parents:
            said = said_lineage(read_gguf(directory))
            facts |= {"base_model": said.single, "parents": ", ".join(said.parents), "relation": said.relation}
        if self.model.unused:
            facts["unused_tensors"] = list(self.model.unused)
        if self.lens is not None and self.lens.translators is not None:
            facts["tuned_lens"] = self.lens.translators.facts
        rows = scores.values[None, :] if scores.layers is None else scores.layers
        return Computed(
            log_likelihood=rows,
            layers=(-1,) if scores.layers is None else tuple(range(len(rows))),
            n_tokens=scores.n_tokens,
            facts=facts,
            timings=timings,
            weight_sketch=sketched.buckets if sketched else None,
        )

    def _sketch(
        self, checkpoint: Checkpoint, stored: Mapping[str, torch.Tensor], timings: dict[str, float]
    ) -> Sketch | None:
        """The sketch of the stored tensors, beside what else is done with them; a checkpoint without is scored, too."""
        start = time.monotonic()
        try:
            return sketch(stored, self.settings.sketch)
        except KlrayError as error:
            log.warning("%s has no weight sketch: %s", checkpoint.label, error)
            return None
        finally:
            timings["sketch_seconds"] = time.monotonic() - start

    def _encode(self, checkpoint: Checkpoint, directory: Path) -> tokens.Tokens:
        """The texts under the checkpoint's tokenizer, tokenised once per tokenizer."""
        # By the verified hashes, when config and tokenizer are the last one's: reading them again takes 5 to 20 ms.
        # A GGUF file may be weights and tokenizer in one.
        described = [
            (file.path, file.content) for file in checkpoint.files if not file.is_weight or file.path == checkpoint.gguf
        ]
        if described != self._tokens_of or not all(content for _, content in described):
            fingerprint = tokenizer_fingerprint(directory)
            if fingerprint not in self._tokens:
                with heard() as warned:
                    encoded = tokens.encode(
                        load_tokenizer(directory), self.text_set.texts, allow_lost=self.settings.allow_lost
                    )
                self._tokens = {fingerprint: (encoded, warned.take())}
                self._tokens_of = described
                return encoded
            self._tokens_of = described
        encoded, said = next(iter(self._tokens.values()))
        for text in said:
            log.warning("%s", text)
        return encoded


def load_lens(settings: ScoringSettings) -> Lens | None:
    """The lens that the settings ask for; None for scoring without one.

    Raises KlrayError if the folder does not hold the tuned lens that is asked for.
    """
    if settings.lens == NONE:
        return None
    if settings.lens == LOGIT:
        return Lens(norm=settings.lens_norm)
    lens = Lens(load_translators(settings.lens_folder), settings.lens_norm)
    if lens.name != settings.lens:
        raise KlrayError(
            f"{settings.lens_folder} holds {lens.name} on this machine, {settings.lens} was asked for: give every "
            "worker the same folder"
        )
    return lens
