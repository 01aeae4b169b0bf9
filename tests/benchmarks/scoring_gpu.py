"""Scoring on a GPU in bf16: klray as a share of the card's matrix rate, the papers' loop, lm-evaluation-harness.

``python -m tests.benchmarks.scoring_gpu`` needs torch, transformers and tokenizers, and measures lm-evaluation-harness
if it is installed. ``--device cpu --shapes tiny`` shows on any machine that it works.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import torch

from klray.likelihood.head import OutputHead
from tests.benchmarks import contenders, machine
from tests.benchmarks.contenders import Shape

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", 64, 2, 4, vocabulary=2048, one_in=32),
        Shape("pythia-410m", 1024, 24, 16),
        Shape("pythia-1.4b", 2048, 24, 16),
        Shape("pythia-6.9b", 4096, 32, 32, vocabulary=50432),
    )
}
WITH_PEERS = ("tiny", "pythia-410m")  # one text per forward is bound by launches: a larger model says nothing new
ROUNDS = 3
BATCH_SIZES = (1, 16, 64)  # of lm-evaluation-harness
TOKENS, VOCABULARY, WIDTH = 16_384, 152_064, 4096  # of the head alone


def main(names: Sequence[str], device: str, head_size: tuple[int, int, int] = (TOKENS, VOCABULARY, WIDTH)) -> str:
    """Measure and return both tables."""
    rate = contenders.gemm_rate(device=device, dtype=torch.bfloat16)
    card = torch.cuda.get_device_name() if device == "cuda" else machine.describe()
    rows = [("shape", "way", "tokens/s", "klray is", "of the matrix rate", "beyond the model")]
    for name in names:
        rows += _compare(SHAPES[name], device, rate)
    title = (
        f"Scoring in bf16 on {card}; matrix rate {rate / 1e12:.3g} TFLOP/s.\n"
        f"The fastest of {ROUNDS} turns of the same {contenders.N_TEXTS} texts of about 1 kB (tiny: fewer); counted\n"
        "are the linear layers and the head, two operations for each weight and predicted token"
    )
    return "\n".join([machine.table(title, rows), _head(device, head_size)])


def _compare(shape: Shape, device: str, rate: float) -> list[tuple[str, ...]]:
    words, those = contenders.tokenizer(shape.vocabulary), contenders.texts(shape.vocabulary, shape.one_in)
    model = shape.model(device, torch.bfloat16)
    count = contenders.counted_tokens(words, those)
    ways = {way: contenders.way(way, model, words) for way in ("klray", "papers' loop")}
    if shape.name not in WITH_PEERS:
        del ways["papers' loop"]
    elif contenders.has_lm_eval():
        size = contenders.best_batch_size(model, words, those[:64], BATCH_SIZES)
        ways[f"lm-eval, batch {size}"] = contenders.way("lm-eval", model, words, size)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    memory = {}
    for turn in range(ROUNDS + 1):  # the first one warms up
        for way, score in ways.items():
            before = _start_of_peak(device)
            took = contenders.timed(lambda score=score: score(those), device)
            memory[way] = _peak(device, before)
            if turn:
                seconds[way].append(took)
    best = {way: min(all_of_it) for way, all_of_it in seconds.items()}
    return [
        (
            shape.name,
            way,
            f"{count / best[way]:,.0f}",
            f"{best[way] / best['klray']:.2f}x",
            f"{count * shape.flops_per_token / best[way] / rate:.2f}",
            memory[way],
        )
        for way in ways
    ]


def _head(device: str, size: tuple[int, int, int]) -> str:
    """Extra memory and time of the output head alone."""
    tokens, vocabulary, width = size
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(vocabulary, width, device=device, dtype=torch.bfloat16, generator=generator) / width**0.5
    hidden = torch.randn(tokens, width, device=device, dtype=torch.bfloat16, generator=generator)
    targets = torch.randint(0, vocabulary, (tokens,), device=device, generator=generator)
    head = OutputHead(weight)
    with torch.no_grad():
        head.log_probabilities(hidden, targets)
        before = _start_of_peak(device)
        took = contenders.timed(lambda: head.log_probabilities(hidden, targets), device)
    rows = [
        ("tokens", "vocabulary", "width", "seconds", "TFLOP/s", "extra memory"),
        (
            f"{tokens:,}",
            f"{vocabulary:,}",
            f"{width:,}",
            f"{took:.3f}",
            f"{2 * tokens * vocabulary * width / took / 1e12:.3g}",
            _peak(device, before),
        ),
    ]
    return machine.table("The output head alone", rows)


def _start_of_peak(device: str) -> int:
    if device != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak(device: str, before: int) -> str:
    return f"{(torch.cuda.max_memory_allocated() - before) / 1e6:,.0f} MB" if device == "cuda" else "not on a CPU"


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    every = [name for name in SHAPES if name != "tiny"]
    parser.add_argument("--shapes", nargs="+", default=every, choices=list(SHAPES))
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device: run this on a machine with one, or pass --device cpu --shapes tiny")
    small = (1024, 4096, 64) if asked.device == "cpu" else (TOKENS, VOCABULARY, WIDTH)
    print(main(asked.shapes, asked.device, small))
