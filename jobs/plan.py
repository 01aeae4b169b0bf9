"""Print what would be scored and what it costs: bytes, hours, what is there already, what cannot be and why."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import xarray as xr

from klray import config as configs
from klray.analysis.recipe import suspicions
from klray.analysis.scale.text_sensitivity import precision
from klray.checkpoints import Unavailable, larger_than_cache
from klray.config import Config
from klray.config import measure as measure_configs
from klray.config import sweep as sweep_configs
from klray.config.job import verb
from klray.likelihood.choices import LOGIT, NONE
from klray.likelihood.lens import is_unfinished
from klray.store import Store
from klray.sweep.cost import Cost, cost, lens_weights
from klray.sweep.sweeping import missing
from klray.words.numbers import counted, duration
from klray.words.tables import say, show, text_table

SHOWN = 20


@dataclass(frozen=True)
class Plan:
    """What would be done: its cost, and what cannot be."""

    cost: Cost
    unavailable: tuple[Unavailable, ...]


def plan(config: Config, *, untrained: bool = False) -> Plan:
    """Print the plan and return it; nothing is fetched and no store is made.

    ``untrained``: scoring is to go through a tuned lens that is not there yet, so that no column can be.
    """
    url = configs.store_url(config.store)
    settings = sweep_configs.scoring_settings(config.scoring)
    rates = measure_configs.plan_rates(config.plan, config.models, config.scoring, config.ray)
    selection = sweep_configs.selection(config.models)
    text_set = configs.text_set(config.texts)
    store = Store.find(url, text_set, configs.storage_options(config.store))
    committed = store.committed_keys() if store and not untrained else set()
    with sweep_configs.hub(config.models) as hub:
        checkpoints, unavailable = sweep_configs.resolved(hub, selection)
        todo, present = missing(checkpoints, committed, settings, text_set.fingerprint)
        too_large = {each: why for each in todo if (why := larger_than_cache(each, settings.cache_bytes))}
        todo = [each for each in todo if each not in too_large]
        unavailable += [
            Unavailable(each.repository, each.revision, "disk_full", f"it takes {each.bytes:,} bytes, and {why}")
            for each, why in too_large.items()
        ]
        tuned = untrained or settings.lens not in (NONE, LOGIT)
        lens = lens_weights(hub, todo, tuned=tuned) if tuned or settings.lens == LOGIT else None
    planned = cost(todo, present, int(text_set.n_bytes.sum()), rates, lens)
    say(f"family      {selection.family}, {counted(len(selection.repositories), 'repository')}")
    say(f"texts       {text_set.name}, {counted(len(text_set), 'text')}, {text_set.n_bytes.sum():,} bytes")
    say(f"precision   {precision(len(text_set), _scale(store, config), config.plan.kl, config.plan.standard_error)}")
    say(f"store       {url}{'' if store else ' (to be created)'}")
    say(f"to score    {counted(len(todo), 'checkpoint')}")
    say(f"present     {counted(len(present), 'checkpoint')}")
    say(f"impossible  {counted(len(unavailable), 'checkpoint')}")
    show("\n".join(planned.lines()))
    for each in todo[:SHOWN]:
        say(f"  score    {each.commit[:12]}  {each.bytes / 1e6:12,.1f} MB  {each.label}")
    if len(todo) > SHOWN:
        say(f"  ... and {len(todo) - SHOWN:,} more")
    for label, why in suspicions(checkpoints).items():
        say(f"  suspect  {label}  {why}: it is scored, and analyses leave it out")
    for refused in unavailable:
        say(f"  cannot   {refused.repository}@{refused.revision}  {refused.reason}: {refused.message}")
    return Plan(planned, tuple(unavailable))


def _scale(store: Store | None, config: Config) -> xr.Dataset | None:
    """What klray scale measured on these texts, of the newest snapshot."""
    newest = store.snapshot_ids()[-1:] if store else []
    if store is None or not newest or config.scale.name not in store.result_names(newest[0]):
        return None
    return store.result(newest[0], config.scale.name).load()


def plan_study(config: Config) -> list[Plan]:
    """Print the plan of every stage of a study, and what all of them cost one after another."""
    configs.store_url(config.store)  # refused here, not below the name of the first stage
    plans, rows = [], []
    for asked, stage in configs.stages(config):
        folder = configs.tuned_folder(config, asked)
        trained = asked.tune and folder.is_dir() and not is_unfinished(folder)
        if trained:
            stage.scoring = replace(stage.scoring, lens=str(folder))
        lens = f"the lens in {folder}" if trained else "a lens to be trained (which is not counted)"
        say(f"stage       {asked.name}{f', through {lens}' if asked.tune else ''}")
        planned = plan(stage, untrained=asked.tune and not trained)
        say()
        plans.append(planned)
        rows.append((asked.name, planned.cost))
    numbers = [_row(name, [cost]) for name, cost in rows]
    numbers.append(_row("all", [cost for _, cost in rows]))
    hours = f"{rows[0][1].rates.device}-hours" if rows else "hours"
    show(text_table(("stage", "to score", "different", "GB", hours, "wall time"), numbers, text_columns=1))
    return plans


def _row(name: str, costs: Sequence[Cost]) -> tuple[str, ...]:
    """The cost of one or more stages, one after another."""
    return (
        name,
        f"{sum(each.checkpoints for each in costs):,}",
        f"{sum(each.distinct for each in costs):,}",
        f"{sum(each.fetch_bytes for each in costs) / 1e9:,.3f}",
        f"{sum(each.device_seconds for each in costs) / 3600:,.3f}",
        duration(sum(each.wall_seconds for each in costs)),
    )


def plans(config: Config) -> list[Plan]:
    """Those of the study's stages, or the one of the job."""
    return plan_study(config) if config.study.stages else [plan(config)]


main = verb(plans, lambda found: any(each.unavailable for each in found))


if __name__ == "__main__":
    main()
