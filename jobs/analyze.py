"""Compute all-pairs KL with standard errors and diffusion exponents of a snapshot, by Dask."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from klray import config as configs
from klray.analysis import analyze as trajectory
from klray.analysis.cluster import dask_scheduler
from klray.analysis.drift import is_exact
from klray.analysis.recipe import FOUND, KNOWN_ANOMALIES, Exclusion, Recipe, of_domain, result_name
from klray.config import AnalysisConfig, Config
from klray.config.job import verb
from klray.errors import KlrayError
from klray.store import Store


def analyze(config: Config) -> xr.Dataset:
    """Analyse, write the result to the store, and return it."""
    store = Store.open(configs.store_url(config.store), configs.storage_options(config.store))
    asked = config.analysis
    name = result_name(asked.name, asked.domain)
    snapshot = store.manifest(asked.snapshot).id
    earlier = earlier_result(store, snapshot, asked) if asked.recipe == "keep" else None
    exact = exact_weights(store, snapshot, asked.weights)
    if earlier is not None and earlier.attrs["snapshot"] == snapshot and _same_windows(earlier, asked, exact):
        print(f"result {name} of snapshot {snapshot} is there already")
        return earlier.load()
    dataset = of_domain(store.dataset(snapshot), asked.domain)
    replaced = name in store.result_names(snapshot)
    continued = earlier if earlier is not None and _comes_first(earlier, dataset) else None
    recipe = given_recipe(asked) if earlier is None else Recipe.from_json(earlier.attrs["recipe"])
    with dask_scheduler(config.dask.scheduler, config.dask.address, config.dask.threads):
        result = trajectory.analyze(
            dataset,
            recipe=recipe,
            previous=continued,
            clip_quantile=asked.clip_quantile,
            outlier_fraction=asked.outlier_fraction,
            outlier_min_step=asked.outlier_min_step,
            exclude=exclusions(asked),
            exclude_found=asked.exclude_found,
            window=asked.window,
            min_step=asked.min_step,
            tile=asked.tile,
            memory_limit_bytes=configs.memory_bytes(config.dask.memory_limit),
            threads=config.dask.threads,
            sketches=store.read_sketches,
            exact_weights=exact,
        )
        result.attrs["weights"] = _made(exact)
        path = store.write_result(snapshot, name, result)
    if replaced:
        print(f"it takes the place of an earlier result {name} of this snapshot; analysis.name= keeps both")
    kept = f"recipe and pairs of snapshot {earlier.attrs['snapshot']} kept" if earlier is not None else "new recipe"
    print(f"result {store.url}/{path}: {result.sizes['model']:,} models, {kept}")
    return store.result(snapshot, name).load()


def earlier_result(store: Store, snapshot: str, asked: AnalysisConfig) -> xr.Dataset | None:
    """The newest result, of this snapshot or one before it, with a recipe made as is asked for."""
    name = result_name(asked.name, asked.domain)
    for identifier in reversed([each for each in store.snapshot_ids() if each <= snapshot]):
        if name in store.result_names(identifier):
            result = store.result(identifier, name)
            if result.attrs.get("numerics") != trajectory.NUMERICS_VERSION:
                continue
            if result.attrs.get("domain", "") != asked.domain:  # one that was called so by analysis.name=
                continue
            recipe = Recipe.from_json(result.attrs["recipe"])
            listed = tuple(each for each in recipe.excluded if not each.reason.startswith(FOUND))
            made_with = (recipe.clip_quantile, recipe.outlier_fraction, recipe.min_step, listed)
            made_by = bool(result.attrs.get("exclude_found", False))
            wanted = (asked.clip_quantile, asked.outlier_fraction, asked.outlier_min_step, exclusions(asked))
            if made_with == wanted and made_by == asked.exclude_found:
                return result
    return None


def exact_weights(store: Store, snapshot: str, name: str) -> xr.Dataset | None:
    """The newest exact weight distances, of this snapshot or one before it: they are known by commit."""
    for identifier in reversed([each for each in store.snapshot_ids() if each <= snapshot]):
        if name in store.result_names(identifier):
            found = store.result(identifier, name).load()
            if not is_exact(found):
                raise KlrayError(
                    f"analysis.weights={name}: the result of that name of snapshot {identifier} is none of klray "
                    "weights; name one that is (weights.name= there)"
                )
            return found
    return None


def _made(exact: xr.Dataset | None) -> str:
    return "" if exact is None else str(exact.attrs["made"])


def _same_windows(result: xr.Dataset, asked: AnalysisConfig, exact: xr.Dataset | None) -> bool:
    same = (result.attrs["window"], result.attrs["min_step"]) == (asked.window, asked.min_step)
    return same and "exponent_weights" in result and result.attrs.get("weights", "") == _made(exact)


def _comes_first(result: xr.Dataset, dataset: xr.Dataset) -> bool:
    keys = result["key"].values.tolist()
    return keys == dataset["key"].values[: len(keys)].tolist()


def exclusions(asked: AnalysisConfig) -> tuple[Exclusion, ...]:
    """What is known to be bad, and what the user leaves out."""
    return (*KNOWN_ANOMALIES, *(Exclusion(pattern) for pattern in asked.exclude))


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


@verb
def main(config: Config) -> int:
    """Exit code 0."""
    analyze(config)
    return 0


if __name__ == "__main__":
    main()
