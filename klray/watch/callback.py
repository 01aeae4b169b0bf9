"""The Trainer's callback: a run's checkpoints are scored while it goes on, without being saved."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from klray.errors import KlrayError
from klray.texts import TextSet
from klray.watch.recording import Run
from klray.watch.watching import Movement, Watch

log = logging.getLogger("klray")


class KlrayCallback(TrainerCallback):
    """Score the model every ``every`` steps, before the first and after the last, into a store.

    ``Trainer(..., callbacks=[KlrayCallback("store/run", text_set, run="my-lab/run-1")])``

    The run is not disturbed: weights, optimizer, gradients, modes and random numbers are those of a run without it, bit
    for bit. It waits while its model is scored. Of several processes (DDP) the first one scores; the others go on to
    their next collective operation and wait there, so that scoring must take less time than these may (30 minutes, if
    ``ddp_timeout`` is not set). FSDP and DeepSpeed ZeRO-3 are refused.

    Whatever is wrong from the start (no store can be opened, other texts in it, texts that are too long) is raised
    before the first step. Later nothing is: errors are logged, and columns that could not be written are kept in memory
    and tried again with later steps and at the end. ``klray/kl``, the KL in bits per byte since the step recorded
    before, goes to the Trainer's log history and, with its losses, to callbacks that come after this one.

    ``store_url`` is a folder or s3://bucket/prefix, created if it is missing; ``run`` the run's name, unique in the
    store: its columns' repository. ``tokenizer`` None takes the Trainer's ``processing_class``, ``seed`` None the
    Trainer's; ``family``, ``size`` and ``base_model`` are further facts. ``storage_options`` and ``single_writer`` are
    as for ``klray.store.Store.create``, ``tokens_per_batch`` as for ``klray.log_likelihood``.
    """

    def __init__(
        self,
        store_url: str,
        text_set: TextSet,
        *,
        run: str,
        every: int = 1,
        tokenizer: Any = None,
        family: str = "",
        size: str = "",
        seed: int | None = None,
        base_model: str = "",
        storage_options: Mapping[str, Any] | None = None,
        single_writer: bool = False,
        tokens_per_batch: int | None = None,
    ):
        if every < 1:
            raise KlrayError(f"every={every}: a callback scores every so many steps; write 1 or more")
        self.every, self.tokenizer = every, tokenizer
        self.run = Run(run, family=family, size=size, seed=seed, base_model=base_model)
        self._begin_watch = partial(
            Watch,
            store_url,
            text_set,
            storage_options=storage_options,
            single_writer=single_writer,
            tokens_per_batch=tokens_per_batch,
        )
        self._watch: Watch | None = None
        self._moved: Movement | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the store and record the model as it is before the first step."""
        if not state.is_world_process_zero:
            return
        tokenizer = self.tokenizer if self.tokenizer is not None else kwargs.get("processing_class")
        if tokenizer is None:
            raise KlrayError(
                "KlrayCallback has no tokenizer, and the Trainer neither: give Trainer(processing_class=...) or "
                "KlrayCallback(tokenizer=...)"
            )
        run = replace(self.run, seed=args.seed) if self.run.seed is None else self.run
        self._watch = self._begin_watch(tokenizer, run)
        self._watch.check(kwargs["model"])
        if state.global_step % self.every == 0:
            self._record(state, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record the model if it is its turn."""
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps or control.should_training_stop:
            self._record(state, kwargs["model"])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell the callbacks that come later how far the run moved."""
        if logs is not None and "loss" in logs and self._moved is not None:
            logs["klray/kl"] = self._moved.kl

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what waits, or say what is lost."""
        if self._watch is not None:
            self._watch.flush(last=True)

    def _record(self, state: TrainerState, model: Any) -> None:
        if self._watch is None:  # not the first of several processes
            return
        moved = self._watch.record(model, state.global_step)
        if moved is None:
            return
        self._moved = moved
        step, kl, error, since = moved.step, moved.kl, moved.kl_standard_error, moved.since
        said = {"step": step, "klray/kl": kl, "klray/kl_standard_error": error, "klray/since": since}
        state.log_history.append(said)
        log.info("%s step %d: %.3g ± %.1g bits/byte since step %d", self.run.name, step, kl, error, since)
