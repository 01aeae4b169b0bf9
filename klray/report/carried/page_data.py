"""All that the page carries, as one JSON value."""

from typing import Any

import xarray as xr

from klray.analysis.recipe import result_name
from klray.analysis.runs import trajectories
from klray.report.carried.charts import carried_consecutive, carried_exponents, carried_scale
from klray.report.carried.models import carried_facts, carried_maps, sizes_in_order
from klray.report.carried.packing import as_json
from klray.report.carried.pairs import carried_nearest, carried_pairs, said_of_pairs
from klray.report.carried.rows import carried_rows
from klray.words.secrets import public

# {A} and {B} are the models' names, as JSON strings, which are Python's.
_MATRIX = "klray.open_result(URL, {name}, {snapshot}).kl.sel(model={{A}}, other={{B}}).item()"
_ROWS = """ds = klray.open_dataset(URL, snapshot={snapshot}).sel(model=[{{A}}, {{B}}])
klray.kl_divergence(ds.log_likelihood, ds.text_bytes)  # as scored, without the recipe"""


def page_data(
    result: xr.Dataset, snapshot: xr.Dataset | None, scale: xr.Dataset | None, matrix: xr.Dataset | None
) -> str:
    """JSON of what the page's script reads; names and messages in it are what anybody wrote.

    ``matrix`` is the result with the KL of its pairs, or of a sample of its models (``with_matrix``).
    """
    runs = trajectories(result)
    found = carried_pairs(result, matrix)
    pairs, heat = found or (None, None)
    nearest = carried_nearest(result)
    rows, why_not = carried_rows(result, snapshot)
    data: dict[str, Any] = {
        "n": result.sizes["model"],
        "models": carried_facts(result, runs, snapshot),
        "sizes": [public(size) for size in sizes_in_order(result)],
        "maps": carried_maps(result),
        "paths": [run.models.tolist() for run in runs],
        "neighbours": nearest,
        "pairs": pairs,
        "heat": heat,
        "rows": rows,
        "scale": carried_scale(scale),
        "consecutive": carried_consecutive(result, runs),
        **carried_exponents(result, runs),
        "call": _call(result),
        "carried": {
            "pairs": said_of_pairs(
                result, sum(b["size"] for b in heat["blocks"]) if heat else 0, nearest["k"] if nearest else 0
            ),
            "rows": why_not or "This model was excluded from the analysis.",
        },
    }
    return as_json(data)


def _call(result: xr.Dataset) -> str:
    """Python that gives the KL of two models of the result."""
    snapshot = repr(public(str(result.attrs.get("snapshot", ""))))
    name = repr(public(result_name("trajectory", str(result.attrs.get("domain", "")))))
    return (_MATRIX if "kl" in result else _ROWS).format(snapshot=snapshot, name=name)
