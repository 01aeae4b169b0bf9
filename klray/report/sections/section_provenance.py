"""Where a result comes from: what was set apart, snapshot, texts, recipe."""

import importlib.metadata
import json
from typing import Any

import numpy as np
import xarray as xr

from klray.analysis.facts import differing, recorded, strings
from klray.analysis.recipe import Exclusion, names_of
from klray.words.numbers import out_of, significant
from klray.words.secrets import public

_LONGEST_LIST = 3  # longer lists of numbers in a recipe are abridged: the whole recipe stays with the result


def provenance(result: xr.Dataset, with_noise: bool) -> list[tuple[str, str]]:
    """Facts that let a reader find the data, as (name, value)."""
    attrs = result.attrs
    kept = result["text_kept"].values.astype(bool)
    domains = strings(result, "domain")
    facts = [
        ("Snapshot", attrs.get("snapshot")),
        ("Left out of the snapshot", attrs.get("left_out")),
        ("Text set", attrs.get("text_set_name")),
        ("Text set fingerprint", attrs.get("text_set")),
        ("Texts kept", out_of(int(kept.sum()), kept.size)),
        ("Kept texts by domain", _by_domain(domains, kept)),
        ("Texts removed", f"{out_of(int((~kept).sum()), kept.size)}: {_by_domain(domains, ~kept)}"),
        ("Mean bytes of a kept text", significant(float(attrs["mean_bytes"]), 5) if "mean_bytes" in attrs else None),
        ("Models excluded", out_of(int(result["excluded"].values.astype(bool).sum()), result.sizes["model"])),
        ("Checkpoints in a diffusion window", attrs.get("window")),
        ("Smallest step that starts a window", attrs.get("min_step")),
        ("Runs with several tokenizers", _tokenizers(result) or None),
        ("Unit of KL", "bits/byte"),
        ("Noise floor", None if with_noise else "not measured: klray noise does"),
        ("klray", importlib.metadata.version("klray")),
    ]
    return [(name, public(str(value))) for name, value in facts if value is not None]


def _tokenizers(result: xr.Dataset) -> str:
    """Runs whose checkpoints do not treat the texts alike; "" if there are none, or it is not known."""
    found = differing(strings(result, "run").tolist(), strings(result, "tokenizer").tolist())
    return "; ".join(f"{run}: {' and '.join(kinds)}" for run, kinds in found.items())


def _by_domain(domains: np.ndarray, chosen: np.ndarray) -> str:
    """How many of the ``chosen`` texts each domain of the text set has, zeros among them."""
    return ", ".join(
        f"{public(name) or 'none'} {int((chosen & (domains == name)).sum()):,}" for name in np.unique(domains)
    )


def recipe_text(result: xr.Dataset) -> str:
    """The preprocessing recipe as indented JSON; empty when the result has none.

    Long lists of numbers are abridged, and exclusions that match no model of the result are left out.
    """
    if "recipe" not in result.attrs:
        return ""
    recipe = recorded(result, "recipe")
    if "excluded" in recipe:
        models = names_of(result)
        recipe["excluded"] = [
            each for each in recipe["excluded"] if any(Exclusion(**each).matches(*model) for model in models)
        ]
    lines = json.dumps(_abridged(recipe), indent=2, ensure_ascii=False).splitlines()
    return "\n".join(public(line) for line in lines)


def _abridged(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _abridged(item) for key, item in value.items()}
    if isinstance(value, list) and len(value) > _LONGEST_LIST and all(isinstance(item, int | float) for item in value):
        return f"{', '.join(map(str, value[:_LONGEST_LIST]))}, … {len(value):,} values in all"
    if isinstance(value, list):
        return [_abridged(item) for item in value]
    return value
