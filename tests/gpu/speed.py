"""Tokens per second of each way to score, as a share of the device's own matrix rate, and the memory that it takes."""

from __future__ import annotations

import dataclasses

import torch

from klray.likelihood.head import OutputHead
from tests.benchmarks import contenders, machine
from tests.benchmarks.contenders import Shape
from tests.gpu.exactness import DTYPES, WAYS, model_of

ROUNDS = {"cuda": 3, "cpu": 1}
TOKENS, VOCABULARY, WIDTH = 16_384, 152_064, 4096  # of the head alone
TINY_HEAD = (1024, 4096, 64)


@dataclasses.dataclass(frozen=True)
class Row:
    """One way in one precision; ``cells`` are of the table: precision, way, tokens/s, ratio, share of rate, memory."""

    dtype: str
    way: str
    cells: tuple[str, ...]


def measure(shape: Shape, device: str, rates: dict[str, float]) -> list[Row]:
    """Every way in every precision, in turns, so that a machine that slows down slows all of them."""
    words, those = contenders.tokenizer(shape.vocabulary), contenders.texts(shape.vocabulary, shape.one_in)
    count = contenders.counted_tokens(words, those)
    rows = []
    for name, dtype in DTYPES.items():
        model = model_of(shape, device, dtype)
        ways = {way: contenders.way(way, model, words) for way in WAYS}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        memory = {}
        for turn in range(ROUNDS[device] + 1):  # the first one warms up
            for way, score in ways.items():
                before = _start_of_peak(device)
                took = contenders.timed(lambda score=score: score(those), device)
                memory[way] = _peak(device, before)
                if turn:
                    seconds[way].append(took)
        best = {way: min(all_of_it) for way, all_of_it in seconds.items()}
        for way, took in best.items():
            share = f"{count * shape.flops_per_token / took / rates[name]:.2f}" if device == "cuda" else "not on a CPU"
            ratio = f"{took / best['klray']:.2f}x"
            rows.append(Row(name, way, (name, way, f"{count / took:,.0f}", ratio, share, memory[way])))
    return rows


def head(device: str, tiny: bool = False) -> str:
    """Extra memory and time of the output head alone, in bf16."""
    tokens, vocabulary, width = TINY_HEAD if tiny else (TOKENS, VOCABULARY, WIDTH)
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(vocabulary, width, device=device, dtype=torch.bfloat16, generator=generator) / width**0.5
    hidden = torch.randn(tokens, width, device=device, dtype=torch.bfloat16, generator=generator)
    targets = torch.randint(0, vocabulary, (tokens,), device=device, generator=generator)
    output = OutputHead(weight)
    with torch.no_grad():
        output.log_probabilities(hidden, targets)
        before = _start_of_peak(device)
        took = contenders.timed(lambda: output.log_probabilities(hidden, targets), device)
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
    return machine.table("The output head alone, in bfloat16", rows)


def _start_of_peak(device: str) -> int:
    if device != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak(device: str, before: int) -> str:
    return f"{(torch.cuda.max_memory_allocated() - before) / 1e6:,.0f} MB" if device == "cuda" else "not on a CPU"
