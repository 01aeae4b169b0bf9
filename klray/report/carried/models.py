"""What the page knows of each model: facts, places on the maps, the path of its run.

Shapes: K = models.
"""

from typing import Any

import numpy as np
import xarray as xr

from klray.analysis.facts import facts, labels, quantised, strings
from klray.analysis.runs import Run
from klray.report.carried.packing import numbers, rounded, words
from klray.report.figures.panels import has_points, two_columns
from klray.report.figures.style import short_names
from klray.report.sections.section_models import variants
from klray.units import bits_per_byte

MAPS = (  # name in a result, in the page, on a button, above the panel, and the unit of its distances
    ("map_pca", "pca", "PCA", "Principal components", "√(bits/byte)"),
    ("map_tsne", "tsne", "t-SNE", "t-SNE, which keeps neighbourhoods but not distances", ""),
)


def carried_facts(result: xr.Dataset, runs: list[Run], snapshot: xr.Dataset | None) -> dict[str, Any]:
    """Columns of the models, each (K,); bits per byte only where the ``snapshot`` of the result is there."""
    count = result.sizes["model"]
    run, previous = np.full(count, "", dtype=object), np.full(count, -1)
    at_step = result["previous_step"].values
    for each, label in zip(runs, short_names(runs), strict=True):
        run[each.models] = label
        place = {int(step): int(model) for step, model in zip(each.steps, each.models, strict=True)}
        previous[each.models] = [place.get(int(at_step[model]), -1) for model in each.models]
    nothing = np.full(count, np.nan)
    exponent = result["exponent_kl"].values if "exponent_kl" in result else nothing
    rate = model_bits_per_byte(result, snapshot)
    columns: dict[str, Any] = {
        "label": words(labels(result)),
        **{name: words(strings(result, name)) for name in ("repository", "revision", "family", "size", "base_model")},
        "variant": words(_set_apart(result)),
        "run": words(run),
        "step": numbers(facts(result, "step", -1), "i4"),
        "seed": numbers(facts(result, "seed", -1), "i4"),
        "parameters": numbers(facts(result, "parameters", 0), "f4"),
        "excluded": numbers(result["excluded"].values.astype(bool), "u1"),
        "previous": numbers(previous, "i4"),
        "step_kl": numbers(result["consecutive_kl"].values, "f4"),
        "step_se": numbers(rounded(result["consecutive_kl_standard_error"].values), "f4"),
        "exponent": numbers(exponent, "f4"),
    }
    return columns if rate is None else columns | {"bits_per_byte": numbers(rate, "f4")}


def model_bits_per_byte(result: xr.Dataset, snapshot: xr.Dataset | None) -> np.ndarray | None:
    """(K,) negative log-likelihood of each model in bits per byte, of all texts as they were scored."""
    if snapshot is None or not np.array_equal(labels(snapshot), labels(result)):
        return None
    nats = -snapshot["log_likelihood"].mean("text", dtype=np.float64).values
    rate: np.ndarray = bits_per_byte(nats, float(snapshot["text_bytes"].values.mean(dtype=np.float64)))  # type: ignore[arg-type,assignment]
    return rate


def carried_maps(result: xr.Dataset) -> list[dict[str, Any]]:
    """Each map of all models that the result has: name, titles of panel and axes, coordinates (K, 2)."""
    found = []
    for name, short, button, title, unit in MAPS:
        if has_points(result, name):
            points = two_columns(result[name].values)
            shares = result[name].attrs.get("explained_variance_ratio", [])
            said = [f", {share:.0%} of variance" for share in ([] if isinstance(shares, str) else shares)] + ["", ""]
            axis = [f"PC {n + 1}{said[n]}" for n in range(2)] if unit else ["t-SNE 1", "t-SNE 2"]
            found.append(
                {
                    "name": short,
                    "short": button,
                    "title": title,
                    "unit": unit,
                    "axis": axis,
                    "xy": numbers(points, "f4"),
                }
            )
    return found


def sizes_in_order(result: xr.Dataset) -> list[str]:
    """Names of sizes by the number of parameters."""
    least: dict[str, float] = {}
    for size, parameters in zip(strings(result, "size"), result["parameters"].values, strict=True):
        if size:
            least[str(size)] = min(float(parameters), least.get(str(size), np.inf))
    return sorted(least, key=lambda size: (least[size], size))


def _set_apart(result: xr.Dataset) -> np.ndarray:
    """(K,) what a model was scored with, where that is not the same for all; "" where it is."""
    found = variants(result)
    if len(np.unique(found)) == 1 and not quantised(result).any():
        return np.full(len(found), "")
    return found
