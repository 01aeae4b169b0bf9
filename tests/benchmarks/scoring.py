"""Scoring on a CPU: klray beside the papers' loop (one text per forward, full log-softmax) and the rate of a GEMM."""

from __future__ import annotations

import resource

import numpy as np
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from klray import likelihood
from klray.tokens import Tokens
from tests.benchmarks.machine import seconds, table

# name: hidden, layers, heads, vocabulary, texts (of about 300 tokens)
SHAPES = {
    "tiny-0.4m": (64, 2, 4, 2048, 256),
    "tiny-0.7m": (96, 3, 4, 2048, 256),
    "pythia-14m": (128, 6, 4, 50304, 128),
    "pythia-70m": (512, 6, 8, 50304, 32),
}


def main() -> str:
    """Measure and return the table."""
    gemm = _gemm_rate()
    rows = [("shape", "papers' loop, tokens/s", "klray, tokens/s", "ratio", "share of the GEMM rate")]
    for name, (hidden, layers, heads, vocabulary, n_texts) in SHAPES.items():
        torch.manual_seed(0)
        config = GPTNeoXConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
            max_position_embeddings=1024,
        )
        model = GPTNeoXForCausalLM(config).eval()
        tokens = _tokens(n_texts, vocabulary)
        work = 2 * tokens.counted.sum() * (sum(p.numel() for p in model.parameters()) - vocabulary * hidden)
        loop = seconds(lambda model=model, tokens=tokens: _papers_loop(model, tokens), repeats=1)
        ours = seconds(lambda model=model, tokens=tokens: likelihood.score(model, tokens), repeats=2)
        count = float(tokens.counted.sum())
        rows.append(
            (name, f"{count / loop:,.0f}", f"{count / ours:,.0f}", f"{loop / ours:.2f}", f"{work / ours / gemm:.2f}")
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return table(f"Scoring in fp32, GEMM rate {gemm / 1e9:.0f} GFLOP/s, peak memory {peak:.1f} GiB", rows)


def _tokens(n_texts: int, vocabulary: int) -> Tokens:
    generator = np.random.default_rng(0)
    lengths = generator.integers(100, 420, n_texts)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Tokens(generator.integers(0, vocabulary, offsets[-1]).astype(np.int32), offsets)


def _gemm_rate() -> float:
    matrix = torch.randn(2048, 2048)
    return 2 * 2048**3 / seconds(lambda: matrix @ matrix)


@torch.no_grad()
def _papers_loop(model: GPTNeoXForCausalLM, tokens: Tokens) -> list[float]:
    found = []
    for text in range(len(tokens)):
        ids = torch.from_numpy(tokens[text].astype(np.int64))[None]
        log_probabilities = torch.log_softmax(model(ids, use_cache=False).logits[0, :-1], dim=-1)
        found.append(float(log_probabilities.gather(1, ids[0, 1:, None]).sum()))
    return found
