"""What exact token-level KL costs in scorings, and the memory it takes beside the two models at a large vocabulary.

CPU time of one thread, the least of several rounds in which both ways take turns: comparing two models, and scoring one
of them. Memory is the most that the process had at once, less what it had with the models, tokens and one comparison of
a short text behind it.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from klray.likelihood.score import score
from klray.likelihood.tokens import Tokens
from klray.measure.token_kl import compare
from tests.benchmarks.contenders import Shape
from tests.benchmarks.machine import table

SHAPES = [
    Shape("tiny-0.6m", hidden=64, layers=6, heads=4, vocabulary=2048, one_in=1),
    Shape("pythia-70m", hidden=512, layers=6, heads=8, vocabulary=50304, one_in=1),
    Shape("pythia-160m", hidden=768, layers=12, heads=12, vocabulary=50304, one_in=1),
]
LARGE = Shape("152k", hidden=256, layers=2, heads=4, vocabulary=151_936, one_in=1)
LENGTHS = [250] * 16


def tokens_of(vocabulary: int, lengths: list[int]) -> Tokens:
    """Texts of random tokens."""
    offsets = np.cumsum([0, *lengths])
    return Tokens(np.random.default_rng(0).integers(0, vocabulary, offsets[-1]).astype(np.int32), offsets)


def pair(shape: Shape) -> list[torch.nn.Module]:
    """A model, and the same a little away from it."""
    model = shape.model()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    return [model, other]


def cost(shape: Shape, rounds: int = 3, lengths: list[int] = LENGTHS) -> float:
    """Seconds of a comparison over seconds of a scoring."""
    models, tokens, n_bytes = pair(shape), tokens_of(shape.vocabulary, lengths), np.full(len(lengths), 1000)
    ways: list[Callable[[], object]] = [lambda: score(models[0], tokens), lambda: compare(models, tokens, n_bytes)]
    least = [float("inf")] * len(ways)
    for _ in range(rounds):
        for number, way in enumerate(ways):
            start = time.process_time()
            way()
            least[number] = min(least[number], time.process_time() - start)
    return least[1] / least[0]


def memory(shape: Shape = LARGE, lengths: list[int] = LENGTHS) -> int:
    """Bytes beside the models, of this process."""
    models, tokens = pair(shape), tokens_of(shape.vocabulary, lengths)
    compare(models, tokens_of(shape.vocabulary, [8]), np.full(1, 30))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what the process has now
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    compare(models, tokens, np.full(len(lengths), 1000))
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(peak.split()[1]) - before


def main() -> str:
    """Measure and return the table."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [("two models of", "vocabulary", "scorings of one of them", "MB beside the models")]
        rows += [(each.name, f"{each.vocabulary:,}", f"{cost(each):.2f}", "") for each in SHAPES]
        rows.append((f"{LARGE.layers} layers of {LARGE.hidden}", f"{LARGE.vocabulary:,}", "", f"{memory() / 1e6:.0f}"))
    finally:
        torch.set_num_threads(threads)
    return table("Exact token-level KL on one thread, 16 texts of 250 tokens", rows)


if __name__ == "__main__":
    print(main())
