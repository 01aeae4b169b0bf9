"""The weight sketch: linear, unbiased whatever the weights are, the same everywhere, kept with the column."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from klray.checkpoints import Hub, RepositorySpec, Selection, resolve
from klray.checkpoints.tensors import stored_tensors
from klray.errors import KlrayError
from klray.likelihood import loading as models
from klray.store import Store, layout
from klray.store.twins import take_over
from klray.sweep.settings import ScoringSettings
from klray.texts import python_stdlib
from klray.weights.distances import relative_error, squared_distances
from klray.weights.parameters import fingerprint, parameters
from klray.weights.sketch import sketch
from tests.scorers import scorer_here
from tests.stores import TEXTS, add, column

REPOSITORY = "klray/tiny-46k-seed1"
SCORED = python_stdlib(n=4)
SEEDS = 200


def squared(buckets: np.ndarray) -> float:
    return float((buckets.astype(np.float64) ** 2).sum())


def errors_of(weights: torch.Tensor, size: int) -> np.ndarray:
    """Relative errors of the squared norm under independent sketches: other names, other signs and shifts."""
    truth = float(weights.double().square().sum())
    return np.array([squared(sketch({f"w{seed}": weights}, size).buckets) / truth - 1 for seed in range(SEEDS)])


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


HARD = {
    "noise": torch.randn(50, 256, generator=torch.Generator().manual_seed(0)),
    "one large column, as wide as the sketch": torch.cat([100 * ones(100, 1), ones(100, 255)], 1),
    "one large column of another width": torch.cat([100 * ones(100, 1), ones(100, 192)], 1),
    "equal blocks": torch.randn(256, generator=torch.Generator().manual_seed(1)).repeat(64),
    "constant": ones(16_384),
    "low rank": torch.outer(torch.arange(100.0), torch.arange(250.0)),
    "two entries, a sketch apart": torch.zeros(1024).index_fill_(0, torch.tensor([3, 3 + 256]), 1.0),
    "alternating": ones(16_384) * torch.tensor([1.0, -1.0]).repeat(8_192),
}


@pytest.mark.parametrize("name", HARD)
def test_squared_norms_are_unbiased_with_the_stated_variance(name: str) -> None:
    errors = errors_of(HARD[name], 256)
    bound = relative_error(256)
    assert abs(errors.mean()) < 4 * bound / np.sqrt(SEEDS)
    # The variance of 200 draws is off by 10 % of itself for a normal law; errors here have heavier tails.
    assert np.sqrt((errors**2).mean()) < 1.25 * bound
    assert (np.abs(errors) <= 3 * bound).mean() >= 0.98


def test_index_modulo_buckets_would_break_the_bound() -> None:
    column_of_hundreds = HARD["one large column, as wide as the sketch"]
    naive = column_of_hundreds.reshape(-1, 256).double().sum(0)
    truth = float(column_of_hundreds.double().square().sum())
    assert float((naive**2).sum()) / truth > 50


def test_sketch_is_linear() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = (
        {"x.weight": torch.randn(37, 41, generator=generator), "y": torch.randn(5, generator=generator)} for _ in "ab"
    )
    difference = {name: a[name] - b[name] for name in a}
    np.testing.assert_allclose(
        sketch(a, 256).buckets.astype(float) - sketch(b, 256).buckets, sketch(difference, 256).buckets, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_stored_values_are_sketched_in_whatever_dtype(dtype: torch.dtype) -> None:
    weights = torch.randn(3, 1001, generator=torch.Generator().manual_seed(3)).to(dtype)
    in_float32 = sketch({"w": weights.float()}, 128)
    stored = sketch({"w": weights}, 128)
    assert stored.label == in_float32.label
    np.testing.assert_allclose(stored.buckets, in_float32.buckets, rtol=1e-5, atol=1e-5)


def test_buckets_follow_from_the_definition() -> None:
    """Signs and shifts by plain integers, one entry at a time."""
    mask = 2**64 - 1

    def mix(seed: int, number: int) -> int:
        z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    weights = torch.arange(1.0, 301.0)
    digest = hashlib.sha256(b"klray weight sketch 1 w").digest()
    sign_seed, shift_seed = (int.from_bytes(digest[place : place + 8], "little") for place in (0, 8))
    n_words = -(-300 // 32)
    expected = np.zeros(64)
    for index, value in enumerate(weights.tolist()):
        bit, word = divmod(index, n_words)
        half = mix(sign_seed, word // 2) >> (32 * (word % 2))
        sign = -1 if (half >> (31 - bit)) & 1 else 1
        shift = (mix(shift_seed, index // 64) >> 32) * 64 >> 32
        expected[(index + shift) % 64] += sign * value
    np.testing.assert_array_equal(sketch({"w": weights}, 64).buckets, expected)


def test_a_known_sketch_stays_what_it_was() -> None:
    weights = {"a.weight": torch.arange(200.0).reshape(20, 10) / 8, "b.bias": torch.arange(-5.0, 5.0)}
    found = sketch(weights, 64)
    assert found.buckets.dtype == np.float32
    assert found.label == "64-v1-ab8aee012cd8fde3"
    assert found.buckets[:6].tolist() == [27.125, -8.0, -0.125, 0.25, 24.375, -3.625]


def test_tied_weights_count_once_and_constants_not_at_all() -> None:
    embedding = torch.randn(8, 4)
    stored = {
        "embed_in.weight": embedding,
        "embed_out.weight": embedding.clone(),
        "lm_head.weight": embedding,
        "layers.0.attention.bias": torch.ones(1, 1, 9, 9),
        "layers.0.attention.masked_bias": torch.tensor(-1e9),
        "layers.0.attention.rotary_emb.inv_freq": torch.ones(2),
        "layers.0.attention.dense.bias": torch.zeros(4),
        "position_ids": torch.ones(0, dtype=torch.int64),
    }
    assert list(parameters(stored)) == ["embed_in.weight", "layers.0.attention.dense.bias"]
    untied = {**stored, "embed_out.weight": torch.randn(8, 4)}
    assert "embed_out.weight" in parameters(untied)


def test_only_equal_names_and_shapes_have_equal_labels() -> None:
    labels = {
        sketch({"w": torch.ones(4, 2)}, 64).label,
        sketch({"w": torch.ones(2, 4)}, 64).label,
        sketch({"v": torch.ones(4, 2)}, 64).label,
        sketch({"w": torch.ones(4, 2)}, 128).label,
    }
    assert len(labels) == 4
    assert sketch({"w": torch.zeros(4, 2)}, 64).label in labels
    assert fingerprint({"w": torch.ones(2)}) == fingerprint({"w": torch.zeros(2).half()})


def test_what_cannot_be_sketched_is_refused_with_the_cure() -> None:
    with pytest.raises(KlrayError, match=r"scoring\.sketch=100: .*64"):
        sketch({"w": torch.ones(4)}, 100)
    with pytest.raises(KlrayError, match=r"mlp\.weight is stored as int8"):
        sketch({"mlp.weight": torch.ones(4, dtype=torch.int8)})


def test_distances_are_those_of_the_rows_and_zero_for_equal_ones() -> None:
    rng = np.random.default_rng(0)
    rows = 1e3 + rng.normal(size=(5, 64))
    rows[3] = rows[1]
    rows[4] = rows[0] + 1e-7 * rng.normal(size=64)
    found = squared_distances(rows)
    truth = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    np.testing.assert_allclose(found, truth, rtol=1e-7)
    assert found[1, 3] == 0 and (found == found.T).all()
    with pytest.raises(KlrayError, match="one row of m buckets"):
        squared_distances(rows[0])
    rows[2] = np.nan
    assert np.isfinite(squared_distances(rows)).sum() == 16


def test_a_sketch_of_14_million_parameters_takes_less_than_a_scoring_notices(one_thread: None) -> None:
    weights = {name: torch.randn(50_304, 140) for name in ("a", "b")}
    sketch(weights)
    times = []
    for _ in range(3):
        start = time.thread_time()  # CPU time: other processes do not count
        sketch(weights)
        times.append(time.thread_time() - start)
    assert min(times) < 0.1  # 0.02 s were measured; the bar for all overhead of a 14 M checkpoint is 0.15 s


# kept with the column


def test_scorer_keeps_the_sketch_of_the_stored_values(hub: Hub, tmp_path: Path, one_thread: None) -> None:
    (checkpoint,), _ = resolve(hub, Selection("tiny", (RepositorySpec(REPOSITORY, ["step8"]),)))
    store = Store.create(str(tmp_path / "store"), SCORED)
    settings = ScoringSettings(dtype="bfloat16", cache_dir=str(tmp_path / "cache"), sketch=1024)
    scorer = scorer_here(hub, store.url, SCORED, settings)
    scorer.score(checkpoint)
    (commit,) = store.commits()
    directory = scorer.cache.fetch(hub, checkpoint)
    expected = sketch(stored_tensors(directory), 1024)
    np.testing.assert_array_equal(store.read_sketches([commit.key])[commit.key], expected.buckets)
    assert commit.facts["sketch"] == expected.label
    assert commit.timings["sketch_seconds"] > 0
    store.publish()
    assert store.dataset()["sketch"].values.tolist() == [expected.label]
    # without a sketch it is the same column
    without = dataclasses.replace(settings, sketch=0)
    assert without.identity(checkpoint, SCORED.fingerprint).key == commit.key


def test_stored_tensors_are_read_once_for_model_and_sketch(
    hub: Hub, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    read = models.read_tensors
    monkeypatch.setattr(models, "read_tensors", lambda files: (reads.extend(files), read(files))[1])
    checkpoints, _ = resolve(hub, Selection("tiny", (RepositorySpec(REPOSITORY, ["step4", "step8"]),)))
    store = Store.create(str(tmp_path / "store"), SCORED)
    scorer = scorer_here(hub, store.url, SCORED, ScoringSettings(cache_dir=str(tmp_path / "cache")))
    for checkpoint in checkpoints:
        scorer.score(checkpoint)
    assert len(reads) == 2
    assert len(store.read_sketches(store.committed_keys())) == 2


def test_layers_share_a_sketch_and_columns_without_one_have_none(store: Store) -> None:
    buckets = np.arange(64, dtype=np.float32)
    plain = column("a", 1)
    layered = dataclasses.replace(
        column("b", 2, sketch="64-v1-x"),
        log_likelihood=np.ones((3, len(TEXTS))),
        layers=(0, 1, 2),
        weight_sketch=buckets,
    )
    add(store, plain, layered)
    store.publish()
    assert store.dataset()["sketch"].values.tolist() == ["", *["64-v1-x"] * 3]
    found = store.read_sketches(store.dataset()["key"].values.tolist())
    assert list(found) == [layered.identity.key]
    np.testing.assert_array_equal(found[layered.identity.key], buckets)


def test_a_twin_keeps_the_sketch(folder_store: Store) -> None:
    first = dataclasses.replace(column("a", 1, sketch="64-v1-x"), weight_sketch=np.ones(64, np.float32))
    add(folder_store, first)
    identity = dataclasses.replace(first.identity, repository="org/twin")
    take_over(folder_store.objects, first.identity.key, identity, {"revision": "main"})
    assert folder_store.read_sketches([identity.key])[identity.key].tolist() == [1.0] * 64
    (commit,) = folder_store.commits([identity.key])
    assert commit.facts["sketch"] == "64-v1-x"


@pytest.mark.parametrize("body", [b"\0" * 256, b"", None])
def test_a_damaged_sketch_is_none(folder_store: Store, body: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    each = dataclasses.replace(column("a", 1, sketch="64-v1-x"), weight_sketch=np.ones(64, np.float32))
    add(folder_store, each)
    (commit,) = folder_store.commits()
    path = layout.sketch_path(commit.path)
    folder_store.objects.delete_tree(path) if body is None else folder_store.objects.put(path, body)
    assert folder_store.read_sketches([commit.key]) == {}
    assert "weight_sketch/c/0" in caplog.text and "verify.repair=true" in caplog.text
    assert len(folder_store.audit().damages) == 1
