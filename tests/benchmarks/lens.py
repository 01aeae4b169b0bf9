"""What a lens costs beside a plain score on a CPU: every layer once more through the head, in the same forward passes.

With b the time of the layers and h that of the head, a model of L layers costs (b + (L + 1) h) / (b + h) of a plain
score: for six layers below 2.5 while the head takes less than a quarter of it, which is a matter of the shape. CPU time
of one thread, the least of several rounds in which all ways take turns, so that others on the machine disturb little.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from klray.likelihood.lens import Lens, Translators
from klray.likelihood.score import score
from klray.likelihood.tokens import encode
from tests.benchmarks.contenders import Shape, texts, tokenizer
from tests.benchmarks.machine import table

SHAPES = [
    # 6 layers at the vocabulary of the embedded family, and Pythia-70m
    Shape("6 layers of 128", hidden=128, layers=6, heads=4, vocabulary=2048, one_in=32),
    Shape("6 layers of 256", hidden=256, layers=6, heads=4, vocabulary=2048, one_in=64),
    Shape("pythia-70m", hidden=512, layers=6, heads=8, vocabulary=50304, one_in=128),
]


def main(shapes: list[Shape] | None = None, rounds: int = 3) -> str:
    """Measure and return the table."""
    rows = [("shape", "vocabulary", "plain, CPU s", "logit lens", "tuned lens", "multiplications of the head", "bound")]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows += [_row(shape, rounds) for shape in shapes or SHAPES]
    finally:
        torch.set_num_threads(threads)
    return table("Every layer through a lens, in times of a plain score, one thread", rows)


def _row(shape: Shape, rounds: int) -> tuple[str, ...]:
    model = shape.model()
    tokens = encode(tokenizer(shape.vocabulary), texts(shape.vocabulary, shape.one_in))
    tuned = Lens(Translators.zeros(shape.layers, shape.hidden))
    ways: list[Callable[[], object]] = [
        lambda: score(model, tokens),
        lambda: score(model, tokens, lens=Lens()),
        lambda: score(model, tokens, lens=tuned),
    ]
    least = [float("inf")] * len(ways)
    for _ in range(rounds):
        for number, way in enumerate(ways):
            start = time.process_time()
            way()
            least[number] = min(least[number], time.process_time() - start)
    share = 2 * shape.vocabulary * shape.hidden / shape.flops_per_token
    return (
        shape.name,
        f"{shape.vocabulary:,}",
        f"{least[0]:.2f}",
        *(f"{each / least[0]:.2f}x" for each in least[1:]),
        f"{share:.0%}",
        f"{1 + shape.layers * share:.2f}x",
    )


if __name__ == "__main__":
    print(main())
