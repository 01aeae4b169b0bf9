"""Print what is in a store: jobs at work, columns by family and how far each is, failures, snapshots, leftovers."""

import time
from collections import Counter
from collections.abc import Callable, Sequence

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
        watch(store.heard_jobs, lambda: time.sleep(config.status.every_seconds))
        return
    catalog, failures = store.catalog(), store.failures()
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
    show(_families(catalog, failures, store.wanted_keys()))
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
    say(f"warnings   {len(warned):,}{' columns were scored with a warning' if warned else ''}")
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


def watch(heard: Callable[[], Sequence[Heard]], wait: Callable[[], None]) -> None:
    """Tell of the jobs again and again, until none of them runs; ``wait`` returns when it is time to look again."""
    while True:
        jobs = heard()
        for line in job_lines(jobs):
            say(line)
        if not any(each.alive for each in jobs):
            return
        wait()
        say()


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


def _families(catalog: Catalog, failures: Sequence[Failure], wanted: dict[str, set[str]]) -> str:
    """How far each family is: what was ever asked for, what of that is there, what failed, and when it last grew."""
    first = catalog.first_rows
    keys, families, times = (catalog.rows[name][first] for name in ("key", "family", "committed"))
    present, failed = set(keys.tolist()), {failure.key for failure in failures}
    rows = []
    for family in sorted({*families.tolist(), *wanted}):
        own = families == family
        asked = wanted.get(family, set())
        newest = f"{times[own].max().astype('datetime64[s]')}Z" if own.any() else ""
        share = f"{len(asked & present) / len(asked):.0%}" if asked else ""
        counts = (int(own.sum()), len(asked), len(asked & present), len(asked & failed))
        rows.append((family, *(f"{count:,}" for count in counts), share, newest))
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
