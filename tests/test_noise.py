"""Measuring the noise floor: its numbers against a few lines of NumPy, and klray noise."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import jobs.__main__ as cli
import klray
from klray import texts
from klray.analysis.noise_floor import ModelNoise, NoiseFloor
from klray.checkpoints import Checkpoint, Facts
from klray.errors import CheckpointError, KlrayError
from klray.likelihood import loading as models
from klray.likelihood.tokenizer import load_tokenizer
from klray.likelihood.tokens import encode
from klray.measure.exact import exact_log_likelihood
from klray.measure.noise_scorings import Ways, available_devices, measure, spread
from klray.tiny.family import train_family
from klray.tiny.family_recipe import SMALLEST
from tests import tiny_models
from tests.noise_data import found

TEXTS = texts.python_stdlib(n=12)


WAYS = Ways(("float32", "bfloat16", "float16"), ("cpu",), budgets=(1, 700, 4000))


pytestmark = pytest.mark.usefixtures("one_thread")


def local(directory: Path) -> Checkpoint:
    return Checkpoint(str(directory), "main", "0" * 40, (), Facts(), directory=str(directory))


@pytest.fixture(scope="module")
def trained() -> Path:
    return train_family(SMALLEST) / "klray/tiny-46k-seed1" / "step40"


@pytest.fixture(scope="module")
def measured(trained: Path) -> ModelNoise:
    return measure(local(trained), trained, TEXTS, WAYS)


def numpy_kl(one: np.ndarray, two: np.ndarray) -> float:
    """Squared distance of the two rows' double-centred coordinates, bits per byte, by the definition."""
    rows = np.stack([one, two])
    centred = rows - rows.mean(axis=1, keepdims=True)
    centred -= centred.mean(axis=0)
    squared = ((centred[0] - centred[1]) ** 2).sum()
    return float(squared / (2 * len(one) * np.mean([len(text.encode()) for text in TEXTS.texts]) * np.log(2)))


def by_hand(directory: Path, dtype: torch.dtype, budget: int) -> np.ndarray:
    """Log-likelihoods without klray's noise room: its scorer, or for float64 the full log-softmax of each text."""
    model, tokenizer = models.load(directory).model, load_tokenizer(directory)
    if dtype != torch.float64:
        values = klray.log_likelihood(model.to(dtype), tokenizer, list(TEXTS.texts), tokens_per_batch=budget)
        return values.astype(np.float32).astype(np.float64)
    values = []
    with torch.no_grad():
        for text in TEXTS.texts:
            ids = torch.tensor(tokenizer(text)["input_ids"])
            logits = model.double()(ids[None]).logits[0, :-1].numpy()
            logits = logits - logits.max(-1, keepdims=True)
            log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            values.append(log_p[np.arange(len(ids) - 1), ids[1:].numpy()].sum())
    return np.array(values)


@pytest.mark.slow
def test_the_numbers_are_those_of_a_few_lines_of_numpy(measured: ModelNoise, trained: Path) -> None:
    assert [v.dtype for v in measured.variants] == ["float64"] + ["float32"] * 3 + ["bfloat16"] * 3 + ["float16"] * 3
    exact = by_hand(trained, torch.float64, 1)
    rows = {
        (name, budget): by_hand(trained, getattr(torch, name), budget)
        for name in WAYS.dtypes
        for budget in WAYS.budgets
    }
    for floor in measured.floors(WAYS.dtypes):
        mine = [rows[floor.dtype, budget] for budget in WAYS.budgets]
        plans = max(numpy_kl(one, two) for one in mine for two in mine)
        to_float64 = max(numpy_kl(one, exact) for one in mine)
        # rotary angles are float64 in one and fp32 in the other: 1e-9 nats or so between the two references
        assert floor.plans == pytest.approx(plans, rel=1e-6, abs=1e-22)
        assert floor.to_float64 == pytest.approx(to_float64, rel=0.02)
        assert floor.floor == pytest.approx(max(plans, to_float64), rel=0.02)
        assert floor.devices is None
        if floor.dtype == "float32":
            assert floor.to_float32 is None
            assert 0 < to_float64 < 1e-9
        else:
            pairs = [numpy_kl(rows[floor.dtype, b], rows["float32", b]) for b in WAYS.budgets]
            assert floor.to_float32 == pytest.approx(max(pairs), rel=1e-6)
            assert 1e-9 < to_float64 < 1e-3


