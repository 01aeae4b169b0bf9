"""A synthetic "trajectory" result: fractional Brownian runs in log-likelihood space, with the fields of a real one."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence

import numpy as np
import xarray as xr

STEPS = (0, 1, 2, 4, 8, 16, *range(20, 601, 20))
WINDOW = 10
MIN_STEP = 20
HURST = 0.25  # c_q = 2H = 0.5 once the run is past its early descent


def trajectory_result(
    sizes: Sequence[str] = ("0.36m", "1.3m"),
    seeds: Sequence[int] = (0, 1),
    steps: Sequence[int] = STEPS,
    singles: int = 3,
    n_texts: int = 300,
    excluded: bool = True,
    random_state: int = 0,
) -> xr.Dataset:
    """Runs of every size and seed over ``steps``, then ``singles`` models without a step.

    With ``excluded`` the checkpoint at step 300 of the last run and the last single model are excluded: their rows
    are NaN. Every KL is computed from the vectors, so squared map distances, KL and exponents agree with each other.
    """
    rng = np.random.default_rng(random_state)
    text_bytes = np.clip(1024 - rng.exponential(40, n_texts), 257, 1024).astype(np.int32)  # cut at 1,024 bytes
    difficulty = rng.normal(0, 1, n_texts)
    facts, rows = [], []
    for size_index, size in enumerate(sizes):
        for seed in seeds:
            vectors = _run(rng, np.array(steps), text_bytes, difficulty, 1.0 + 0.35 * size_index)
            for step, vector in zip(steps, vectors, strict=True):
                facts.append(_facts(f"tiny/tiny-{size}-seed{seed}", f"step{step}", step, size, seed))
                rows.append(vector)
    for index in range(singles):
        facts.append(_facts(f"someone/model-{index}", "main", -1, f"{index + 1}m", -1))
        rows.append(-text_bytes * (1.1 + 0.05 * index) + 17 * difficulty + rng.normal(0, 14, n_texts))
    kept = np.ones(n_texts, dtype=bool)
    kept[rng.choice(n_texts, max(1, n_texts * 3 // 100), replace=False)] = False
    out = np.zeros(len(rows), dtype=bool)
    if excluded:
        out[-1] = singles > 0
        out[[i for i, fact in enumerate(facts) if fact["step"] == 300][-1:]] = True
    return _analysed(np.array(rows), facts, text_bytes, kept, out)


def _facts(run: str, revision: str, step: int, size: str, seed: int) -> dict[str, str | int]:
    parameters = int(float(size.removesuffix("m")) * 1e6)
    return {
        "model": f"{run}@{revision}",
        "key": f"{abs(hash((run, revision))):064x}",
        "repository": run,
        "revision": revision,
        "commit": "0" * 40,
        "family": "tiny" if step >= 0 else "",
        "run": run if step >= 0 else "",
        "step": step,
        "size": size,
        "seed": seed,
        "base_model": "",
        "dtype": "float32",
        "quantization": "",
        "lens": "",
        "layer": -1,
        "parameters": parameters,
        "tokens": 81_234,
    }


def _run(
    rng: np.random.Generator, steps: np.ndarray, text_bytes: np.ndarray, difficulty: np.ndarray, scale: float
) -> np.ndarray:
    """Log-likelihoods (T, N) in nats: a common descent from near-uniform bytes plus fractional Brownian motion."""
    t = steps.astype(float)
    covariance = 0.5 * (
        t[:, None] ** (2 * HURST) + t[None, :] ** (2 * HURST) - np.abs(t[:, None] - t[None, :]) ** (2 * HURST)
    )
    walk = np.linalg.cholesky(covariance + 1e-9 * np.eye(len(t))) @ rng.normal(size=(len(t), text_bytes.size))
    learned = 1 - (1 + t / (12 * scale)) ** -0.6
    nats_per_byte = 3.2 - (1.3 + 0.2 * scale) * learned
    start = rng.normal(0, 2, text_bytes.size)  # random initial weights already differ a little
    return start - np.outer(nats_per_byte, text_bytes) + 45 * np.outer(learned, difficulty) + 3.6 / scale * walk


def _analysed(
    log_likelihood: np.ndarray,
    facts: list[dict[str, str | int]],
    text_bytes: np.ndarray,
    kept: np.ndarray,
    excluded: np.ndarray,
) -> xr.Dataset:
    mean_bytes = float(text_bytes[kept].mean())
    unit = 1 / (2 * mean_bytes * math.log(2))
    values = log_likelihood[:, kept] - log_likelihood[:, kept].mean(1, keepdims=True)
    values[excluded] = np.nan
    square = (values[:, None, :] - values[None, :, :]) ** 2
    second = square.mean(2)
    kl = second * unit
    standard_error = np.sqrt(np.maximum(np.einsum("abn,abn->ab", square, square) / kept.sum() - second**2, 0))
    standard_error *= unit / math.sqrt(kept.sum())
    consecutive, consecutive_error, exponent, r_squared = (np.full(len(facts), np.nan) for _ in range(4))
    previous_step = np.full(len(facts), -1)
    for run in dict.fromkeys(fact["run"] for fact in facts if fact["run"]):
        members = [i for i, fact in enumerate(facts) if fact["run"] == run]
        for a, b in itertools.pairwise(members):
            previous_step[b] = facts[a]["step"]
            consecutive[b], consecutive_error[b] = kl[a, b], standard_error[a, b]
        for place, start in enumerate(members):
            window = members[place + 1 : place + 1 + WINDOW]
            window = [i for i in window if np.isfinite(kl[start, i])]
            if int(facts[start]["step"]) >= MIN_STEP and place + WINDOW < len(members) and len(window) > 2:
                x = np.log([int(facts[i]["step"]) - int(facts[start]["step"]) for i in window])
                y = np.log(kl[start, window])
                exponent[start] = np.polyfit(x, y, 1)[0]
                r_squared[start] = np.corrcoef(x, y)[0, 1] ** 2
    pca = np.full((len(facts), 4), np.nan)
    used = values[~excluded] - values[~excluded].mean(0)
    left, singular, _ = np.linalg.svd(used * math.sqrt(unit / kept.sum()), full_matrices=False)
    components = min(4, len(singular))
    pca[~excluded] = 0.0
    pca[~excluded, :components] = (left * singular)[:, :components]
    tsne = 20 * pca[:, 1:3]  # any two coordinates will do
    columns = {name: ("model", np.array([fact[name] for fact in facts])) for name in facts[0] if name != "model"}
    return xr.Dataset(
        {
            "kl": (("model", "other"), kl),
            "kl_standard_error": (("model", "other"), standard_error),
            "consecutive_kl": ("model", consecutive),
            "consecutive_kl_standard_error": ("model", consecutive_error),
            "previous_step": ("model", previous_step),
            "exponent_kl": ("model", exponent),
            "exponent_kl_r_squared": ("model", r_squared),
            "exponent_weights": ("model", 0.8 + exponent / 2, {"relative_error": math.sqrt(2 / 65_536)}),
            "exponent_weights_r_squared": ("model", np.sqrt(r_squared)),
            "consecutive_weight_distance": ("model", np.sqrt(consecutive)),
            "map_pca": (
                ("model", "component"),
                pca[:, :2],
                {"explained_variance_ratio": (singular**2 / (singular**2).sum())[:2].tolist()},
            ),
            "map_tsne": (("model", "component"), tsne),
            "text_kept": ("text", kept),
            "excluded": ("model", excluded),
        },
        coords={
            "model": [str(fact["model"]) for fact in facts],
            "other": [str(fact["model"]) for fact in facts],
            **columns,
            "text": np.arange(text_bytes.size),
            "text_bytes": ("text", text_bytes),
            "domain": ("text", np.where(np.arange(text_bytes.size) % 3 == 0, "prose", "code")),
        },
        attrs={
            "mean_bytes": mean_bytes,
            "recipe": json.dumps({"clip_quantile": 0.02, "clip_value": -2211.4, "removed_texts": [3, 14, 15, 92]}),
            "window": WINDOW,
            "min_step": MIN_STEP,
            "snapshot": "20260102T030405-5f2a9c1e",
            "text_set": "3f" * 32,
            "text_set_name": "python_stdlib",
            "units": "bits/byte",
        },
    )
