"""Making one model of the embedded family, on one thread: equal recipe and seed give equal weights, byte for byte.

``python -m klray.tiny.training FOLDER REPOSITORY`` reads ``FOLDER/recipe.json`` and ``FOLDER/texts``, makes one
run, child or merge in ``FOLDER/hub/REPOSITORY``, and writes a JSON line with ``step`` and ``loss`` to standard output
now and then. The parents of children and merges have to be there.

Shape suffixes: B = blocks of a batch, T = tokens of a block, V = vocabulary.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from klray.tiny.family_recipe import CONTEXT_TOKENS, Child, FamilyRecipe, FamilyRun, Merge, Size
from klray.tiny.tokenizer import END_OF_TEXT_ID

_REPORT_EVERY = 5  # steps


def make_model(size: Size, vocabulary: int) -> GPTNeoXForCausalLM:
    """A GPT-NeoX model in float32 whose weights come from torch's global generator."""
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.hidden,
        max_position_embeddings=CONTEXT_TOKENS,
        # GPT-NeoX's small_init: sqrt(2 / 5h). The configuration's 0.02 is for widths of thousands.
        initializer_range=math.sqrt(2 / (5 * size.hidden)),
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
    )
    return GPTNeoXForCausalLM(config)


def learning_rate(step: float, recipe: FamilyRecipe, highest: float) -> float:
    """Learning rate of the update that leads to ``step`` (1 to ``recipe.steps``): linear warm-up, then a cosine."""
    if step <= recipe.warmup_steps:
        return highest * step / recipe.warmup_steps
    way = (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)
    floor = recipe.final_learning_rate_share
    return highest * (floor + (1 - floor) * (1 + math.cos(math.pi * way)) / 2)


def draw_blocks(
    streams: Sequence[np.ndarray], blocks: int, block_tokens: int, generator: np.random.Generator
) -> torch.Tensor:
    """int64 (B, T + 1): windows at random places, equally many of each stream; the last token is only a target."""
    windows = [
        stream[start : start + block_tokens + 1]
        for stream in streams
        for start in generator.integers(0, len(stream) - block_tokens, size=blocks // len(streams))
    ]
    return torch.from_numpy(np.stack(windows).astype(np.int64))


def train(
    recipe: FamilyRecipe,
    run: FamilyRun,
    streams: Sequence[np.ndarray],
    save: Callable[[GPTNeoXForCausalLM, int], None],
    report: Callable[[int, float], None],
) -> None:
    """Train one run; ``save(model, step)`` at the saved steps, ``report(step, nats per token)`` after each update.

    The seed decides the initial weights and the order of the data. Torch must be on one thread: sums over several
    threads depend on how the work was split.
    """
    torch.manual_seed(run.seed)
    model = make_model(run.size, recipe.vocabulary)
    saved_steps = frozenset(recipe.steps_kept(run))
    save(model, 0)
    rates = [learning_rate(step, recipe, run.size.learning_rate) for step in range(1, recipe.steps + 1)]
    for step, loss in _updates(model, recipe, rates, streams, np.random.default_rng(run.seed)):
        report(step, loss)
        if step in saved_steps:
            save(model, step)


def fine_tune(
    recipe: FamilyRecipe,
    child: Child,
    model: GPTNeoXForCausalLM,
    streams: Sequence[np.ndarray],
    report: Callable[[int, float], None],
) -> None:
    """Train a model, which holds its parent's weights, on the streams of the child's domains."""
    torch.manual_seed(child.seed)
    # The recipe's schedule, compressed to the child's steps.
    stretch = recipe.steps / child.steps
    rates = [learning_rate(step * stretch, recipe, child.learning_rate) for step in range(1, child.steps + 1)]
    for step, loss in _updates(model, recipe, rates, streams, np.random.default_rng(child.seed)):
        report(step, loss)


def _updates(
    model: GPTNeoXForCausalLM,
    recipe: FamilyRecipe,
    rates: Sequence[float],
    streams: Sequence[np.ndarray],
    generator: np.random.Generator,
) -> Iterator[tuple[int, float]]:
    """One update for each learning rate: (its number from 1, loss before it in nats per token)."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for step, rate in enumerate(rates, 1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        tokens_BT = draw_blocks(streams, recipe.batch_blocks, recipe.block_tokens, generator)
        logits_BTV = model(input_ids=tokens_BT[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield step, loss.item()


def mean_model(models: Sequence[GPTNeoXForCausalLM]) -> GPTNeoXForCausalLM:
    """The first model, its parameters replaced by the means over all, in float64, rounded to float32."""
    with torch.no_grad():
        for name, parameter in models[0].named_parameters():
            same = torch.stack([model.get_parameter(name).double() for model in models])
            parameter.copy_(same.mean(0))
    return models[0]


def write_model(recipe: FamilyRecipe, made: FamilyRun | Child | Merge, texts: Path, hub: Path) -> None:
    """Make a model in its folder of ``hub``: revisions get their names when whole, ``complete.json`` comes last."""
    repository = hub / made.repository
    if repository.exists():
        shutil.rmtree(repository)
    repository.mkdir(parents=True)
    parents = list(made.parents)
    card = {"base_model": parents[0] if isinstance(made, Child) else parents} if parents else {}
    (repository / "repo.json").write_text(json.dumps(card))
    losses = []

    def save(model: GPTNeoXForCausalLM, revision: str) -> None:
        unfinished = repository / f".{revision}"
        shutil.copytree(texts / "tokenizer", unfinished)
        model.save_pretrained(unfinished)
        unfinished.rename(repository / revision)

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        if step % _REPORT_EVERY == 0 or step == recipe.updates(made):
            print(json.dumps({"step": step, "loss": loss}), flush=True)

    models = [
        GPTNeoXForCausalLM.from_pretrained(hub / parent / recipe.last_revision(parent), dtype=torch.float32).train()
        for parent in parents
    ]
    if isinstance(made, FamilyRun):
        streams = [np.load(path, mmap_mode="r") for path in sorted(texts.glob("*.npy"))]
        train(recipe, made, streams, lambda model, step: save(model, f"step{step}"), report)
    elif isinstance(made, Child):
        streams = [np.load(texts / f"{domain}.npy", mmap_mode="r") for domain in sorted(made.domains)]
        fine_tune(recipe, made, models[0], streams, report)
        save(models[0], "main")
    else:
        save(mean_model(models), "main")
    unfinished = repository / ".complete.json"
    unfinished.write_text(json.dumps({"losses_nats_per_token": losses, "cpu_seconds": time.process_time()}))
    unfinished.rename(repository / "complete.json")


if __name__ == "__main__":
    torch.set_num_threads(1)
    family, name = Path(sys.argv[1]), sys.argv[2]
    the_recipe = FamilyRecipe.read(family)
    (the_model,) = (made for made in the_recipe.all if made.repository == name)
    write_model(the_recipe, the_model, family / "texts", family / "hub")
