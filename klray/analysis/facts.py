"""What a snapshot, or a result made of it, says of its models, and what follows from that alone.

Shapes: K = models.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

from klray.errors import StoreDamagedError
from klray.words.outside import parsed

Labelled = xr.Dataset | xr.DataArray

NO_QUANTIZATION = ("", "none")


def facts(dataset: Labelled, name: str, default: Any) -> np.ndarray:
    """(K,) a coordinate of the models, or ``default`` for all where the dataset has none."""
    return dataset[name].values if name in dataset.coords else np.full(dataset.sizes["model"], default)


def strings(dataset: Labelled, name: str, default: str = "") -> np.ndarray:
    """The same, also of texts, as strings of fixed width, which every comparison and sort takes.

    Read back from a store, strings are of variable width, and NumPy does not convert those by itself.
    """
    return np.array([str(value) for value in facts(dataset, name, default)], dtype=str)


def labels(dataset: Labelled) -> np.ndarray:
    """(K,) strings: what each model is called, or its place where the dataset does not say."""
    return strings(dataset, "model") if "model" in dataset.coords else np.arange(dataset.sizes["model"]).astype(str)


def own_output(dataset: Labelled) -> np.ndarray:
    """(K,) bool: the model's own output, not a layer under a lens."""
    found: np.ndarray = facts(dataset, "layer", -1) < 0
    return found


def quantised(dataset: Labelled) -> np.ndarray:
    """(K,) bool: the model was quantised before it was scored."""
    return ~np.isin(strings(dataset, "quantization"), NO_QUANTIZATION)


def differing(groups: Iterable[str], labels: Iterable[str]) -> dict[str, dict[str, int]]:
    """Those of ``groups`` (K,) whose models have more than one of ``labels`` (K,), and how many have each.

    "" is no group, and no label.

    >>> differing(["a", "a", "b", ""], ["x", "y", "x", "z"])
    {'a': {'x': 1, 'y': 1}}
    """
    counts: dict[str, Counter[str]] = {}
    for group, label in zip(groups, labels, strict=True):
        if group and label:
            counts.setdefault(group, Counter())[label] += 1
    return {group: dict(found.most_common()) for group, found in sorted(counts.items()) if len(found) > 1}


def usual_dtype(dtypes: np.ndarray, among: np.ndarray) -> str:
    """The dtype that most of the models ``among`` (K,) bool have; "" where there is no model.

    Of several with as many it is the widest, and of those as wide the first: the order of models says nothing.

    >>> usual_dtype(np.array(["float16", "float32", "float16"]), np.array([True, True, False]))
    'float32'
    """
    counts = Counter(dtypes[among].tolist())
    most = [dtype for dtype, count in counts.items() if count == max(counts.values())]
    return next((wide for wide in ("float64", "float32") if wide in most), most[0] if most else "")


def recorded(result: xr.Dataset, name: str, default: Any = None) -> Any:
    """What an attribute of a result says in JSON, or ``default`` where it has none.

    Raises StoreDamagedError: it is no JSON of that kind, or nested too deeply.
    """
    if name not in result.attrs and default is not None:
        return default
    try:
        found = parsed(result.attrs[name])
        if not isinstance(found, dict | list) or (default is not None and not isinstance(found, type(default))):
            raise TypeError(f"it holds a {type(found).__name__}")
    except (ValueError, TypeError, KeyError) as error:
        raise StoreDamagedError(
            f"the result's {name} cannot be read ({type(error).__name__}: {error}); make the result anew"
        ) from error
    return found


def origin(dataset: xr.Dataset) -> dict[str, Any]:
    """Attributes that say of which snapshot and texts a result is, and what that snapshot lacks."""
    names = ("snapshot", "text_set", "text_set_name", "domain", "left_out")
    return {name: dataset.attrs[name] for name in names if name in dataset.attrs}
