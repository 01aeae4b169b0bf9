"""KL between the layers of one model, as a lens reads them: to the layer before, and to the model's own output.

Shapes: K = rows of the snapshot, P = rows of them that are layers under a lens, N = texts.
"""

from typing import NamedTuple

import numpy as np
import xarray as xr

from klray.analysis.facts import facts, origin, strings
from klray.analysis.kl.all_pairs import paired_divergence, paired_standard_error
from klray.analysis.kl.centering import checked, model_by_text
from klray.analysis.recipe import Recipe
from klray.errors import KlrayError
from klray.words.numbers import counted

_PAPERS = "arXiv:2505.15353, arXiv:2303.08112"


class LensSummary(NamedTuple):
    """What one kind of lens says of the layers of all models that were read with it; KL in bits/byte."""

    lens: str  # "logit" or "tuned"
    models: int
    adjacent_pairs: int
    adjacent_median: float  # over pairs of adjacent layers of all models
    adjacent_quartiles: tuple[float, float]
    first_half_to_final: float  # mean over layers 0 to L/2, then over models


def layer_kl(dataset: xr.Dataset, recipe: Recipe | None = None) -> xr.Dataset:
    """KL of each layer to the layer before and to the final one, of every model of a snapshot that a lens has read.

    KL = Var_n(l_i - l_j) / (2 B-bar ln 2) between two layers of one column; the paper's setting "layer" is that of
    adjacent layers (arXiv:2505.15353). Nothing else of the snapshot changes it.

    ``dataset`` is a snapshot, as ``klray.open_dataset`` gives it, or a part of its models. With ``recipe``, values are
    clipped and texts left out as it says, and B-bar is its own; without, values are as they are, of all texts: the
    recipe's threshold is that of models' own outputs, and the first layers lie below it on many texts.

    The Dataset has kl_previous, kl_final and their standard errors over texts (model), bits/byte, float64, for the P
    rows of layers and with their coordinates. kl_previous is NaN where the layer before is not in ``dataset``; the
    final layer of a column is its last one, and its kl_final is 0. KlrayError: no row is a layer under a lens, values
    are not finite, or the recipe is for other texts.
    """
    layers = facts(dataset, "layer", -1)
    chosen = np.flatnonzero(layers >= 0)
    if not len(chosen):
        raise KlrayError(
            f"none of the {counted(len(layers), 'model')} of the snapshot is a layer under a lens: score some with "
            "scoring.lens=logit (or the folder of a tuned lens), publish, and open that snapshot"
        )
    values = recipe.apply(dataset) if recipe is not None else model_by_text(dataset["log_likelihood"])
    text_bytes = values["text_bytes"].values if "text_bytes" in values.coords else dataset["text_bytes"].values
    columns: dict[str, list[int]] = {}
    for row, key in zip(chosen.tolist(), _columns(dataset)[chosen], strict=True):
        columns.setdefault(str(key), []).append(row)
    names = ("kl_previous", "kl_final")
    found = {name + end: np.full(len(layers), np.nan) for name in names for end in ("", "_standard_error")}
    for rows in columns.values():
        ordered = sorted(rows, key=lambda row: int(layers[row]))
        matrix = np.asarray(checked(np.asarray(values.isel(model=ordered).data)), np.float64)  # (L + 1, N)
        steps = np.diff(layers[ordered])
        after = 1 + np.flatnonzero(steps == 1)
        pairs = {"kl_previous": (after, after - 1), "kl_final": (np.arange(len(matrix)), np.full(len(matrix), -1))}
        for name, (left, right) in pairs.items():
            places = np.array(ordered)[left]
            found[name][places] = paired_divergence(matrix[left], matrix[right], text_bytes)
            found[f"{name}_standard_error"][places] = paired_standard_error(matrix[left], matrix[right], text_bytes)
    result = xr.Dataset({name: ("model", column[chosen], _attributes(name)) for name, column in found.items()})
    kept = dataset.isel(model=chosen)
    result = result.assign_coords({n: c for n, c in kept.coords.items() if c.dims == ("model",)})
    result.attrs = origin(dataset) | {"title": "KL between layers", "references": _PAPERS}
    return result


def compare_lenses(result: xr.Dataset) -> list[LensSummary]:
    """A line for each kind of lens in what ``layer_kl`` gave (else KlrayError): what the paper leaves open."""
    if missing := [name for name in ("kl_previous", "kl_final") if name not in result]:
        raise KlrayError(
            f"compare_lenses needs what klray.layer_kl gives, this lacks {', '.join(missing)}: pass "
            "klray.layer_kl(snapshot)"
        )
    kinds = np.array(["tuned" if lens.startswith("tuned-") else lens for lens in strings(result, "lens").tolist()])
    keys, layers = _columns(result), result["layer"].values
    final = result["kl_final"].values
    summaries = []
    for kind in sorted(set(kinds)):
        of_kind = kinds == kind
        adjacent = result["kl_previous"].values[of_kind]
        adjacent = adjacent[~np.isnan(adjacent)]
        by_model = []
        for key in sorted(set(keys[of_kind])):
            column = of_kind & (keys == key)
            by_model.append(final[column & (layers <= layers[column].max() / 2)].mean())
        low, middle, high = np.percentile(adjacent, [25, 50, 75]) if len(adjacent) else (np.nan,) * 3
        quartiles, to_final = (float(low), float(high)), float(np.mean(by_model))
        summaries.append(LensSummary(str(kind), len(by_model), len(adjacent), float(middle), quartiles, to_final))
    return summaries


def _columns(dataset: xr.Dataset) -> np.ndarray:
    """(K,) what tells columns apart: the key, or without one the model and how it was read."""
    names = ("key",) if "key" in dataset.coords else ("repository", "revision", "commit", "dtype", "lens")
    return np.array(["|".join(each) for each in zip(*(strings(dataset, name) for name in names), strict=True)])


def _attributes(name: str) -> dict[str, str]:
    other = "the layer before" if name.startswith("kl_previous") else "the model's own output"
    what = "standard error over texts of the KL divergence" if name.endswith("error") else "KL divergence"
    return {"units": "bit/byte", "long_name": f"{what} of a layer to {other}", "references": _PAPERS}