def test_16_bits_are_noisier_the_fewer_of_them_are_the_fraction(measured: ModelNoise) -> None:
    float32, bfloat16, float16 = (floor.floor or 0 for floor in measured.floors(WAYS.dtypes))
    # the square of 2^-8 over 2^-11 is 64
    assert 16 < bfloat16 / float16 < 256
    assert float32 < float16 / 1000
    assert [floor.verdict for floor in measured.floors(WAYS.dtypes)] == ["fine"] * 3


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gemma2", "mamba"])
def test_the_reference_is_float64_in_every_operation(architecture: str) -> None:
    model = copy.deepcopy(tiny_models.tiny_model(architecture)).double()
    tokens = encode(tiny_models.tokenizer_for(architecture), tiny_models.texts())
    seen: set[torch.dtype] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            given = [each for each in (*args, result) if isinstance(each, torch.Tensor)]
            if func is torch.ops.aten._to_copy.default:
                given = [each for each in given if each is result]  # what was fp32 in the checkpoint may be read
            seen.update(each.dtype for each in given if each.is_floating_point() and each.numel() > 1)
            return result

    plain = np.array([float(truth(model, ids)) for ids in tokens])
    with Watch():
        values = exact_log_likelihood(model, tokens)
    assert seen == {torch.float64}
    np.testing.assert_allclose(values, plain, rtol=0, atol=1e-3)
    if architecture == "llama":
        assert np.abs(values - plain).max() > 1e-9, "model.double() alone rounds to fp32 in every norm"


def truth(model: Any, ids: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        log_p = model(torch.tensor(ids[None], dtype=torch.int64)).logits[0, :-1].log_softmax(-1)
    return log_p.gather(1, torch.tensor(ids[1:, None], dtype=torch.int64)).sum()


def test_an_overflow_in_fp16_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    model = tiny_models.tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.bias.fill_(1e5)  # beyond 65,504
    model.save_pretrained(tmp_path)
    tiny_models.tokenizer_for("gpt2").save_pretrained(tmp_path)
    short = texts.TextSet("short", tuple(tiny_models.texts()[1:5]), ("x",) * 4)
    steps: list[int] = []
    ways = Ways(("float32", "float16"), ("cpu",), budgets=(1, 64))
    each = measure(local(tmp_path), tmp_path, short, ways, lambda scorings, note: steps.append(scorings))
    float32, float16 = each.floors(("float32", "float16"))
    assert float32.floor is not None
    assert float16.verdict == "failed" and "text 0 a log-likelihood of nan" in float16.failure
    assert sum(steps) == ways.scorings == 5


def test_a_checkpoint_that_is_broken_itself_says_so() -> None:
    model = copy.deepcopy(tiny_models.tiny_model("gpt2")).double()
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"text 1 .* nan in float64 too") as caught:
        exact_log_likelihood(model, encode(tiny_models.tokenizer_for("gpt2"), ["a", "x y"]))
    assert caught.value.reason == "non_finite"


def test_checkpoints_are_taken_at_equal_distances() -> None:
    all_of_them: Any = list(range(144))
    assert spread(all_of_them, 4) == [0, 48, 95, 143]
    assert spread(all_of_them, 1) == [143]
    assert spread(all_of_them[:3], 4) == [0, 1, 2]


def test_devices_that_are_not_there_are_refused() -> None:
    assert available_devices([])[0] == "cpu"
    with pytest.raises(KlrayError, match=r"noise.devices=\['cpu', 'abacus'\]: abacus"):
        available_devices(["cpu", "abacus"])
    if not torch.cuda.is_available():
        with pytest.raises(KlrayError, match=r"cuda cannot .*; choose among cpu$"):
            available_devices(["cuda"])


