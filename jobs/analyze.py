"""Compute all-pairs KL with standard errors and diffusion exponents of a snapshot, by Dask."""

import logging
from pathlib import Path

import numpy as np
import xarray as xr

from klray import config as configs
from klray.analysis import analyze as trajectory
from klray.analysis.cluster import dask_scheduler
from klray.analysis.continuing import Preprocessing, comes_first, earlier_result, exact_weights, there_already
from klray.analysis.pairs import MATRICES
from klray.analysis.recipe import KNOWN_ANOMALIES, Exclusion, Recipe, excluded_by, of_domain, result_name
from klray.config import AnalysisConfig, Config
from klray.config.job import verb
from klray.errors import KlrayError
from klray.store import Store
from klray.words.numbers import counted
from klray.words.tables import say

log = logging.getLogger("klray")

MANY_MORE = 10  # times the models that a recipe was fitted to: it is said, because it hardly fits them


def analyze(config: Config) -> xr.Dataset:
    """Analyse, write the result to the store, and return it."""
    store = Store.open(configs.store_url(config.store), configs.storage_options(config.store))
    asked = config.analysis
    name, made_so = result_name(asked.name, asked.domain), preprocessing(asked)
    snapshot = store.manifest(asked.snapshot).id
    keep = asked.recipe == "keep"
    earlier = earlier_result(store, snapshot, asked.name, asked.domain, made_so) if keep else None
    exact = exact_weights(store, snapshot, asked.weights)
    weights = "" if exact is None else str(exact.attrs["made"])

    def same(result: xr.Dataset) -> bool:
        of_earlier = earlier is not None and earlier.attrs["snapshot"] == snapshot
        windows = (result.attrs.get("window"), result.attrs.get("min_step")) == (asked.window, asked.min_step)
        pairs = asked.pairs in (None, result.attrs.get("pairs", "all"))
        exact = result.attrs.get("weights", "") == weights
        return of_earlier and windows and pairs and exact and "exponent_weights" in result

    there = there_already(
        f"result {name} of this snapshot",
        lambda: store.result(snapshot, name) if name in store.result_names(snapshot) else None,
        same,
        "analysis.name=",
    )
    if there is not None:
        _say_what_it_was_fitted_to(there)
        return there.load()
    dataset = of_domain(store.dataset(snapshot), asked.domain)
    for pattern in asked.exclude:
        if not excluded_by(dataset, [Exclusion(pattern)]).any():
            log.warning("analysis.exclude: %s is no model of snapshot %s and leaves nothing out", pattern, snapshot)
    with dask_scheduler(config.dask.scheduler, config.dask.address, config.dask.threads):
        result = trajectory.analyze(
            dataset,
            recipe=given_recipe(asked) if earlier is None else Recipe.from_json(earlier.attrs["recipe"]),
            previous=earlier if earlier is not None and comes_first(earlier, dataset) else None,
            **vars(made_so),
            window=asked.window,
            min_step=asked.min_step,
            pairs_kept=asked.pairs,
            n_neighbours=asked.neighbours,
            tile=asked.tile,
            memory_limit_bytes=configs.memory_bytes(config.dask.memory_limit),
            threads=config.dask.threads,
            sketches=store.read_sketches,
            exact_weights=exact,
            begun=lambda belongs: next(
                store.begun_results(snapshot, name, MATRICES, dataset.sizes["model"], belongs), None
            ),
        )
        result.attrs["weights"] = weights
        result.attrs["recipe_models"] = fitted_to(earlier) if earlier is not None else _own(result)
        if asked.recipe not in ("keep", "fit"):  # of a file nobody knows it
            result.attrs["recipe_models"] = 0
        path = store.write_result(snapshot, name, result)
    kept = f"recipe and pairs of snapshot {earlier.attrs['snapshot']} kept" if earlier is not None else "new recipe"
    out = int(result["excluded"].values.sum())
    excluded = f"; {out:,} of the models are excluded" if out else ""
    say(f"result {store.url}/{path}: {counted(result.sizes['model'], 'model')}, {kept}{excluded}")
    _say_what_it_was_fitted_to(result)
    return store.result(snapshot, name).load()


def fitted_to(result: xr.Dataset) -> int:
    """Models that the recipe of a result was fitted to, or at most; 0: nobody knows."""
    found = result.attrs.get("recipe_models", _own(result))  # of an older klray: at most as many as there were
    return int(found) if isinstance(found, int | np.integer) else 0


def _own(result: xr.Dataset) -> int:
    """Models of a result that a recipe is fitted to."""
    return int((~result["excluded"].values & (result["layer"].values < 0)).sum())


def _say_what_it_was_fitted_to(result: xr.Dataset) -> None:
    """Where that were few: what is kept for ever was then chosen by one model, or some."""
    fitted, now = fitted_to(result), _own(result)
    if 0 < MANY_MORE * fitted <= now:
        say(
            f"recipe     was fitted to {counted(fitted, 'model')}, and there are {now:,} now: clip threshold and "
            "removed texts are those of the first. analysis.recipe=fit fits another, and computes all pairs again"
        )


def preprocessing(asked: AnalysisConfig) -> Preprocessing:
    """How a recipe is made; left out are what is known to be bad, and what the user leaves out."""
    exclude = (*KNOWN_ANOMALIES, *(Exclusion(pattern) for pattern in asked.exclude))
    return Preprocessing(
        asked.clip_quantile,
        asked.outlier_fraction,
        asked.outlier_min_step,
        exclude,
        asked.exclude_found,
        asked.exclude_misplaced,
    )


def given_recipe(asked: AnalysisConfig) -> Recipe | None:
    """None: a new one is to be fitted."""
    if asked.recipe in ("keep", "fit"):
        return None
    path = Path(asked.recipe)
    if not path.is_file():
        raise KlrayError(f"analysis.recipe={asked.recipe}: choose keep or fit, or name a JSON file that holds a recipe")
    try:
        return Recipe.from_json(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise KlrayError(f"analysis.recipe={asked.recipe}: it is no text ({error}); name a recipe's JSON") from error


main = verb(analyze)

if __name__ == "__main__":
    main()
