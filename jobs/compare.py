"""Compare models token by token: the exact KL of their next-token distributions, beside the estimate."""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from operator import attrgetter
from pathlib import Path

import numpy as np
import xarray as xr

from jobs.analyze import preprocessing
from klray import config as configs
from klray.analysis.continuing import there_already
from klray.analysis.exact_kl import MEANS, as_table, check_result
from klray.analysis.facts import recorded
from klray.analysis.scale.choosing_pairs import setting_pairs
from klray.analysis.scale.compared_models import Models
from klray.checkpoints import Cache, Checkpoint, Hub, resolve
from klray.config import Config
from klray.config import sweep as sweep_configs
from klray.config.job import verb
from klray.errors import CheckpointError, KlrayError
from klray.likelihood.choices import LOGIT, NONE
from klray.measure.comparing import (
    NUMERICS_VERSION,
    Compared,
    Comparer,
    Comparison,
    Side,
    as_dataset,
    comparisons,
    rows_of,
)
from klray.store import Store
from klray.sweep.limits import Limits, limits_of
from klray.sweep.model_process import ModelProcess
from klray.sweep.settings import ScoringSettings
from klray.texts import TextSet
from klray.words.numbers import counted
from klray.words.progress import Progress
from klray.words.tables import say, show, text_table

log = logging.getLogger("klray")


def compare(config: Config) -> xr.Dataset:
    """Compare, print the table, keep the result if there is a store, and return it."""
    asked = config.compare
    for name, least in (("pairs", 1), ("texts", 2)):
        if getattr(asked, name) < least:
            raise KlrayError(f"compare.{name}={getattr(asked, name)}: must be {least} or more")
    selection = sweep_configs.selection(config.models)
    settings = sweep_configs.scoring_settings(config.scoring, config.lens.norm)
    text_set = configs.text_set(config.texts)
    texts = np.unique(np.linspace(0, len(text_set) - 1, min(asked.texts, len(text_set))).round().astype(int))
    chosen = TextSet(text_set.name, tuple(text_set.texts[n] for n in texts), tuple(text_set.domains[n] for n in texts))
    kept = None if config.store.url is None else _pairs(config, text_set)  # before the hub is asked, which takes long
    with sweep_configs.hub(config.models) as hub, Cache(Path(settings.cache_dir), settings.cache_bytes) as cache:
        checkpoints, unavailable = resolve(hub, selection)
        for refused in unavailable:
            log.warning("%s@%s: %s", refused.repository, refused.revision, refused.message)
        work = _Work(hub, cache, settings, chosen)
        with contextlib.closing(work):
            if kept is None:
                dataset = xr.Dataset({"text_bytes": ("text", text_set.n_bytes)})
                result = as_dataset(work.do(_of_selection(checkpoints, settings)), dataset, texts, work.refused)
            else:
                result = _kept(config, kept, checkpoints, texts, work)
    show(text_table(*as_table(result), text_columns=1))
    say(MEANS)
    for label, why in recorded(result, "refused").items():
        say(f"refused: {label}: {why}")
    return result


class _Work:
    """What compares, and the files that it takes."""

    def __init__(self, hub: Hub, cache: Cache, settings: ScoringSettings, text_set: TextSet):
        self.hub, self.cache, self.settings, self.text_set = hub, cache, settings, text_set
        self.process = ModelProcess(settings, text_set, Comparer)
        self.refused: dict[str, str] = {}

    def close(self) -> None:
        self.process.close()

    def do(self, asked: Sequence[Comparison]) -> list[Compared]:
        """What was found; why others were not is in ``refused``."""
        done = []
        with Progress(len(asked), "compare", "comparison") as progress:
            for each in asked:
                try:
                    done += self._one(each)
                except CheckpointError as error:
                    self.refused[each.label] = error.message
                    log.warning("%s: %s", each.label, error.message)
                progress.advance(1, each.setting)
        return done

    def _one(self, asked: Comparison) -> list[Compared]:
        checkpoints = (asked.first.checkpoint, asked.second.checkpoint)
        distinct = list(dict.fromkeys(checkpoints))
        if (size := sum(each.bytes for each in distinct)) > self.settings.cache_bytes:
            raise KlrayError(
                f"{asked.label} have {size / 1e9:.1f} GB together, the cache is {self.settings.cache_bytes / 1e9:.1f} "
                "GB: raise scoring.cache_gigabytes"
            )
        directories = []
        try:
            for each in distinct:
                directories.append(self.cache.fetch(self.hub, each))
            settings = replace(self.settings, lens=asked.first.lens)
            limits = [limits_of(each, self.text_set, settings) for each in checkpoints]
            both = Limits(sum(each.seconds for each in limits), sum(each.memory for each in limits), limits[0].size)
            found = self.process.ask((asked, [directories[0], directories[-1]]), directories, both)
        except CheckpointError as error:
            message = error.message
            for directory, each in zip(directories, distinct, strict=False):
                message = message.replace(str(directory), each.label)
            raise CheckpointError(message, error.reason) from error
        finally:
            for each in distinct[: len(directories)]:
                self.cache.release(each)
        return [
            Compared(key, asked.setting, first, second, each)
            for key, (first, second), each in zip(asked.keys, asked.names, found, strict=True)
        ]


