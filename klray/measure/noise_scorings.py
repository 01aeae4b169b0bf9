"""One checkpoint scored in every way: precisions, devices, batch plans, and the float64 reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from klray.analysis.kl.all_pairs import kl_divergence, kl_standard_error
from klray.analysis.noise_floor import EXACT, ModelNoise, Variant
from klray.checkpoints import Checkpoint
from klray.errors import CheckpointError, KlrayError
from klray.likelihood import loading
from klray.likelihood.score import default_tokens_per_batch, score
from klray.likelihood.streams import torch_threads
from klray.likelihood.tokenizer import load_tokenizer
from klray.likelihood.tokens import encode
from klray.measure.exact import exact_log_likelihood
from klray.texts import TextSet


@dataclass(frozen=True)
class Ways:
    """In which ways every checkpoint is scored.

    ``budgets`` are tokens in a batch, 1 for one text per forward pass; empty for 1, a quarter of what ``klray score``
    takes on the device, and that.
    """

    dtypes: tuple[loading.Dtype, ...]
    devices: tuple[str, ...]  # the float64 reference is computed on the last one
    budgets: tuple[int, ...] = ()
    threads: int = 1  # of a CPU
    allow_unused: tuple[str, ...] = ()  # as for scoring
    allow_lost: int = 0

    def __post_init__(self) -> None:
        if not self.dtypes or not self.devices:
            raise KlrayError(
                f"noise.dtypes={list(self.dtypes)} noise.devices={list(self.devices)}: name at least one of each, such "
                "as noise.dtypes=[float32,bfloat16] noise.devices=[cpu]"
            )
        if any(budget < 1 for budget in self.budgets):
            raise KlrayError(f"noise.tokens_per_batch={list(self.budgets)}: each must be 1 or more")

    @property
    def scorings(self) -> int:
        """Of one checkpoint, the reference among them."""
        return 1 + len(self.dtypes) * sum(len(self.budgets_on(device)) for device in self.devices)

    def budgets_on(self, device: str) -> tuple[int, ...]:
        """Tokens in a batch, ascending."""
        default = default_tokens_per_batch(device)
        return tuple(sorted(set(self.budgets or (1, default // 4, default))))


def available_devices(asked: Sequence[str]) -> tuple[str, ...]:
    """The devices that were asked for; when none were, the CPU and, where there is one, a GPU.

    Raises KlrayError for a device that this machine lacks.
    """
    for name in asked:
        try:
            torch.empty(1, device=name)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise KlrayError(
                f"noise.devices={list(asked)}: {name} cannot be used here "
                f"({str(error).splitlines()[0]}); choose among cpu{', cuda' if torch.cuda.is_available() else ''}"
            ) from error
    return tuple(asked) or (("cpu", "cuda") if torch.cuda.is_available() else ("cpu",))


def spread(checkpoints: Sequence[Checkpoint], count: int) -> list[Checkpoint]:
    """``count`` checkpoints at equal distances in the list, the first and the last among them; one: the last."""
    if count >= len(checkpoints):
        return list(checkpoints)
    first = 0 if count > 1 else len(checkpoints) - 1
    return [checkpoints[round(place)] for place in np.linspace(first, len(checkpoints) - 1, count)]


def measure(
    checkpoint: Checkpoint,
    directory: Path,
    text_set: TextSet,
    ways: Ways,
    advance: Callable[[int, str], None] = lambda scorings, note: None,
) -> ModelNoise:
    """KL between all ways of scoring a checkpoint whose files are in ``directory``.

    Rows are rounded to float32, as a store holds them; the reference is not. What fails in one precision alone, such as
    an overflow in fp16, is recorded, and the others go on. ``advance`` is told how many scorings are through.

    Raises CheckpointError if the checkpoint cannot be loaded, or its float64 reference cannot be computed.
    """
    with torch_threads(ways.threads):
        tokens = encode(load_tokenizer(directory), text_set.texts, allow_lost=ways.allow_lost)
        loaded = loading.load(directory, EXACT, ways.devices[-1], allow_unused=ways.allow_unused)
        rows = [exact_log_likelihood(loaded.model, tokens)]
        variants = [Variant(EXACT, ways.devices[-1], 1, "model")]
        advance(1, f"{checkpoint.revision} {EXACT}")
        failures: dict[str, str] = {}
        for dtype in ways.dtypes:
            try:
                scored = []
                for device in ways.devices:
                    loaded = loading.load(directory, dtype, device, reuse=loaded, allow_unused=ways.allow_unused)
                    for budget in ways.budgets_on(device):
                        scores = score(loaded.model, tokens, tokens_per_batch=budget)
                        row = scores.values.astype(np.float32).astype(np.float64)  # as a store holds it
                        scored.append((Variant(dtype, device, budget, scores.head), row))
            except CheckpointError as error:
                failures[dtype] = error.message.replace(str(directory), checkpoint.label)
            else:
                variants += [variant for variant, _ in scored]
                rows += [row for _, row in scored]
            advance((ways.scorings - 1) // len(ways.dtypes), f"{checkpoint.revision} {dtype}")
        matrix = np.stack(rows)
        return ModelNoise(
            model=checkpoint.label,
            commit=checkpoint.commit,
            architecture=loaded.architecture,
            parameters=loaded.parameters,
            variants=tuple(variants),
            kl=_nested(kl_divergence(matrix, text_set.n_bytes, threads=ways.threads)),
            kl_standard_error=_nested(kl_standard_error(matrix, text_set.n_bytes, threads=ways.threads)),
            failures=failures,
        )


def _nested(matrix: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, matrix.tolist()))
