"""Which earlier result of a store may be continued, and whether what was asked for is there already."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import dask.array as da
import numpy as np
import xarray as xr

from klray.analysis.drift import is_exact
from klray.analysis.recipe import FOUND, MISPLACED, Exclusion, Recipe, excluded_by, misplaced_in, result_name
from klray.errors import KlrayError, StoreDamagedError
from klray.store import Store
from klray.words.tables import say

log = logging.getLogger("klray")

NUMERICS_VERSION = 3  # raise when the same snapshot and recipe give other values than before

Made = TypeVar("Made")


@dataclass(frozen=True)
class Preprocessing:
    """How a recipe is to be made: arguments of ``Recipe.fit``, and whether anomalies that are found are excluded."""

    clip_quantile: float
    outlier_fraction: float
    outlier_min_step: int
    exclude: tuple[Exclusion, ...]
    exclude_found: bool = False
    exclude_misplaced: bool = True

    def fit(self, dataset: xr.Dataset) -> Recipe:
        """A new recipe of the snapshot, without what is only found by an analysis."""
        return Recipe.fit(
            dataset,
            self.clip_quantile,
            self.outlier_fraction,
            self.outlier_min_step,
            self.exclude,
            self.exclude_misplaced,
        )

    def excluded(self, dataset: xr.Dataset) -> np.ndarray:
        """(K,) bool: the models that such a recipe leaves out, without what is only found by an analysis."""
        by_hand = excluded_by(dataset, self.exclude)
        return by_hand | [self.exclude_misplaced and why != "" for why in misplaced_in(dataset)]

    def has_made(self, result: xr.Dataset) -> bool:
        """Whether the recipe of a result was made so."""
        recipe = Recipe.from_json(result.attrs["recipe"])
        by_hand = tuple(each for each in recipe.excluded if not each.reason.startswith((FOUND, MISPLACED)))
        found = bool(result.attrs.get("exclude_found", False))
        swapped = bool(result.attrs.get("exclude_misplaced", True))
        made = Preprocessing(recipe.clip_quantile, recipe.outlier_fraction, recipe.min_step, by_hand, found, swapped)
        return made == self


def there_already(
    what: str,
    read: Callable[[], Made | None],
    same: Callable[[Made], bool],
    both: str,
    unreadable: type[KlrayError] = StoreDamagedError,
) -> Made | None:
    """What stands where a verb is about to write, if it is what the verb would make: the user is told, and it stays.

    What cannot be read is made anew, with a warning; what is something else gives way, and the user is told how to
    keep ``both``. What must not give way is refused by ``same``.
    """
    try:
        found = read()
    except unreadable as error:
        log.warning("%s; it is made anew", error)
        return None
    if found is None:
        return None
    if same(found):
        say(f"{what} is there already")
        return found
    say(f"this takes the place of an earlier {what}; {both} keeps both")
    return None


def earlier_result(
    store: Store, snapshot: str, name: str, domain: str, preprocessing: Preprocessing
) -> xr.Dataset | None:
    """The newest "trajectory" result, of this snapshot or one before it, with a recipe made as is asked for.

    ``name`` is that of all texts; on a ``domain`` a result has a name of its own. One that is none of ``klray analyze``
    is passed over, with a warning.
    """
    name = result_name(name, domain)
    for identifier, result in _newest_first(store, snapshot, name):
        if not _is_trajectory(result):
            log.warning("the result %s of snapshot %s is none of klray analyze: passed over", name, identifier)
            continue
        numerics, of = result.attrs.get("numerics"), result.attrs.get("domain", "")
        # a result of another domain was called so by the user
        if numerics == NUMERICS_VERSION and of == domain and preprocessing.has_made(result):
            return result
    return None


def _is_trajectory(result: xr.Dataset) -> bool:
    """Whether a result has a recipe and, if matrices of pairs, those that ``klray analyze`` writes."""
    if not all(isinstance(result.attrs.get(name), str) for name in ("recipe", "snapshot", "text_set")):
        return False
    pairs = [result[name] for name in ("kl", "kl_standard_error") if name in result.data_vars]
    square = [each.dims == ("model", "other") and each.shape[0] == each.shape[1] for each in pairs]
    try:
        Recipe.from_json(result.attrs["recipe"])
    except KlrayError:
        return False
    return len(pairs) != 1 and all(square) and all(each.dtype.kind == "f" for each in pairs)


def exact_weights(store: Store, snapshot: str, name: str) -> xr.Dataset | None:
    """The newest exact weight distances, of this snapshot or one before it: they are known by commit."""
    for identifier, result in _newest_first(store, snapshot, name):
        found = result.load()
        if not is_exact(found):
            raise KlrayError(
                f"analysis.weights={name}: the result of that name of snapshot {identifier} is none of klray "
                "weights; name one that is (weights.name= there)"
            )
        return found
    return None


def comes_first(result: xr.Dataset, dataset: xr.Dataset) -> bool:
    """Whether the models of a result are the first ones of the snapshot, with the same values."""
    n_known = result.sizes["model"]
    # sha256: a column that was damaged and scored again on another machine may have other last bits
    identity = [name for name in ("key", "layer", "sha256") if name in result.coords and name in dataset.coords] or [
        "model"
    ]
    return n_known <= dataset.sizes["model"] and all(
        np.array_equal(result[name].values, dataset[name].values[:n_known]) for name in identity
    )


def check_previous(previous: xr.Dataset, dataset: xr.Dataset, recipe: Recipe) -> None:
    """Refuse a previous result whose pairs are not those of the snapshot's first models."""
    advice = "leave previous out to compute all pairs anew"
    before, now = (str(d.attrs.get("text_set", "")) for d in (previous, dataset))
    if before != now:
        raise KlrayError(
            f"the previous result belongs to text set {before[:12]}, the snapshot has {now[:12]}: {advice}"
        )
    if Recipe.from_json(previous.attrs["recipe"]) != recipe:
        raise KlrayError(
            "the previous result was made with another recipe than the one given: leave recipe out to keep that of the "
            f"previous result, or {advice}"
        )
    if not comes_first(previous, dataset):
        raise KlrayError(
            f"the previous result's {previous.sizes['model']:,} models are not the first of the snapshot's "
            f"{dataset.sizes['model']:,}: pass a result of an earlier snapshot of the same store, or {advice}"
        )


def known_pairs(previous: xr.Dataset | None, name: str) -> Any:
    """Pairs of a previous result; a block that was lost reads as NaN, and is refused when it is used."""
    if previous is None or name not in previous:
        return None
    values = previous[name]
    blocks = da.asarray(values.data).map_blocks(_whole, name, dtype=values.dtype, meta=np.empty((0, 0), values.dtype))
    return values.copy(data=blocks)


def _whole(block: np.ndarray, name: str) -> np.ndarray:
    if np.isnan(block).any():
        raise KlrayError(
            f"the previous result has lost values of {name}: analyse without it (analysis.recipe=fit computes all anew)"
        )
    return block


def _newest_first(store: Store, snapshot: str, name: str) -> Iterator[tuple[str, xr.Dataset]]:
    """The results of that name of the snapshot and of those before it, each with its snapshot."""
    for identifier in reversed([each for each in store.snapshot_ids() if each <= snapshot]):
        if name in store.result_names(identifier):
            yield identifier, store.result(identifier, name)
