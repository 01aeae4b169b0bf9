"""Print what is in a store: jobs at work, columns by family and how far each is, failures, snapshots, leftovers."""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from klray import config as configs
from klray.analysis.facts import differing
from klray.config import Config
from klray.config.job import verb
from klray.errors import KlrayError
from klray.store import Failure, Store
from klray.store.catalog import Catalog, damage_lines
from klray.store.jobs import RUNNING, Heard
from klray.words.heard import kinds, parted, table
from klray.words.numbers import counted, out_of, rough_duration
from klray.words.outside import fit
from klray.words.tables import say, show, text_table

REPOSITORIES_SHOWN = 30
SNAPSHOTS_SHOWN = 10
JOBS_SECONDS = 86_400.0  # jobs that were silent for longer are not shown


def status(config: Config) -> None:
    """Print it; of what is published no commit is read again."""
    store = Store.open(configs.store_url(config.store), configs.storage_options(config.store))
    if config.status.watch:
        if config.status.every_seconds <= 0:
            raise KlrayError(f"status.every_seconds={config.status.every_seconds:g}: must be above 0")

        def lines(heard: Sequence[Heard]) -> list[str]:
            return [_json(jobs=_jobs(heard))] if config.log.json else [*job_lines(heard), ""]

        watch(store.heard_jobs, lambda: time.sleep(config.status.every_seconds), lines)
        return
    catalog, failures = store.catalog(), store.failures()
    if config.log.json:
        say(_json(**facts(store, catalog, failures)))
        return
    first = catalog.first_rows
    published = catalog.base.n_columns if catalog.base else 0
    say(f"store      {store.url}")
    say(
        f"texts      {store.texts.name}, {counted(len(store.texts.text_bytes), 'text')} "
        f"({store.texts.fingerprint[:12]})"
    )
    say(f"columns    {len(first):,}, of which the latest snapshot has {published:,}")
    for number, line in enumerate(damage_lines(catalog.damaged)):
        say(("  " if number else "damaged    ") + line)
    say()
    for line in job_lines(store.heard_jobs()):
        say(line)
    say()
    show(_families(_family_counts(catalog, failures, store.wanted_keys())))
    say()
    show(_repositories(catalog))
    say()
    for line in _tokenizers(catalog):
        say(line)
    say(f"failures   {len(failures):,}")
    if failures:
        rows = [(f"{each.repository}@{each.revision}", each.reason, each.message) for each in failures]
        show(text_table(("checkpoint", "reason", "what was found, and what to do"), rows, text_columns=3))
        say()
    warned = _warned(catalog)
    say(f"warnings   {counted(len(warned), 'column') + ' scored with a warning' if warned else 0}")
    if warned:
        show(table(kinds(warned)))
        say()
    snapshots = store.snapshot_ids()
    say(f"snapshots  {len(snapshots):,}")
    for manifest in store.manifests(snapshots[-SNAPSHOTS_SHOWN:]):
        results = ", ".join(store.result_names(manifest.id))
        say(f"  {manifest.id}  {counted(manifest.n_models, 'model')}{f'; results: {results}' if results else ''}")
    left = Counter(each.kind for each in store.leftovers(catalog))
    what = ", ".join(counted(count, kind) for kind, count in sorted(left.items()))
    say(f"leftovers  {left.total():,}{f' ({what}); klray verify lists them' if left else ''}")


def watch(
    heard: Callable[[], Sequence[Heard]], wait: Callable[[], None], lines: Callable[[Sequence[Heard]], list[str]]
) -> None:
    """Tell of the jobs again and again, until none of them runs; ``wait`` returns when it is time to look again."""
    while True:
        jobs = heard()
        for line in lines(jobs):
            say(line)
        if not any(each.alive for each in jobs):
            return
        wait()


def facts(store: Store, catalog: Catalog, failures: Sequence[Failure]) -> dict[str, Any]:
    """The same for machines, as JSON has it."""
    names = ("family", "columns", "asked_for", "there", "failed", "last_column")
    ids = store.snapshot_ids()
    return {
        "store": store.url,
        "text_set": store.texts.fingerprint,
        "texts": len(store.texts.text_bytes),
        "columns": len(catalog.first_rows),
        "published_columns": catalog.base.n_columns if catalog.base else 0,
        "damaged": [each.why for each in catalog.damaged],
        "jobs": _jobs(store.heard_jobs()),
        "families": [
            dict(zip(names, each, strict=True)) for each in _family_counts(catalog, failures, store.wanted_keys())
        ],
        "failures": [
            {name: getattr(each, name) for name in ("repository", "revision", "reason", "message", "created")}
            for each in failures
        ],
        "warned_columns": len(_warned(catalog)),
        "snapshots": [
            {"id": each.id, "models": each.n_models, "results": store.result_names(each.id)}
            for each in store.manifests(ids[-SNAPSHOTS_SHOWN:])
        ],
        "leftovers": Counter(each.kind for each in store.leftovers(catalog)),
    }


