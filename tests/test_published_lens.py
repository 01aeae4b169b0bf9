"""Tuned lenses as the tuned-lens package publishes them: config.json and params.pt, read without running code."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from klray.errors import KlrayError
from klray.likelihood.lens import load_translators

CONFIG = {
    "base_model_name_or_path": "EleutherAI/pythia-70m-deduped",
    "d_model": 8,
    "num_hidden_layers": 3,
    "bias": True,
    "base_model_revision": None,
    "unembed_hash": "0" * 64,
    "lens_type": "linear_tuned_lens",
}


def publish(folder: Path, modules: nn.ModuleList, **changes: Any) -> Path:
    """What ``TunedLens.save`` writes: the state of a ModuleList of Linear layers, and a config."""
    torch.save(modules.state_dict(), folder / "params.pt")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def linears(n: int = 3, width: int = 8, *, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.ModuleList:
    return nn.ModuleList([nn.Linear(width, width, bias=bias, dtype=dtype) for _ in range(n)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_its_translators_are_the_linear_layers_added_to_the_hidden_state(tmp_path: Path, dtype: torch.dtype) -> None:
    modules = linears(dtype=dtype)
    found = load_translators(publish(tmp_path, modules))
    hidden = torch.randn(4, 5, 8)
    with torch.no_grad():
        for layer, module in enumerate(modules):
            torch.testing.assert_close(found.apply(layer, hidden), hidden + module.float()(hidden))
    assert (found.n_layers, found.width) == (3, 8)
    assert found.facts["repository"] == "EleutherAI/pythia-70m-deduped"


def test_it_may_have_no_biases(tmp_path: Path) -> None:
    found = load_translators(publish(tmp_path, linears(bias=False), bias=False))
    assert not found.biases_LD.any() and found.matrices_LDD.any()


@pytest.mark.parametrize(
    ("modules", "changes", "words"),
    [
        (linears(2), {}, r"3 layers .*: 2\.bias, 2\.weight"),
        (linears(width=4), {}, r"shape \(4, 4\), .* width 8"),
        (linears(), {"lens_type": "mlp"}, "type 'mlp', .*linear_tuned_lens"),
    ],
)
def test_what_does_not_fit_its_config_is_refused(
    tmp_path: Path, modules: nn.ModuleList, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(KlrayError, match=words):
        load_translators(publish(tmp_path, modules, **changes))


class Harmful:
    """Would make a file when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_params_file_that_could_run_code_is_refused(tmp_path: Path, write: Any) -> None:
    publish(tmp_path, linears())
    write({"0.weight": Harmful(tmp_path / "harmed")}, tmp_path / "params.pt")
    with pytest.raises(KlrayError, match=r"cannot be read \(UnpicklingError"):
        load_translators(tmp_path)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("body", [b"", b"abc" * 100])
def test_a_params_file_of_other_bytes_is_refused(tmp_path: Path, body: bytes) -> None:
    publish(tmp_path, linears())
    (tmp_path / "params.pt").write_bytes(body)
    with pytest.raises(KlrayError, match=r"cannot be read .*fetch or train"):
        load_translators(tmp_path)


@pytest.mark.parametrize("config", ["[1]", "null"])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, config: str) -> None:
    publish(tmp_path, linears())
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(KlrayError, match="cannot be read"):
        load_translators(tmp_path)


def test_params_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    publish(tmp_path, linears())
    torch.save(dict.fromkeys(linears().state_dict(), 1.0), tmp_path / "params.pt")
    with pytest.raises(KlrayError, match="cannot be read"):
        load_translators(tmp_path)
