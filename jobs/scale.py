"""Measure the scale of KL: the ten settings (training steps, seeds, quantisation, fine-tuning, ...) of a snapshot."""

import logging
from pathlib import Path

import xarray as xr

from jobs.analyze import given_recipe, preprocessing
from klray import config as configs
from klray.analysis import analyze as trajectory
from klray.analysis.cluster import dask_scheduler
from klray.analysis.continuing import earlier_result, there_already
from klray.analysis.recipe import Recipe, of_domain, result_name
from klray.analysis.scale.measuring import format_scale, measure_scale, require_pairs
from klray.analysis.scale.side_by_side import compare_domains
from klray.analysis.scale.text_sensitivity import format_sensitivity
from klray.config import Config
from klray.config.job import verb
from klray.errors import KlrayError
from klray.report.figures import scale_violins
from klray.report.figures.style import save
from klray.store import Store
from klray.words.tables import say, show

log = logging.getLogger("klray")


def scale(config: Config) -> dict[str, xr.Dataset]:
    """Measure, print the table, write result and figure; the results by domain ("": all texts)."""
    store = Store.open(configs.store_url(config.store), configs.storage_options(config.store))
    asked, of = config.scale, config.analysis
    domains = list(dict.fromkeys(asked.domains)) or [of.domain]
    if len(domains) > 1 and of.recipe not in ("keep", "fit"):
        raise KlrayError(
            f"analysis.recipe={of.recipe} with scale.domains={domains}: a recipe is for one domain's "
            "texts; leave it out, or measure one domain at a time by analysis.domain="
        )
    snapshot = store.manifest(of.snapshot).id
    folder = Path(asked.dir).expanduser() if asked.dir else None
    datasets = {domain: of_domain(store.dataset(snapshot), domain) for domain in domains}
    results, trajectories = {}, {}
    with dask_scheduler(config.dask.scheduler, config.dask.address, config.dask.threads):
        for domain, dataset in datasets.items():
            recipe = None if asked.published else _recipe(store, snapshot, config, domain, dataset)
            result = measure_scale(dataset, recipe, configs.scale_choice(asked), asked.resamples)
            require_pairs(result)
            name = result_name(asked.name, domain)
            _give_way(store, snapshot, name)
            path = store.write_result(snapshot, name, result)
            say(f"{name}{f', texts of domain {domain}' if domain else ''}, snapshot {snapshot}")
            show(format_scale(result))
            if sensitive := format_sensitivity(result):
                say()
                show(sensitive)
            say(f"result {store.url}/{path}")
            if folder is not None:
                save(scale_violins.PLATE.draw(result), folder, name)
                say(f"figure {folder / name}.png and .pdf: {scale_violins.PLATE.caption(result)}")
            say()
            results[domain] = result
            if len(domains) > 1 and recipe is not None:
                # exponents of the runs on these texts; pairs of all models stay uncomputed
                trajectories[domain] = trajectory.analyze(
                    dataset, recipe=recipe, window=of.window, min_step=of.min_step, pairs_kept="runs", tsne=False
                )
    if len(domains) > 1:
        show(compare_domains(results, trajectories).table())
    return results


def _give_way(store: Store, snapshot: str, name: str) -> None:
    """Say so if there is such a result: a scale is measured in seconds, and always is."""
    there = name if name in store.result_names(snapshot) else None
    there_already(f"result {name} of this snapshot", lambda: there, lambda _: False, "scale.name=")


def _recipe(store: Store, snapshot: str, config: Config, domain: str, dataset: xr.Dataset) -> Recipe:
    """The recipe of an analysis of these texts if there is one (analysis.recipe=keep), else a new one."""
    asked = config.analysis
    given, made_so = given_recipe(asked), preprocessing(asked)
    if given is not None:
        return given
    if asked.recipe == "keep":
        earlier = earlier_result(store, snapshot, asked.name, domain, made_so)
        if earlier is not None:
            return Recipe.from_json(earlier.attrs["recipe"])
        name = result_name(asked.name, domain)
        if name in store.result_names(snapshot):
            log.warning(
                "the result %s of this snapshot was made with other settings than analysis= has now, so that its "
                "recipe is not taken and the scale has another: give the settings that klray analyze was given, such "
                "as analysis=tiny",
                name,
            )
    return made_so.fit(dataset)


main = verb(scale)

if __name__ == "__main__":
    main()