def _json(**found: Any) -> str:
    """One line with the time, as those of ``log.json=true`` have."""
    return json.dumps(fit({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **found}), ensure_ascii=False)


def _jobs(heard: Sequence[Heard]) -> list[dict[str, Any]]:
    known = [each for each in heard if each.seconds_ago < JOBS_SECONDS]
    return [
        {**dataclasses.asdict(each.job), "seconds_left": each.job.seconds_left, "seconds_ago": each.seconds_ago}
        for each in known
    ]


def job_lines(heard: Sequence[Heard]) -> list[str]:
    """Jobs that were heard of within a day: how far they are, how fast, how long they will take, and who is silent."""
    known = [each for each in heard if each.seconds_ago < JOBS_SECONDS]
    running = sum(each.alive for each in known)
    lines = [f"jobs       {running:,} running"]
    rows = []
    for job, ago in sorted(((each.job, each.seconds_ago) for each in known), key=lambda each: each[0].started):
        silent = job.state == RUNNING and not Heard(job, ago).alive
        left = "" if silent or job.seconds_left is None else f"{rough_duration(job.seconds_left)} left"
        state = f"silent for {rough_duration(ago)}" if silent else job.state
        numbers = (out_of(job.done, job.asked), f"{job.failed:,}", f"{job.workers:,}", f"{job.tokens:,}")
        rate = f"{job.rate:.2f}/s" if job.rate else ""
        words = job.summary or left
        rows.append((job.job[:8], job.host, job.family, state, *numbers, rate, f"{job.waiting:.0%}", words))
    if rows:
        header = ("job", "host", "family", "state", "checkpoints", "failed", "workers", "tokens", "rate", "waiting", "")
        lines += text_table(header, rows, text_columns=4).split("\n")
    return lines


def _warned(catalog: Catalog) -> list[tuple[str, list[str]]]:
    """Columns that were scored with a warning, and which."""
    first = catalog.first_rows
    facts = zip(*(catalog.rows[name][first].tolist() for name in ("repository", "revision", "warnings")), strict=True)
    return [(f"{repository}@{revision}", parted(texts)) for repository, revision, texts in facts if texts]


def _family_counts(
    catalog: Catalog, failures: Sequence[Failure], wanted: dict[str, set[str]]
) -> list[tuple[str, int, int, int, int, str]]:
    """How far each family is: columns, what was ever asked for, what of that is there or failed, when it last grew."""
    first = catalog.first_rows
    keys, families, times = (catalog.rows[name][first] for name in ("key", "family", "committed"))
    present, failed = set(keys.tolist()), {failure.key for failure in failures}
    rows = []
    for family in sorted({*families.tolist(), *wanted}):
        own = families == family
        asked = wanted.get(family, set())
        newest = f"{times[own].max().astype('datetime64[s]')}Z" if own.any() else ""
        rows.append((family, int(own.sum()), len(asked), len(asked & present), len(asked & failed), newest))
    return rows


def _families(counts: Sequence[tuple[str, int, int, int, int, str]]) -> str:
    rows = [
        (family, *(f"{each:,}" for each in numbers), f"{numbers[2] / numbers[1]:.0%}" if numbers[1] else "", newest)
        for family, *numbers, newest in counts
    ]
    return text_table(
        ("family", "columns", "asked for", "there", "failed", "done", "last column"), rows, text_columns=1
    )


def _tokenizers(catalog: Catalog) -> list[str]:
    """Runs, and families of runs, whose checkpoints do not treat the texts alike."""
    first = catalog.first_rows
    runs, families, labels = (catalog.rows[name][first].tolist() for name in ("run", "family", "tokenizer"))
    of_runs = [family if run else "" for run, family in zip(runs, families, strict=True)]
    lines = [
        f"tokenizer  {what} {name} has {len(kinds)}: "
        + "; ".join(f"{label} ({counted(count, 'checkpoint')})" for label, count in kinds.items())
        for what, groups in (("run", runs), ("family", of_runs))
        for name, kinds in differing(groups, labels).items()
    ]
    return [*lines, ""] if lines else []


def _repositories(catalog: Catalog) -> str:
    first = catalog.first_rows
    counts = Counter(zip(*(catalog.rows[name][first].tolist() for name in ("repository", "variant")), strict=True))
    rows = [(repository, variant, f"{count:,}") for (repository, variant), count in sorted(counts.items())]
    table = text_table(("repository", "variant", "columns"), rows[:REPOSITORIES_SHOWN], text_columns=2)
    more = len(rows) - REPOSITORIES_SHOWN
    return table + (f"\n... and {more:,} more" if more > 0 else "")


main = verb(status)  # failures in the store are what was asked for

if __name__ == "__main__":
    main()
