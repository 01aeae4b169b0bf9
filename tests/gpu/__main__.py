"""``python -m tests.gpu``: does this GPU score rightly, how noisily, how fast? One command, one table at the end.

It needs torch, transformers, tokenizers, safetensors and numpy, and nothing else. Models are GPT-NeoX of Pythia's
shapes with random weights, made on the spot; nothing is downloaded. ``--tiny``, which is taken where there is no GPU,
runs all of it in a few seconds. The exit code is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import torch

from tests.benchmarks import contenders, machine
from tests.benchmarks.contenders import Shape
from tests.gpu import exactness, speed
from tests.gpu.exactness import DTYPES

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", 32, 2, 4, vocabulary=512, one_in=128),
        Shape("pythia-160m", 768, 12, 12),
        Shape("pythia-410m", 1024, 24, 16),
        Shape("pythia-1.4b", 2048, 24, 16),
    )
}
HEADING = ("shape", "precision", "way", "tokens/s", "klray is", "MFU", "beyond the model", "plans", "to float64", "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every shape, print the table, and say which checks failed."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a tiny shape; taken where there is no GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--shapes", nargs="+", default=[name for name in SHAPES if name != "tiny"], choices=SHAPES)
    asked = parser.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device: run this on a machine with one, or leave --device out")
    tiny = asked.tiny or asked.device == "cpu"
    rows, failed = [HEADING], []
    size = 128 if tiny else None  # a CPU may take minutes for a large product in fp16
    rates = {name: contenders.gemm_rate(device=asked.device, dtype=dtype, size=size) for name, dtype in DTYPES.items()}
    for name in ["tiny"] if tiny else asked.shapes:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found = exactness.measure(SHAPES[name], asked.device)
        failed += [f"{name}: {each}" for each in found.failed]
        noise = {(each.dtype, each.way): each for each in found.rows}
        for row in speed.measure(SHAPES[name], asked.device, rates):
            error = noise[row.dtype, row.way]
            rows.append((name, *row.cells, error.plans, error.to_float64, error.verdict))
    print(machine.table(_title(asked.device, rates), rows))
    print(speed.head(asked.device, tiny))
    for each in failed:
        print(f"failed: {each}")
    print(f"{len(failed)} of the checks failed" if failed else "every check holds")
    return 1 if failed else 0


def _title(device: str, rates: dict[str, float]) -> str:
    card = torch.cuda.get_device_name() if device == "cuda" else "a CPU, which shows that this runs and no more"
    products = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in rates.items())
    return (
        f"{machine.describe()}; {card}\n"
        f"Matrix products in TFLOP/s: {products}. MFU: linear layers and head, two operations for each weight and\n"
        "predicted token, as a share of these. Of tokens/s the best of three turns; memory is the peak beyond the "
        "model.\nplans, to float64: KL in bits/byte between batch plans, and from log-likelihoods in float64; fine: "
        f"at most {exactness.FINE:g}, a hundredth of the smallest KL of interest"
    )


if __name__ == "__main__":
    sys.exit(main())
