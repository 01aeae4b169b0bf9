"""Score the checkpoints that the store lacks."""

import logging
from collections import Counter
from collections.abc import Sequence

from klray import config as configs
from klray.analysis.recipe import suspicions
from klray.checkpoints import Checkpoint, Selection, Unavailable
from klray.checkpoints.local_folder import local_folder
from klray.config import Config
from klray.config import sweep as sweep_configs
from klray.config.job import verb
from klray.errors import KlrayError
from klray.store import Store, layout
from klray.sweep.settings import ScoringSettings
from klray.sweep.sweeping import SweepReport, sweep
from klray.words.heard import table
from klray.words.numbers import counted
from klray.words.tables import say, show, text_table

log = logging.getLogger("klray")

REPOSITORIES_SHOWN = 30


def score(config: Config) -> SweepReport:
    """Resolve, score what is missing, and say how it went."""
    url = configs.store_url(config.store)
    selection = sweep_configs.selection(config.models)
    settings = sweep_configs.scoring_settings(config.scoring, config.lens.norm)
    if lacking := sweep_configs.lacks_libraries(config.ray, config.scoring):
        raise KlrayError(lacking)
    text_set = configs.text_set(config.texts)
    store = Store.create(url, text_set, configs.storage_options(config.store), config.store.single_writer)
    if config.texts.publish:
        store.publish_texts(text_set)
    with sweep_configs.hub(config.models) as hub:
        checkpoints, unavailable = sweep_configs.resolved(hub, selection)
        if not checkpoints and not unavailable:
            raise KlrayError(f"models.family={selection.family}: nothing to score was selected; look at klray plan")
        for name, why in suspicions(checkpoints).items():
            log.warning("%s: %s; it is scored, and analyses leave it out", name, why)
        if kept := kept_parents(store, selection, checkpoints, settings):
            log.warning("%s", kept)
        store.record_plan(
            selection.family, (settings.identity(each, store.texts.fingerprint).key for each in checkpoints)
        )
        report = sweep(
            store,
            text_set,
            checkpoints,
            unavailable,
            hub,
            settings,
            config.ray,
            configs.storage_options(config.store),
            resolved=_resolved(selection, unavailable),
            family=selection.family,
        )
    _print(report, checkpoints, store)
    return report


def kept_parents(
    store: Store, selection: Selection, checkpoints: Sequence[Checkpoint], settings: ScoringSettings
) -> str:
    """Which columns were committed with another parent than ``base_model`` names now; "" if none was."""
    named = {
        str(local_folder(spec.repository) or spec.repository) for spec in selection.repositories if spec.base_model
    }
    wanted = {
        settings.identity(each, store.texts.fingerprint).key: each for each in checkpoints if each.repository in named
    }
    there = store.commits(sorted(wanted.keys() & store.committed_keys())) if wanted else []
    other = [each for each in there if each.facts.get("base_model", "") != wanted[each.key].facts.base_model]
    if not other:
        return ""
    first, asked = other[0], wanted[other[0].key]
    return (
        f"the parent (base_model) stays that of the commit in {counted(len(other), 'column')}: {asked.label} has "
        f"{first.facts.get('base_model') or 'none'}, and asked for is {asked.facts.base_model}; to change it, remove "
        f"{layout.commit_path(first.key)} from the store and run this again"
    )


def _resolved(selection: Selection, unavailable: Sequence[Unavailable]) -> set[tuple[str, str]]:
    """What was asked for, pattern by pattern and repository by repository, and is not unavailable."""
    asked = {
        (spec.repository, revision)
        for spec in selection.repositories
        for revision in (*spec.patterns, ", ".join(spec.patterns))
    }
    return asked - {(each.repository, each.revision) for each in unavailable}


def _print(report: SweepReport, checkpoints: Sequence[Checkpoint], store: Store) -> None:
    show(_closing_table(report, checkpoints))
    rate = f"{report.tokens / (report.seconds - report.start_seconds):,.0f} tokens/s" if report.tokens else ""
    say(
        f"scored {counted(report.scored, 'checkpoint')} in {report.seconds:.0f} s"
        + (f", {rate} after {report.start_seconds:.0f} s to start workers; " if rate else "; ")
        + f"{report.present} were there, {len(report.failures)} failed; store {store.url}"
        + (f"; {report.taken_over} of these hold the same files as another" if report.taken_over else "")
        + (f"; {report.elsewhere} were committed by other jobs meanwhile" if report.elsewhere else "")
    )
    if report.workers:
        say(report.workers)
    if report.warnings:
        show(table(report.warnings))
    if report.failures:
        rows = [(f"{each.repository}@{each.revision}", each.reason, each.message) for each in report.failures]
        show(text_table(("failed", "reason", "what was found, and what to do"), rows, text_columns=3))


def _closing_table(report: SweepReport, checkpoints: Sequence[Checkpoint]) -> str:
    """Checkpoints by repository; of very many repositories, those where something failed."""
    resolved = Counter(each.repository for each in checkpoints)
    known = {(each.repository, each.revision) for each in checkpoints}
    lost = Counter(each.repository for each in report.failures if (each.repository, each.revision) in known)
    failed = Counter(each.repository for each in report.failures)
    names = sorted(resolved | failed)
    shown = names if len(names) <= REPOSITORIES_SHOWN else sorted(failed)
    counts = [(name, resolved[name], resolved[name] - lost[name], failed[name]) for name in shown]
    counts.append(("all", resolved.total(), resolved.total() - lost.total(), failed.total()))
    rows = [(name, *(f"{count:,}" for count in each)) for name, *each in counts]
    return text_table(("repository", "resolved", "in the store", "failed"), rows, text_columns=1)


main = verb(score, lambda report: report.failures)

if __name__ == "__main__":
    main()
