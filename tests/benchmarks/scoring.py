"""Scoring on a CPU in fp32: klray, the papers' loop (one text per forward, full log-softmax), lm-evaluation-harness.

Each has a process of its own, with its own GEMM rate and peak memory; they take turns, and the GEMM rate is taken right
before and after each. A machine that others use, too, may be slower by a half from one minute to the next, so shares
and ratios are taken within each round, and the medians over the rounds are given.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from klray.likelihood.score import default_tokens_per_batch
from klray.likelihood.tokens import encode, plan
from tests.benchmarks import contenders
from tests.benchmarks.contenders import Shape
from tests.benchmarks.machine import table

SHAPES = (
    Shape("pythia-14m", 128, 6, 4, one_in=2),
    Shape("pythia-70m", 512, 6, 8, one_in=3),
    Shape("pythia-160m", 768, 12, 12, one_in=4),  # 41 of 162 batches: while the last is computed a stream is idle
)
ROUNDS = 3
GEMM = 2048  # rows and columns of the product whose rate is that of the machine
BATCH_SIZES = (1, 4, 16)  # of lm-evaluation-harness
HEADING = ("shape", "way", "tokens/s", "klray is", "of the GEMM rate", "GFLOP/s", "peak MiB", "added MiB", "padding")


def main(shapes: Sequence[Shape] = SHAPES, rounds: int = ROUNDS, gemm: int = GEMM) -> str:
    """Measure and return the table."""
    rows = [HEADING]
    for shape in shapes:
        rows += _compare(shape, rounds, gemm)
    title = (
        f"Scoring in fp32: medians of {rounds} rounds, in which the ways take turns with the same texts. A share is\n"
        f"of the GEMM rate ({gemm:,} square) of the way's own process right before and after its turn; counted are\n"
        "the linear layers and the head, two operations for each weight and predicted token. GFLOP/s: of the GEMM,\n"
        "median and most. Added MiB: the peak beyond what stood before scoring. Texts: whole batches of the plan\n"
        "for 512 texts of about 1 kB, one in " + ", ".join(f"{shape.one_in} ({shape.name})" for shape in shapes)
    )
    return table(title, rows)


def _compare(shape: Shape, rounds: int, gemm: int) -> list[tuple[str, ...]]:
    words, those = contenders.tokenizer(shape.vocabulary), contenders.texts(shape.vocabulary, shape.one_in)
    tokens = encode(words, those)
    count = int(tokens.counted.sum())
    ways = [way for way in contenders.WAYS if way != "lm-eval" or contenders.has_lm_eval()]
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for way in ways:
        pipes[way], theirs = context.Pipe()
        processes.append(context.Process(target=_take_turns, args=(theirs, shape, way, those, gemm), daemon=True))
        processes[-1].start()
        theirs.close()
    batch_size = {way: _answer(pipes[way]) for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            pipes[way].send("score")
            rate, took = _answer(pipes[way])
            rates[way].append(rate)
            seconds[way].append(took)
    memory = {}
    for way in ways:
        pipes[way].send("memory")
        memory[way] = _answer(pipes[way])
    for process in processes:
        process.join()
    flops = count * shape.flops_per_token
    slots = sum(tokens.rows(batch)[0].size for batch in plan(tokens.lengths, default_tokens_per_batch("cpu")))
    padding = 1 - tokens.lengths.sum() / slots
    return [
        (
            shape.name,
            way if way != "lm-eval" else f"lm-eval, batch {batch_size[way]}",
            f"{count / median(seconds[way]):,.0f}",
            f"{median(theirs / ours for theirs, ours in zip(seconds[way], seconds['klray'], strict=True)):.2f}x",
            f"{median(flops / took / rate for took, rate in zip(seconds[way], rates[way], strict=True)):.2f}",
            f"{median(rates[way]) / 1e9:.0f} ({max(rates[way]) / 1e9:.0f})",
            f"{memory[way][0]:,.0f}",
            f"{memory[way][1]:,.0f}",
            f"{padding:.1%}" if way == "klray" else "",
        )
        for way in ways
    ]


def _answer(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        raise RuntimeError("a process of the benchmark ended early: see its traceback above") from None


def _take_turns(pipe: Connection, shape: Shape, way: str, those: list[str], gemm: int) -> None:
    """One way in its own process: says its batch size, then answers "score" and, last, "memory"."""
    model, words = shape.model(), contenders.tokenizer(shape.vocabulary)
    sample = those[:: max(1, len(those) // 12)]
    size = contenders.best_batch_size(model, words, sample, BATCH_SIZES) if way == "lm-eval" else 0
    score = contenders.way(way, model, words, size)
    score(sample)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = _memory("VmRSS")
    pipe.send(size)
    while pipe.recv() == "score":
        earlier = contenders.gemm_rate(median, size=gemm)
        took = contenders.timed(lambda: score(those))
        pipe.send(((earlier + contenders.gemm_rate(median, size=gemm)) / 2, took))
    pipe.send((_memory("VmHWM"), _memory("VmHWM") - before))


def _memory(name: str) -> float:
    """MiB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
