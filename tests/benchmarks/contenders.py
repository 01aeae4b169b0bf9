"""Models, texts and ways to score them: klray, the papers' loop, plain batches, lm-evaluation-harness.

Needs torch, transformers and tokenizers; lm_eval for the last way alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from klray.likelihood import score as likelihood
from klray.likelihood.tokens import encode, plan

WAYS = ("klray", "papers' loop", "lm-eval")
N_TEXTS = 512
PLAIN_BATCH = 16  # rows of plain batches: their fp32 logits take 1.4 GB at 420 tokens and 50,304 entries


@dataclass(frozen=True)
class Shape:
    """A GPT-NeoX model of random weights.

    ``one_in`` is how many of the 512 texts' batches stand for all: one in so many is scored, to keep a run short.
    """

    name: str
    hidden: int
    layers: int
    heads: int
    vocabulary: int = 50304
    one_in: int = 1

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations of the linear layers and the output head, two for each weight and token.

        The products inside the attention are left out (3 % more at 70 M and 260 tokens), as are norms and biases.
        """
        return 2 * (12 * self.hidden**2 * self.layers + self.vocabulary * self.hidden)

    def model(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> GPTNeoXForCausalLM:
        """The model in eval mode; weights are drawn on the device."""
        config = GPTNeoXConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.hidden,
            max_position_embeddings=2048,
        )
        torch.manual_seed(0)
        with torch.device(device):
            return GPTNeoXForCausalLM._from_config(config, dtype=dtype).eval()


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One word, one token: every number in base 36 up to the size of the vocabulary."""
    words = {"<eos>": 0} | {np.base_repr(number, 36): number for number in range(1, vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", model_max_length=2048)


def texts(vocabulary: int, one_in: int = 1) -> list[str]:
    """Of 512 texts of 100 to 420 tokens, about 1 kB, those in one of ``one_in`` batches of klray's plan for all."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(100, 420, N_TEXTS)
    every = [
        " ".join(np.base_repr(number, 36) for number in generator.integers(1, vocabulary, length)) for length in lengths
    ]
    batches = plan(lengths, likelihood.default_tokens_per_batch("cpu"))
    return [every[index] for index in sorted(np.concatenate(batches[::one_in]))]


def way(
    name: str, model: GPTNeoXForCausalLM, words: PreTrainedTokenizerFast, batch_size: int = 1
) -> Callable[..., list[float]]:
    """A function from texts to their log-likelihoods in nats; ``batch_size`` is lm-evaluation-harness's."""
    if name == "klray":
        return lambda those: likelihood.log_likelihood(model, words, those).tolist()
    if name in ("papers' loop", "one text a time"):
        return lambda those: _papers_loop(model, words, those)
    if name == "plain batches":
        return lambda those: _plain_batches(model, words, those)
    return _lm_eval(model, words, batch_size)


def has_lm_eval() -> bool:
    """Whether lm-evaluation-harness is installed."""
    return importlib.util.find_spec("lm_eval") is not None


def best_batch_size(
    model: GPTNeoXForCausalLM, words: PreTrainedTokenizerFast, sample: Sequence[str], sizes: Sequence[int]
) -> int:
    """The batch size at which lm-evaluation-harness scores ``sample`` fastest, each tried twice."""
    took = {}
    for size in sizes:
        score = way("lm-eval", model, words, size)
        took[size] = min(timed(lambda score=score: score(sample), model.device.type) for _ in range(2))
    return min(took, key=lambda size: took[size])


def timed(work: Callable[[], object], device: str = "cpu") -> float:
    """Wall seconds of one call, the device's queue included."""
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def gemm_rate(
    of: Callable[[list[float]], float] = min,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    size: int | None = None,
) -> float:
    """FLOP/s of a square matrix product, 2,048 on a CPU, 8,192 on a GPU: by the least, or the median, of nine times."""
    size = size or (8192 if device == "cuda" else 2048)
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    torch.mm(matrix, matrix)
    return 2 * size**3 / of([timed(lambda: torch.mm(matrix, matrix), device) for _ in range(9)])


@torch.no_grad()
def _papers_loop(model: GPTNeoXForCausalLM, words: PreTrainedTokenizerFast, those: Sequence[str]) -> list[float]:
    found = []
    for text in those:
        ids = words(text, return_tensors="pt")["input_ids"].to(model.device)
        log_probabilities = torch.log_softmax(model(ids, use_cache=False).logits[0, :-1].float(), dim=-1)
        found.append(float(log_probabilities.gather(1, ids[0, 1:, None]).sum()))
    return found


@torch.no_grad()
def _plain_batches(model: GPTNeoXForCausalLM, words: PreTrainedTokenizerFast, those: Sequence[str]) -> list[float]:
    """Rows padded to the longest of a batch, all logits in fp32, PyTorch's cross-entropy of each token."""
    found = []
    words.pad_token = words.eos_token
    for first in range(0, len(those), PLAIN_BATCH):
        batch = words(list(those[first : first + PLAIN_BATCH]), return_tensors="pt", padding=True, padding_side="right")
        ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
        logits = model(ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        found += (-loss.view(len(ids), -1) * mask[:, 1:]).sum(-1).tolist()
    return found


def _lm_eval(model: GPTNeoXForCausalLM, words: PreTrainedTokenizerFast, batch_size: int) -> Callable[..., list[float]]:
    # lm_eval is not among what the benchmark needs, and takes seconds to import.
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        harness = HFLM(pretrained=model, tokenizer=words, batch_size=batch_size, device=str(model.device))

    def score(those: Sequence[str]) -> list[float]:
        requests = [Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(those)]
        with (
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stderr(nowhere),
        ):  # a progress bar for every batch
            return harness.loglikelihood_rolling(requests, disable_tqdm=True)

    return score


def counted_tokens(words: PreTrainedTokenizerFast, those: Sequence[str]) -> int:
    """Tokens with a prediction: all but the first of each text."""
    return int(encode(words, those).counted.sum())
