"""A snapshot with every kind of relative, made of really trained checkpoints: quantised, fine-tuned, and layers.

The checkpoints are those of the smallest embedded family. Children, quantised selves and layers are made from their
log-likelihoods: figures and maps are tested with them, not how models are quantised or fine-tuned.
"""

from __future__ import annotations

import functools

import dask.array as da
import numpy as np
import xarray as xr

import klray
from klray import texts
from klray.likelihood.loading import load
from klray.likelihood.tokenizer import load_tokenizer
from klray.tiny.family import train_family
from klray.tiny.family_recipe import SMALLEST

N_TEXTS = 24
LAYERS = 4
LABELS = ("repository", "revision", "commit", "run", "base_model", "quantization", "lens", "family", "size")


@functools.cache
def _trained() -> tuple[np.ndarray, np.ndarray, list[tuple[str, int]]]:
    text_set, root = texts.python_stdlib(n=N_TEXTS), train_family(SMALLEST)
    names = [(run.repository, step) for run in SMALLEST.runs for step in SMALLEST.saved_steps]
    rows = []
    for repository, step in names:
        folder = root / repository / f"step{step}"
        rows.append(klray.log_likelihood(load(folder).model, load_tokenizer(folder), list(text_set.texts)))
    return np.array(rows), text_set.n_bytes, names


def snapshot_of_relatives(quantized: bool = True, children: bool = True, layers: bool = True) -> xr.Dataset:
    """26 trained checkpoints; int8 and nf4 selves of the last 4 of each run; 6 children and 3 grandchildren; layers.

    Layers 0..4 under the lenses "logit" and "tuned-0123abcd" are of the last checkpoint of each run.
    """
    values, n_bytes, names = _trained()
    rng = np.random.default_rng(0)
    rows: list[np.ndarray] = []
    facts: list[dict[str, str | int]] = []

    def add(row: np.ndarray, repository: str, step: int = -1, **more: str | int) -> None:
        revision = f"step{step}" if step >= 0 else "main"
        rows.append(row)
        facts.append(
            {
                **{"repository": repository, "revision": revision, "commit": f"{repository}{revision}", "step": step},
                **{"run": repository if step >= 0 else "", "family": "tiny_smallest", "size": "46k", "base_model": ""},
                **{
                    "quantization": "none",
                    "lens": "none",
                    "layer": -1,
                    "seed": int(repository[-1]) if step >= 0 else -1,
                },
                **more,
            }
        )

    def away(row: np.ndarray, bits_per_byte: float) -> np.ndarray:
        moved: np.ndarray = row + rng.normal(size=row.shape) * np.sqrt(bits_per_byte * 2 * n_bytes.mean() * np.log(2))
        return moved

    for row, (repository, step) in zip(values, names, strict=True):
        add(row, repository, step)
    for row, (repository, step) in zip(values, names, strict=True):
        if quantized and step >= 28:
            for name, kl in (("int8", 0.02), ("nf4", 0.06)):
                add(away(row, kl), repository, step, quantization=name)
        if step == 40:
            for lens, kl in (("logit", 0.8), ("tuned-0123abcd", 0.3)) if layers else ():
                layer = [row]
                for _ in range(LAYERS):
                    layer.append(away(layer[-1], kl))
                for number, each in enumerate(reversed(layer)):
                    add(each, repository, step, lens=lens, layer=number)
    for number, (repository, base) in enumerate((("a", 12), ("b", 12), ("c", 12), ("d", 25), ("e", 25), ("f", 25))):
        if children:
            child = away(values[base], 0.1)
            add(child, f"klray/tiny-child-{repository}", base_model=names[base][0])
            if number % 2 == 0:
                add(
                    away(child, 0.05),
                    f"klray/tiny-grandchild-{repository}",
                    base_model=f"klray/tiny-child-{repository}",
                )
    columns = {name: np.array([fact[name] for fact in facts]) for name in facts[0]}
    labels = [
        f"{fact['repository']}@{fact['revision']}"
        + (f"+{fact['quantization']}" if fact["quantization"] != "none" else "")
        + (f"#layer{fact['layer']}" if int(fact["layer"]) >= 0 else "")
        for fact in facts
    ]
    keys = [f"{fact['commit']}{fact['quantization']}{fact['lens']}" for fact in facts]
    return xr.Dataset(
        {"log_likelihood": (("model", "text"), da.from_array(np.array(rows, np.float32), chunks=(17, -1)))},
        coords={
            "model": labels,
            "key": ("model", keys),
            "dtype": ("model", ["float32"] * len(rows)),
            "parameters": ("model", np.full(len(rows), 46_000)),
            **{name: ("model", column) for name, column in columns.items()},
            "text": np.arange(N_TEXTS),
            "text_bytes": ("text", n_bytes),
            "domain": ("text", ["prose"] * N_TEXTS),
        },
        attrs={"snapshot": "20260102T030405Z-5f2a9c1e", "text_set": "3f" * 32, "text_set_name": "synthetic"},
    )
