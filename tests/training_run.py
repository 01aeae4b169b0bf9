"""A short training run of a tiny GPT-2 whose every step draws from the generators, for the tests of klray.watch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from klray.store import Commit, Store
from klray.texts import TextSet
from tests import tiny_models

TEXTS = TextSet("tiny", tuple(tiny_models.texts()), ("all",) * len(tiny_models.texts()))
RUN = "my-lab/run-1"
STEPS = 6


def collate(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Draws from every generator that a training may draw from."""
    ids = torch.tensor(rows)
    ids[random.randrange(len(rows)), int(np.random.randint(ids.shape[1]))] = int(torch.randint(256, (1,)))
    return {"input_ids": ids, "labels": ids.clone()}


def collate_alike(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Draws nothing: accelerate fetches a batch ahead, so that a resumed Trainer would draw others than before."""
    return {"input_ids": torch.tensor(rows), "labels": torch.tensor(rows)}


def draw(module: Any, _: Any) -> None:
    """What a model might do in a forward pass of its own: it draws where scoring would, and nowhere else."""
    if not module.training:
        random.random(), np.random.rand(), torch.rand(1)


def trainer(folder: Path, *callbacks: Any, collator: Any = collate, **arguments: Any) -> transformers.Trainer:
    """A Trainer of GPT-2's kind, which has dropout, about to train for ``STEPS`` steps."""
    model = tiny_models.tiny_model("gpt2").train()
    model.base_model.register_forward_pre_hook(draw)
    rows = np.random.default_rng(0).integers(2, tiny_models.VOCABULARY, (64, 24)).tolist()
    settings = {"max_steps": STEPS, "save_strategy": "no", "logging_steps": 2, "learning_rate": 1e-2, **arguments}
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            str(folder), use_cpu=True, report_to=[], disable_tqdm=True, per_device_train_batch_size=4, **settings
        ),
        train_dataset=rows,
        data_collator=collator,
        processing_class=tiny_models.tokenizer_for("gpt2"),
        callbacks=list(callbacks),
    )


def columns(store: Store) -> dict[int, Commit]:
    """Commits by step; each step has one."""
    commits = store.commits()
    found = {commit.facts["step"]: commit for commit in commits}
    assert len(found) == len(commits)
    return dict(sorted(found.items()))


def weights(model: Any) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}
