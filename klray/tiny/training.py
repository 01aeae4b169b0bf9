"""Making one model of the embedded family, on one thread: equal recipe and seed give equal weights, byte for byte.

``python -m klray.tiny.training FOLDER`` reads ``FOLDER/recipe.json`` and ``FOLDER/texts``, and from standard input the
repositories to make, one a line, because its imports take longer than a small model. It makes the run, child or merge
in ``FOLDER/hub/REPOSITORY``, writes a JSON line with ``step`` and ``loss`` to standard output now and then, and in the
end one with ``made``. The parents of children and merges have to be there.

Shape suffixes: B = blocks of a batch, T = tokens of a block, V = vocabulary.
"""

import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
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


def learning_rates(recipe: FamilyRecipe, made: FamilyRun | Child) -> list[float]:
    """One for each update of a run, or of a child: the recipe's schedule, compressed to the child's steps."""
    highest = made.size.learning_rate if isinstance(made, FamilyRun) else made.learning_rate
    stretch = recipe.steps / recipe.updates(made)
    return [learning_rate(step * stretch, recipe, highest) for step in range(1, recipe.updates(made) + 1)]


def train(
    recipe: FamilyRecipe, made: FamilyRun | Child, model: GPTNeoXForCausalLM, streams: Sequence[np.ndarray]
) -> Iterator[tuple[int, float]]:
    """Train a model with a run's new or a child's parent's weights: (step from 1, loss before it in nats per token).

    The seed decides the order of the data. Torch must be on one thread: sums over several threads depend on how the
    work was split.
    """
    generator = np.random.default_rng(made.seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for step, rate in enumerate(learning_rates(recipe, made), 1):
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
    begun = time.process_time()
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

    models = [
        GPTNeoXForCausalLM.from_pretrained(hub / parent / recipe.last_revision(parent), dtype=torch.float32).train()
        for parent in parents
    ]
    if isinstance(made, Merge):
        save(mean_model(models), "main")
    else:
        torch.manual_seed(made.seed)
        if isinstance(made, FamilyRun):
            model, kept = (
                make_model(made.size, recipe.vocabulary),
                {step: f"step{step}" for step in recipe.steps_kept(made)},
            )
            save(model, "step0")
        else:
            model, kept = models[0], {made.steps: "main"}
        domains = made.domains if isinstance(made, Child) else [path.stem for path in texts.glob("*.npy")]
        streams = [np.load(texts / f"{domain}.npy", mmap_mode="r") for domain in sorted(domains)]
        for step, loss in train(recipe, made, model, streams):
            losses.append(loss)
            if step % _REPORT_EVERY == 0 or step == recipe.updates(made):
                print(json.dumps({"step": step, "loss": loss}), flush=True)
            if step in kept:
                save(model, kept[step])
    unfinished = repository / ".complete.json"
    unfinished.write_text(json.dumps({"losses_nats_per_token": losses, "cpu_seconds": time.process_time() - begun}))
    unfinished.rename(repository / "complete.json")


if __name__ == "__main__":
    torch.set_num_threads(1)
    family = Path(sys.argv[1])
    the_recipe = FamilyRecipe.read(family)
    models = {made.repository: made for made in the_recipe.all}
    for line in sys.stdin:
        write_model(the_recipe, models[line.strip()], family / "texts", family / "hub")
        print(json.dumps({"made": line.strip()}), flush=True)