def klray_noise(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["klray", "noise", "models=tiny_smallest", "texts.n=6", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out + said.err


@pytest.mark.slow
def test_the_verb_measures_prints_and_writes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "noise.json"
    code, said = klray_noise(
        capsys,
        monkeypatch,
        "noise.models=2",
        "noise.dtypes=[bfloat16]",
        f"noise.path={path}",
        f"scoring.cache_dir={tmp_path / 'cache'}",
    )
    assert code == 0
    rows = re.findall(r"^(klray/tiny-\S+) +(\S+) .*  fine$", said, re.MULTILINE)
    names = ["klray/tiny-46k-seed1@step0", "klray/tiny-46k-seed2@step40"]
    assert rows == [(name, dtype) for name in names for dtype in ("float32", "bfloat16")]
    assert "2 of 26 checkpoints on 6 texts" in said
    assert re.search(r"tokens per batch cpu: 1, \d", said)
    assert "\nfloat32 (the default precision): fine" in said
    written = json.loads(path.read_text())
    assert written["unit"] == "bits/byte" and written["rows"].startswith("Each row is one checkpoint")
    assert [(row["model"], row["dtype"]) for row in written["table"]] == rows
    again = NoiseFloor.read(path)
    assert again.verdicts() == written["verdicts"]
    assert again.to_json() == path.read_text()
    assert [len(each.kl) for each in again.models] == [7, 7]


@pytest.mark.slow
def test_a_noise_floor_that_is_there_is_not_measured_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "noise.json"
    words = ["noise.models=1", "noise.dtypes=[float32]", "noise.tokens_per_batch=[1,64]", f"noise.path={path}"]
    words += [f"scoring.cache_dir={tmp_path / 'cache'}"]
    code, first = klray_noise(capsys, monkeypatch, *words)
    written = path.read_text()
    again, said = klray_noise(capsys, monkeypatch, *words)
    assert code == again == 0
    assert f"noise floor {path} is there already" in said
    assert first.partition("\n\n")[0] in said  # the same table
    assert path.read_text() == written
    for other in (
        ["noise.models=2"],
        ["noise.models=1", "noise.tokens_per_batch=[1]"],
        ["noise.models=1", "texts.n=7"],
        ["noise.models=1", "scoring.threads=2"],
    ):
        _, said = klray_noise(capsys, monkeypatch, *words, *other)
        assert "already" not in said and path.read_text() != written, other
        path.write_text(written)


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_scored_is_a_row_with_its_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained: Path
) -> None:
    folder = tmp_path / "short"
    shutil.copytree(trained, folder)
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 32}))
    monkeypatch.setattr(
        sys, "argv", ["klray", "noise", f"models.repo={folder}", "texts.n=4", f"scoring.cache_dir={tmp_path / 'cache'}"]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().out
    assert end.value.code == 1
    assert len(re.findall(r"^\S+short@\S+ +\S+ .*  failed$", said, re.MULTILINE)) == 3
    assert re.search(r"^failed: \S+ in float16: text 0 .*holds 32", said, re.M)
    assert "): failed; 1 of 1 could not be measured" in said


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["noise.models=0"], "noise.models=0: must be 1 or more"),
        (["noise.dtypes=[float8]"], "float8"),
        (["noise.devices=[abacus]"], "abacus cannot be used here"),
        (["noise.tokens_per_batch=[0]"], r"noise.tokens_per_batch=\[0\]: .*1 or more"),
        (["noise.path=nowhere/noise.json"], "in nowhere, .*name a JSON file"),
        (["noise.path=."], "it is a folder; name a JSON file"),
        (["noise.model=3"], "key noise.model: .* noise.models"),
    ],
)
def test_mistakes_are_answered_before_anything_is_measured(
    words: list[str], answer: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))  # nothing is trained or fetched yet
    code, said = klray_noise(capsys, monkeypatch, *words)
    assert code == 1
    assert said.startswith("klray: error: ") and "Traceback" not in said
    assert re.search(answer, said), said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("matrix", [[], [[0.0]], [["a"] * 10] * 10, [[0.0] * 10] * 9])
def test_a_noise_floor_without_its_kl_is_none(measured: ModelNoise, matrix: list[list[float]]) -> None:
    whole = json.loads(found(measured).to_json())
    assert len(measured.variants) == 10
    whole["models"][0]["kl"] = matrix
    with pytest.raises(KlrayError, match="this is not a noise floor"):
        NoiseFloor.from_json(json.dumps(whole))
