"""Log-likelihoods on a device against float64, in every precision and batch plan, beside two ordinary ways."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from klray.likelihood.score import default_tokens_per_batch, log_likelihood, score
from klray.likelihood.tokens import encode
from klray.measure.exact import exact_log_likelihood
from tests.benchmarks import contenders
from tests.benchmarks.contenders import Shape

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FINE = 1e-4  # bits/byte: 100 times below 0.01, the smallest KL of interest
MOST_TEXTS = 24  # the reference computes every text alone, in float64
SPREAD = 5.0  # by which the head is multiplied: logits far from uniform, as a trained model's are
WAYS = ("klray", "one text a time", "plain batches")


@dataclasses.dataclass(frozen=True)
class Noise:
    """How far the log-likelihoods of one way are from each other and from float64, as cells of a table."""

    dtype: str
    way: str
    plans: str
    to_float64: str
    verdict: str


@dataclasses.dataclass(frozen=True)
class Exactness:
    """A row for each precision and way, and what does not hold."""

    rows: list[Noise]
    failed: list[str]


def kl_bits_per_byte(one: np.ndarray, two: np.ndarray, n_bytes: np.ndarray) -> float:
    """Var(l_1 - l_2) over N texts / (2 c mean bytes), c = log 2: the KL divergence of arXiv 2505.15353."""
    return float(np.var(one - two) / (2 * n_bytes.mean() * math.log(2)))


def model_of(shape: Shape, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """The shape's model with weights that fp16 holds, as Pythia's are stored, in another precision."""
    model = shape.model(device, torch.float32)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(SPREAD)
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    return model.to(dtype)


def measure(shape: Shape, device: str) -> Exactness:
    """Score some texts in every way, and check what is promised of them.

    Promised of klray: the same bits every time; in fp32 and bf16 no further from float64 than scoring one text a time
    in the ordinary way; in fp32 a noise floor that is fine.
    """
    words = contenders.tokenizer(shape.vocabulary)
    those = contenders.texts(shape.vocabulary, shape.one_in)
    those = those[:: math.ceil(len(those) / MOST_TEXTS)]
    n_bytes = np.array([len(text.encode()) for text in those])
    tokens = encode(words, those)
    exact = exact_log_likelihood(model_of(shape, device, torch.float64), tokens)
    found = Exactness([], [])
    for name, dtype in DTYPES.items():
        model = model_of(shape, device, dtype)
        default = default_tokens_per_batch(device)
        plans = [log_likelihood(model, words, those, tokens_per_batch=n) for n in (default, default // 4, 1)]
        scored = score(model, tokens)
        if scored.head != "tiled":
            found.failed.append(f"{name}: klray's head does not stand for the model's own")
        if scored.values.tobytes() != plans[0].tobytes():
            found.failed.append(f"{name}: scored twice, the bits differ")
        distance = {"klray": _furthest([exact], plans, n_bytes)}
        between = _furthest(plans, plans, n_bytes)
        worst = max(between, distance["klray"])
        verdict = "fine" if worst <= FINE else "noisy"
        found.rows.append(Noise(name, "klray", f"{between:.1e}", f"{distance['klray']:.1e}", verdict))
        for way in WAYS[1:]:
            values = np.array(contenders.way(way, model, words)(those))
            distance[way] = _furthest([exact], [values], n_bytes)
            found.rows.append(Noise(name, way, "", f"{distance[way]:.1e}", ""))
        if not np.isfinite(list(distance.values())).all():
            found.failed.append(f"{name}: a log-likelihood is not finite")
        # What both have in common, the layers' rounding, varies with the order of their sums: by less than twice.
        elif distance["klray"] > 2 * distance["one text a time"] + 1e-12:
            found.failed.append(f"{name}: klray is {distance['klray']:.1e} bits/byte from float64, one text a time "
                                f"{distance['one text a time']:.1e}")  # fmt: skip
        if name == "float32" and worst > FINE:
            found.failed.append(f"{name}: a noise floor of {worst:.1e} bits/byte is above {FINE:g}")
    return found


def _furthest(some: Sequence[np.ndarray], others: Sequence[np.ndarray], n_bytes: np.ndarray) -> float:
    return max(kl_bits_per_byte(one, two, n_bytes) for one in some for two in others)
