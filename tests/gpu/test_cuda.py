"""What holds on a GPU alone: products with fp32 results, copies that do not wait, memory, and who has which GPU."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

import klray
from klray.checkpoints import Checkpoint, Hub, RepositorySpec, Selection, resolve
from klray.likelihood import loading
from klray.likelihood.forward import on_device
from klray.likelihood.head import OutputHead
from klray.likelihood.score import score
from klray.likelihood.tokenizer import load_tokenizer
from klray.likelihood.tokens import encode
from klray.measure.exact import exact_log_likelihood
from klray.measure.noise_scorings import Ways, measure
from klray.sweep.model import Compute
from klray.sweep.model_process import ModelProcess
from klray.sweep.settings import ScoringSettings
from klray.texts import TextSet, python_stdlib
from klray.tiny.family import train_family
from klray.tiny.family_recipe import SMALLEST
from tests import tiny_models

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device on this machine"),
]

DEVICE = "cuda"
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
TEXTS = TextSet("short", tuple(text[:120] for text in python_stdlib(n=6).texts), ("a",) * 6)


@pytest.fixture
def checkpoints() -> list[Checkpoint]:
    """Two of one run, in their folders."""
    root = train_family(SMALLEST) / "klray/tiny-46k-seed1"
    specs = tuple(RepositorySpec(str(root / step)) for step in ("step4", "step8"))
    found, unavailable = resolve(Hub("http://127.0.0.1:9", ""), Selection("here", specs))
    assert not unavailable
    return found


@HALVES
def test_logits_of_16_bit_operands_are_fp32(dtype: torch.dtype) -> None:
    generator = torch.Generator(DEVICE).manual_seed(0)
    weight = torch.randn(700, 256, device=DEVICE, generator=generator).to(dtype)
    hidden = torch.randn(90, 256, device=DEVICE, generator=generator).to(dtype)
    logits = OutputHead(weight).logits(hidden)
    exact = hidden.double() @ weight.double().T
    assert logits.dtype == torch.float32
    ours = (logits - exact).abs().max()
    rounded = (exact.to(dtype) - exact).abs().max()
    assert ours < rounded / 50  # rounding to 16 bits would be 2^-9 or 2^-12 of a logit
    assert ours < 256 * 2**-23 * exact.abs().max()


@HALVES
def test_log_probabilities_are_those_of_float64_over_many_tiles(dtype: torch.dtype) -> None:
    generator = torch.Generator(DEVICE).manual_seed(0)
    weight = torch.randn(20_000, 128, device=DEVICE, generator=generator).to(dtype)
    hidden = torch.randn(5_000, 128, device=DEVICE, generator=generator).div(4).to(dtype)
    targets = torch.randint(0, 20_000, (5_000,), device=DEVICE, generator=generator)
    found = OutputHead(weight).log_probabilities(hidden, targets)
    exact = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4)


def test_the_extra_memory_of_the_head_is_a_tile_and_not_all_logits() -> None:
    weight = torch.randn(100_000, 64, device=DEVICE, dtype=torch.bfloat16)
    hidden = torch.randn(8_192, 64, device=DEVICE, dtype=torch.bfloat16)
    targets = torch.zeros(8_192, device=DEVICE, dtype=torch.int64)
    head = OutputHead(weight)
    head.log_probabilities(hidden[:64], targets[:64])  # the library's own workspace
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    head.log_probabilities(hidden, targets)
    assert torch.cuda.max_memory_allocated() - before < 400e6 < 8_192 * 100_000 * 4


def test_a_copy_to_the_device_does_not_wait_for_its_queue() -> None:
    matrix = torch.randn(4_096, 4_096, device=DEVICE)
    array = np.arange(1_000_000)
    on_device(array, matrix.device)  # the first pinned block is made
    torch.cuda.synchronize()
    for _ in range(50):
        matrix = torch.mm(matrix, matrix).clamp_(-1, 1)
    queued = torch.cuda.Event()
    queued.record()
    copied = on_device(array, matrix.device)
    waited = queued.query()
    torch.cuda.synchronize()
    assert not waited, "the products were over before the copy returned: it waited for them"
    np.testing.assert_array_equal(copied.cpu().numpy(), array)


@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt2", "llama", "gemma2"])
def test_a_model_on_the_device_is_as_exact_as_scoring_one_text_a_time(architecture: str) -> None:
    tokens = encode(tiny_models.tokenizer_for(architecture), tiny_models.texts())
    exact = exact_log_likelihood(tiny_models.tiny_model(architecture).double().to(DEVICE), tokens)
    scored = score(tiny_models.tiny_model(architecture).to(DEVICE), tokens)
    assert scored.head == "tiled"
    np.testing.assert_allclose(scored.values, exact, rtol=0, atol=2e-2)
    assert scored.values.tobytes() == score(tiny_models.tiny_model(architecture).to(DEVICE), tokens).values.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_put_into_a_model_on_the_device_equal_a_fresh_load(tmp_path: Path, dtype: loading.Dtype) -> None:
    one, two = (tiny_models.save_checkpoint(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    first = loading.load(one, dtype, DEVICE)
    addresses = [parameter.data_ptr() for parameter in first.model.parameters()]
    second = loading.load(two, dtype, DEVICE, reuse=first)
    assert second.model is first.model
    assert [parameter.data_ptr() for parameter in second.model.parameters()] == addresses
    fresh = loading.load(two, dtype, DEVICE)
    ours, theirs = second.model.state_dict(), fresh.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    tokens = encode(tiny_models.tokenizer_for("gpt_neox"), tiny_models.texts())
    assert score(second.model, tokens).values.tobytes() == score(fresh.model, tokens).values.tobytes()


def test_a_process_forked_beside_a_gpu_in_use_gives_the_bits_of_this_one(checkpoints: list[Checkpoint]) -> None:
    torch.ones(1, device=DEVICE)  # this process has a context: a plain fork of it could not use the GPU
    settings = ScoringSettings(sketch=1024, device=DEVICE)
    here = Compute(settings, TEXTS)
    with contextlib.closing(ModelProcess(settings, TEXTS)) as process:
        for each in checkpoints:
            ours, theirs = (way.score(each, Path(each.directory), lambda: None) for way in (here, process))
            assert ours.log_likelihood.tobytes() == theirs.log_likelihood.tobytes()


def test_the_noise_floor_counts_what_lies_between_cpu_and_gpu(checkpoints: list[Checkpoint]) -> None:
    ways = Ways(("float32", "bfloat16"), ("cpu", DEVICE), budgets=(1, 700))
    float32, bfloat16 = measure(checkpoints[1], Path(checkpoints[1].directory), TEXTS, ways).floors(ways.dtypes)
    assert float32.devices is not None and bfloat16.devices is not None
    assert float32.floor is not None and float32.floor < 1e-7
    assert float32.devices < bfloat16.devices < 1e-3
    assert float32.verdict == bfloat16.verdict == "fine"


def test_every_gpu_gets_one_actor_of_its_own() -> None:
    ray = pytest.importorskip("ray")
    from klray.sweep.cluster import RaySettings, connected

    class Held:
        def gpu(self) -> tuple[int, str]:
            return torch.cuda.device_count(), str(torch.cuda.get_device_properties(0).uuid)

    with connected(RaySettings()) as shape:
        assert (shape.device, shape.gpus_per_worker) == ("cuda", 1)
        assert shape.workers == torch.cuda.device_count()
        held = [ray.remote(num_gpus=shape.gpus_per_worker)(Held).remote() for _ in range(shape.workers)]
        found = ray.get([each.gpu.remote() for each in held])
    assert {count for count, _ in found} == {1}
    assert len({uuid for _, uuid in found}) == shape.workers


def test_scoring_on_the_device_is_scoring_on_a_cpu_but_for_rounding(checkpoints: list[Checkpoint]) -> None:
    folder = Path(checkpoints[1].directory)
    tokenizer = load_tokenizer(folder)
    rows = [
        klray.log_likelihood(loading.load(folder, "float32", device).model, tokenizer, list(TEXTS.texts))
        for device in ("cpu", DEVICE)
    ]
    np.testing.assert_allclose(rows[1], rows[0], rtol=0, atol=1e-3)
