"""``python -m tests.gpu``: it runs where there is no GPU, with no more than a scoring machine has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from klray.analysis.kl.all_pairs import kl_divergence
from tests.benchmarks import contenders
from tests.gpu import exactness

# None of what scores: what a machine without klray's other rooms lacks.
ABSENT = ("ray", "zarr", "dask", "xarray", "hydra", "omegaconf", "s3fs", "scipy", "threadpoolctl", "accelerate")
ABSENT += ("lm_eval", "pytest", "hypothesis", "pandas", "sklearn", "matplotlib", "distributed")


@pytest.mark.slow
def test_it_runs_tiny_with_torch_transformers_tokenizers_and_safetensors_alone() -> None:
    code = (
        f"import runpy, sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n"
        "sys.argv[1:] = ['--tiny', '--device', 'cpu']\n"
        "runpy.run_module('tests.gpu', run_name='__main__')\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in done.stdout.splitlines()]
    table = {(row[1], row[2]): row[3:] for row in rows if row and row[0] == "tiny"}
    assert set(table) == {(dtype, way) for dtype in exactness.DTYPES for way in exactness.WAYS}
    assert all(row[1] == "1.00x" for (_, way), row in table.items() if way == "klray")
    assert table["float32", "klray"][-1] == "fine"
    assert any(row[0].startswith("The output head alone") for row in rows if row)


def test_every_way_gives_the_same_values() -> None:
    shape = contenders.Shape("tiny", 64, 2, 4, vocabulary=2048, one_in=64)
    model, words, those = shape.model(), contenders.tokenizer(2048), contenders.texts(2048, 64)
    ours, *others = (np.array(contenders.way(way, model, words)(those)) for way in exactness.WAYS)
    for values in others:
        np.testing.assert_allclose(values, ours, rtol=0, atol=1e-3)


def test_its_kl_is_that_of_the_library() -> None:
    rng = np.random.default_rng(0)
    rows, n_bytes = rng.normal(-900, 300, (2, 40)), rng.integers(300, 1000, 40)
    found = exactness.kl_bits_per_byte(rows[0], rows[1], n_bytes)
    assert found == pytest.approx(float(kl_divergence(rows, n_bytes)[0, 1]), rel=1e-10)
