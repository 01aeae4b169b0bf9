"""Several forward passes at once: the same numbers, nothing shared but parameters, nothing left behind."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from klray.likelihood.lens import Lens
from klray.likelihood.score import score
from klray.likelihood.streams import copies, in_streams
from klray.likelihood.tokens import Tokens, encode
from tests import tiny_models
from tests.test_likelihood import ARCHITECTURES, BUDGET, TEXTS, run_out_of_memory_above


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def example(architecture: str) -> tuple[Any, Tokens]:
    return tiny_models.tiny_model(architecture), encode(tiny_models.tokenizer_for(architecture), TEXTS * 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_two_streams_give_what_one_gives_and_the_same_bits_each_time(architecture: str) -> None:
    model, tokens = example(architecture)
    first, again = (score(model, tokens, tokens_per_batch=BUDGET) for _ in range(2))
    torch.set_num_threads(1)
    alone = score(model, tokens, tokens_per_batch=BUDGET)
    assert first.values.tobytes() == again.values.tobytes()
    assert first.values.tobytes() == alone.values.tobytes()  # each stream has one thread here, too


def test_two_forward_passes_go_on_at_once() -> None:
    model, tokens = example("gpt_neox")
    probes = threading.Event()
    together = threading.Barrier(2, timeout=30)

    def meet(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (args[0] if args else kwargs["input_ids"]).numel() > 100 and not probes.is_set():
            together.wait()  # raises where the other pass does not begin before this one ends
            probes.set()

    model.base_model.register_forward_pre_hook(meet, with_kwargs=True)
    score(model, tokens, tokens_per_batch=BUDGET)
    assert probes.is_set()


def test_the_model_and_the_threads_are_left_as_they_were() -> None:
    model, tokens = example("llama")
    model.train()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    score(model, tokens, tokens_per_batch=BUDGET)
    assert all(vars(module) == before[name] for name, module in model.named_modules())
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), seen) == (2, [2])


def test_what_a_module_keeps_is_its_copy_s_own() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.calls = 0
            self.register_buffer("last", torch.zeros(()))

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.last = values.sum()
            return self.layer(values)

    model = nn.Sequential(Counter(), nn.ReLU())
    one, other = copies(model, 10)
    handle = one[0].register_forward_hook(lambda *_: torch.full((1, 4), 7.0))
    with torch.no_grad():
        assert one(torch.ones(1, 4)).tolist() == [[7.0] * 4]
        torch.testing.assert_close(other(torch.ones(2, 4)), model(torch.ones(2, 4)))
    assert (one[0].calls, other[0].calls, model[0].calls) == (1, 1, 1)
    assert (float(one[0].last), float(other[0].last)) == (4.0, 8.0)
    handle.remove()
    with torch.no_grad():
        model[0].layer.weight.zero_()  # parameters are the same
        assert torch.equal(one(torch.ones(1, 4)), torch.relu(model[0].layer.bias)[None])
    assert one[0].layer.weight is model[0].layer.weight


@pytest.mark.parametrize(("threads", "passes", "streams"), [(1, 9, 1), (2, 1, 1), (2, 9, 2), (64, 9, 8), (64, 3, 3)])
def test_as_many_streams_as_there_is_work_for(threads: int, passes: int, streams: int) -> None:
    torch.set_num_threads(threads)
    assert len(copies(nn.Linear(2, 2), passes)) == streams


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_modules_that_have_more_than_parameters_are_not_copied() -> None:
    scripted = torch.jit.script(nn.Linear(2, 2))
    assert copies(scripted, 9) == [scripted]
    quantised = nn.Linear(2, 2)
    quantised.hf_quantizer = object()
    assert copies(quantised, 9) == [quantised]
    elsewhere = nn.Linear(2, 2, device="meta")
    assert copies(elsewhere, 9) == [elsewhere]


def test_results_are_in_order_and_an_error_ends_the_rest() -> None:
    assert in_streams([lambda item: item * 2] * 2, list(range(50))) == list(range(0, 100, 2))
    begun: list[int] = []

    def fail(item: int) -> None:
        begun.append(item)
        time.sleep(0.001)  # as any item takes its time, and the one who waits for them some to hear of an error
        raise RuntimeError(f"item {item}")

    with pytest.raises(RuntimeError, match="item 0"):
        in_streams([fail] * 2, list(range(10_000)))
    assert len(begun) < 10_000
    assert torch.get_num_threads() == 2


def test_a_lens_reads_each_stream_s_own_layers() -> None:
    model, tokens = example("gpt_neox")
    plain = score(model, tokens, tokens_per_batch=BUDGET)
    layered = score(model, tokens, tokens_per_batch=BUDGET, lens=Lens())
    torch.set_num_threads(1)
    alone = score(model, tokens, tokens_per_batch=BUDGET, lens=Lens())
    assert layered.layers is not None and alone.layers is not None
    assert plain.values.tobytes() == layered.values.tobytes()
    assert layered.layers.tobytes() == alone.layers.tobytes()


def test_where_memory_runs_out_one_batch_at_a_time_is_tried(caplog: pytest.LogCaptureFixture) -> None:
    model, tokens = example("gpt_neox")
    expected = score(model, tokens, tokens_per_batch=200).values
    most = int(tokens.lengths.max()) + 10
    tried = run_out_of_memory_above(model, most)
    with caplog.at_level(logging.WARNING, "klray"):
        scored = score(model, tokens, tokens_per_batch=600)
    assert 2 <= sum(size > most for size in tried) <= 4  # one or two at once, then half, then half again
    assert scored.tokens_per_batch <= most
    assert "out of memory with" in caplog.text and f"going on with {scored.tokens_per_batch}" in caplog.text
    np.testing.assert_allclose(scored.values, expected, rtol=0, atol=1e-4)


def test_one_text_that_did_not_fit_beside_another_is_tried_alone() -> None:
    model, tokens = example("gpt_neox")
    expected = score(model, tokens, tokens_per_batch=1).values
    both = threading.Semaphore(1)

    def crowded(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not both.acquire(blocking=False):
            raise torch.OutOfMemoryError("two at once")

    def done(*_: Any) -> None:
        both.release()

    model.base_model.register_forward_pre_hook(crowded, with_kwargs=True)
    model.base_model.register_forward_hook(done)
    scored = score(model, tokens, tokens_per_batch=1)
    np.testing.assert_allclose(scored.values, expected, rtol=0, atol=1e-4)
