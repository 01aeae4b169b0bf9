"""The table of all models of a result."""

from typing import Any

import numpy as np
import xarray as xr

from klray.analysis.facts import strings
from klray.words.secrets import public

MAX_MODEL_ROWS = 500  # in the page itself, for who has scripts off; else the table is made of all
_WORDS, _COUNTS = ("repository", "revision", "family", "size"), ("step", "seed")
_NUMBERS = ("parameters", "consecutive_kl", "consecutive_kl_standard_error", "excluded")


def model_rows(result: xr.Dataset) -> list[dict[str, Any]]:
    """The first `MAX_MODEL_ROWS` models, each by name of column."""
    first = result.isel(model=slice(MAX_MODEL_ROWS))
    columns = {name: first[name].values for name in (*_WORDS, *_COUNTS, *_NUMBERS)}
    nothing = np.full(first.sizes["model"], np.nan)
    columns["exponent"] = first["exponent_kl"].values if "exponent_kl" in first else nothing
    columns["variant"] = variants(first)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for row in rows:
        for name in (*_WORDS, "variant"):
            row[name] = public(str(row[name]))
        for name in _COUNTS:
            row[name] = int(row[name]) if row[name] >= 0 else None
    return rows


def variants(result: xr.Dataset) -> np.ndarray:
    """Dtype, quantization, lens and layer of each model, (K,) strings; layer -1 is the model's own output."""
    layers = np.array([f"layer {layer}" if layer >= 0 else "" for layer in result["layer"].values])
    parts = [*(strings(result, name) for name in ("dtype", "quantization", "lens")), layers]
    return np.array([" ".join(p for p in row if p and p != "none") for row in zip(*parts, strict=True)])
