"""One model in memory, one committed column."""

import dataclasses
import operator
import time
from typing import Any

import numpy as np
import torch

from klray.errors import KlrayError, refuse_unfit
from klray.likelihood import tokens
from klray.likelihood.score import score
from klray.store import Column, Identity, Store
from klray.sweep.scorer import versions
from klray.texts import TextSet
from klray.watch.fingerprint import dtype_of, weights_sha256
from klray.watch.undisturbed import own_forward, random_state_kept
from klray.weights.sketch import sketch
from klray.words.heard import heard


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run, as its columns are labelled. ``name`` stands for the repository: one name, one trajectory."""

    name: str
    family: str = ""
    size: str = ""
    seed: int | None = None
    base_model: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip("/ "):
            raise KlrayError(f"run={self.name!r}: a run needs a name, such as my-lab/llama-300m-seed1")
        for name in ("family", "size", "base_model"):
            if not isinstance(getattr(self, name), str):
                raise KlrayError(
                    f"{name}={getattr(self, name)!r}: {name} of a run is a string, such as 'x'; '' for none"
                )
        if self.seed is not None:
            object.__setattr__(self, "seed", _whole_number("seed", self.seed))
        refuse_unfit("run", dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What became of one model: its column's key, whether it was scored now, and its log-likelihoods if it was."""

    key: str
    new: bool
    log_likelihood: np.ndarray | None = None  # (text,) float64, nats


def record(
    model: Any,
    tokenizer: Any,
    store: Store | str,
    text_set: TextSet,
    *,
    run: Run | str,
    step: int,
    tokens_per_batch: int | None = None,
) -> Recorded:
    """Score a model in memory on ``text_set`` and commit its column, as step ``step`` of ``run``, in any training loop.

    The column's repository is the run's name, its commit the SHA-256 of the parameters, its revision ``step<step>``.
    The model's modes and gradients and all global random number generators are as before. Under DDP, call it in one
    process with the bare model (``model.module``); the others wait at their next collective operation.

    ``model`` is a causal language model of transformers, whole in this process, on any device; it is scored in the
    dtype of its parameters, without autocast, and not again if its column is there. ``store`` is the address of a
    store, opened for each call and created if it is missing, or one that is open (``klray.store.Store.create(url,
    text_set)``), ``text_set`` its texts, ``step`` the number of updates so far; ``tokens_per_batch`` is as for
    ``klray.log_likelihood``.

    Raises KlrayError if ``step`` is no whole number of 0 or more, or ``text_set`` is no ``TextSet``; CheckpointError if
    the model cannot be scored: a text is too long, numbers overflow, memory ran out, parameters are elsewhere;
    StoreError if the store refused the column, or is for other texts.
    """
    run = run if isinstance(run, Run) else Run(run)
    step = _whole_number("step", step)
    if not isinstance(text_set, TextSet):
        raise KlrayError(
            f"text_set is a {type(text_set).__name__}: give a klray.texts.TextSet(name, texts, domains), or one of "
            "klray.texts.python_stdlib, from_jsonl and from_folder"
        )
    store = Store.create(store, text_set) if isinstance(store, str) else store
    identity = identity_of(model, run, text_set)
    if store.is_committed(identity.key):
        return Recorded(identity.key, new=False)
    column = make_column(model, tokens.encode(tokenizer, text_set.texts), identity, run, step, tokens_per_batch)
    store.add_column(column)
    return Recorded(identity.key, True, np.asarray(column.log_likelihood[0]))


def _whole_number(name: str, value: Any) -> int:
    """As a store keeps it, also of NumPy's and PyTorch's kinds; KlrayError if it is none of 0 or more."""
    try:
        number = operator.index(value)
    except TypeError as error:
        raise KlrayError(f"{name}={value!r}: {name} is a whole number of 0 or more") from error
    if not 0 <= number < 2**63:
        raise KlrayError(f"{name}={value!r}: {name} is a whole number of 0 or more, below 2^63")
    return number


def identity_of(model: Any, run: Run, text_set: TextSet) -> Identity:
    """Identity of the column of a model in memory."""
    return Identity(
        repository=run.name, commit=weights_sha256(model), text_set=text_set.fingerprint, dtype=dtype_of(model)
    )


def make_column(
    model: Any, encoded: tokens.Tokens, identity: Identity, run: Run, step: int, tokens_per_batch: int | None = None
) -> Column:
    """The column of a model in memory, with the sketch of its parameters."""
    start = time.monotonic()
    with random_state_kept(), own_forward(model), heard() as warned:
        scores = score(model, encoded, tokens_per_batch=tokens_per_batch)
    sketched = sketch(dict(model.named_parameters()))
    facts = {
        "family": run.family,
        "run": run.name,
        "step": step,
        "size": run.size,
        "seed": run.seed,
        "base_model": run.base_model,
        "revision": f"step{step}",
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
        "device": next(model.parameters()).device.type,
        **(encoded.tokenizer.as_facts() if encoded.tokenizer else {}),
        "head": scores.head,
        "tokens_per_batch": scores.tokens_per_batch,
        "threads": torch.get_num_threads(),
        "sketch": sketched.label,
    }
    if said := warned.take():
        facts["warnings"] = said
    return Column(
        identity=identity,
        log_likelihood=scores.values[None, :],
        layers=(-1,),
        n_tokens=scores.n_tokens,
        facts=facts,
        versions=dict(versions()),
        timings={"score_seconds": time.monotonic() - start},
        weight_sketch=sketched.buckets,
    )