def _of_selection(checkpoints: Sequence[Checkpoint], settings: ScoringSettings) -> list[Comparison]:
    """Without a store: each checkpoint with its quantised self if ``settings`` quantise, else with the next one."""
    if settings.lens != NONE:
        raise KlrayError("scoring.lens: layers are compared where they were scored: name that store with store.url=")
    plain = [Side(each, settings.dtype) for each in checkpoints]
    if settings.quantization != NONE:
        pairs = [(each, replace(each, quantization=settings.quantization)) for each in plain]
    else:
        pairs = list(pairwise(plain))
    if not pairs:
        raise KlrayError(
            f"models= selects {counted(len(plain), 'checkpoint')}: name two with models.names=[A,B] or "
            "models.revisions=[A,B], or set scoring.quantization= to compare one with its quantised self"
        )
    found = []
    for first, second in pairs:
        names = (first.checkpoint.label, f"{second.checkpoint.label} {second.quantization}".removesuffix(f" {NONE}"))
        found.append(Comparison(names[1], first, second, (names,), ("",)))
    return found


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a snapshot's models, by the settings that are asked for."""

    store: Store
    snapshot: str
    dataset: xr.Dataset
    by_setting: dict[str, np.ndarray]


def _pairs(config: Config, text_set: TextSet) -> _Pairs:
    asked = config.compare
    store = Store.open(configs.store_url(config.store), configs.storage_options(config.store))
    snapshot = store.manifest(config.analysis.snapshot).id
    dataset = store.dataset(snapshot)
    if dataset.attrs["text_set"] != text_set.fingerprint:
        raise KlrayError(
            f"store {store.url} was scored on {dataset.attrs.get('text_set_name')}, and texts={text_set.name} are "
            "others: give the texts that the store was made with"
        )
    models = Models.of(dataset, preprocessing(config.analysis).excluded(dataset))
    pairs = setting_pairs(models, configs.scale_choice(config.scale))
    if lost := sorted(set(asked.settings) - set(pairs)):
        raise KlrayError(f"compare.settings={lost}: there are {'; '.join(pairs)}")
    pairs = {name: each for name, each in pairs.items() if name in (asked.settings or pairs)}
    # fp4 and nf4 have settings of their own, too
    pairs = {name: each for name, each in pairs.items() if name != "4-bit" or asked.settings}
    return _Pairs(store, snapshot, dataset, pairs)


def _kept(
    config: Config, pairs: _Pairs, checkpoints: Sequence[Checkpoint], texts: np.ndarray, work: _Work
) -> xr.Dataset:
    """The result of the snapshot: what is there already stays, and what is missing is added by settings."""
    asked = config.compare
    store, snapshot, dataset = pairs.store, pairs.snapshot, pairs.dataset
    wanted, passed_over = comparisons(dataset, pairs.by_setting, checkpoints, asked.pairs)
    # another tuned lens than the one that is given is not at hand
    wanted = [each for each in wanted if each.first.lens in (NONE, LOGIT, work.settings.lens)]
    if passed_over:
        log.info("passed over: %s with a checkpoint outside models=, or two tokenizers", counted(passed_over, "pair"))
    if not wanted:
        raise KlrayError("no setting has a pair of the selected checkpoints: look at klray scale, and set models=")
    keys = {key for each in wanted for key in each.keys}
    known: list[Compared] = []

    def read() -> xr.Dataset | None:
        found = store.result(snapshot, asked.name).load() if asked.name in store.result_names(snapshot) else None
        if found is not None:
            check_result(found, asked.name)
            if found.attrs["numerics"] == NUMERICS_VERSION and found["text"].values.tolist() == texts.tolist():
                known.extend(each for each in rows_of(found) if each.key in keys)
        return found

    there = there_already(
        f"result {asked.name} of this snapshot",
        read,
        lambda found: keys <= {each.key for each in known} and len(found["key"]) == len(known),
        "compare.name=",
    )
    if there is not None:
        return there
    have = {each.key for each in known}
    missing = [each for each in wanted if not set(each.keys) <= have]
    path, result = "", None
    for _, of_setting in groupby(missing, attrgetter("setting")):
        known += work.do(list(of_setting))
        result = as_dataset(known, dataset, texts, work.refused)
        path = store.write_result(snapshot, asked.name, result)  # a job that is ended goes on from here
    if result is None:
        result = as_dataset(known, dataset, texts, work.refused)
        path = store.write_result(snapshot, asked.name, result)
    say(f"result {store.url}/{path}; klray report shows it")
    return result


main = verb(compare, lambda result: recorded(result, "refused"))

if __name__ == "__main__":
    main()
