"""KL of all pairs of a sample of models, where an analysis of many kept none: for the heat map and the page's pairs.

Shapes: m = models of the sample.
"""

import numpy as np
import xarray as xr

from klray.analysis.facts import labels
from klray.analysis.kl.all_pairs import kl_divergence, kl_standard_error
from klray.analysis.recipe import Recipe
from klray.report.carried.limits import carried_models
from klray.report.figures.kl_heatmap import ordered


def with_matrix(result: xr.Dataset, snapshot: xr.Dataset | None) -> xr.Dataset | None:
    """The result itself if it has a matrix, else a sample of its models with one: kl, kl_standard_error (m, m).

    The sample is even in the order of the heat map; its coordinate position says which models of the result it has.
    Rows are those of the result's recipe; who is excluded has NaN. None without the ``snapshot`` of the result.
    """
    if "kl" in result:
        return result.assign_coords(position=("model", np.arange(result.sizes["model"])))
    if snapshot is None or not np.array_equal(labels(snapshot), labels(result)):
        return None
    positions = np.sort(ordered(result, carried_models(result.sizes["model"]))[0])
    sample = result.isel(model=positions).assign_coords(position=("model", positions))
    values = Recipe.from_json(result.attrs["recipe"]).apply(snapshot).isel(model=positions).compute()
    counted = ~sample["excluded"].values.astype(bool)
    found = {}
    for name, pairs in (("kl", kl_divergence), ("kl_standard_error", kl_standard_error)):
        matrix = np.full((positions.size, positions.size), np.nan)
        if counted.any():
            matrix[np.ix_(counted, counted)] = pairs(values.values[counted], values["text_bytes"].values)
        found[name] = (("model", "other"), matrix)
    return sample.assign(found).assign_attrs(of_models=result.sizes["model"])
