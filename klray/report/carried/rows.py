"""Log-likelihoods that the page carries where they are few: from them it gives KL by domain and the texts that differ.

Shapes: K = models, N = texts that the recipe keeps.
"""

from typing import Any

import numpy as np
import xarray as xr

from klray.analysis.facts import labels
from klray.analysis.recipe import Recipe
from klray.report.carried.limits import BASE64, ROWS_VALUES
from klray.report.carried.packing import numbers, words

_BYTES = 4  # float32, as the store has them


def carried_rows(result: xr.Dataset, snapshot: xr.Dataset | None) -> tuple[dict[str, Any] | None, str]:
    """The clipped rows of all models that are not excluded, (K, N) nats, and facts of the texts; or None, and why."""
    if snapshot is None or not np.array_equal(labels(snapshot), labels(result)):
        return None, "KL by domain and by text takes the snapshot, which this page was written without."
    models = np.flatnonzero(~result["excluded"].values.astype(bool))
    texts = int(result["text_kept"].values.sum())
    if models.size * texts > ROWS_VALUES:
        megabytes = models.size * texts * _BYTES * BASE64 / 1e6
        return None, (
            f"KL by domain and the texts that differ most are not in this file: {models.size:,} models on {texts:,} "
            f"texts would take {megabytes:,.0f} MB. The snapshot has the rows: klray.open_dataset(URL, snapshot=...)."
        )
    values = Recipe.from_json(result.attrs["recipe"]).apply(snapshot).isel(model=models)
    place = np.full(result.sizes["model"], -1)
    place[models] = np.arange(models.size)
    return {
        "place": numbers(place, "i4"),
        "values": numbers(values.values, "f4"),
        "bytes": numbers(values["text_bytes"].values, "i4"),
        "domain": words(strings_of_texts(values, "domain")),
        "text": numbers(np.flatnonzero(result["text_kept"].values), "u4"),
    }, ""


def strings_of_texts(values: xr.DataArray, name: str) -> list[str]:
    """(N,) a coordinate of the texts; "" where there is none."""
    if name not in values.coords:
        return [""] * values.sizes["text"]
    return [str(each) for each in values[name].values]
