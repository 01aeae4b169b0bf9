"""Print what is in a store: columns by family, failures with reasons, snapshots, results."""

from __future__ import annotations

from collections import Counter

from klray import config as configs
from klray.config import Config
from klray.job import verb
from klray.store import Store


@verb()
def main(config: Config) -> int:
    """Exit code 0, also when there are failures: they are what was asked for."""
    store = Store.open(configs.store_url(config.store), config.store.storage_options)
    commits = store.commits()
    print(f"store      {store.url}")
    print(f"texts      {store.texts.name}, {len(store.texts.text_bytes):,} texts ({store.texts.fingerprint[:12]})")
    print(f"columns    {len(commits):,}")
    families = Counter(
        (str(commit.facts.get("family", "")), commit.identity.repository, commit.identity.dtype) for commit in commits
    )
    for (family, repository, dtype), count in sorted(families.items()):
        print(f"  {count:6,}  {family:<16} {repository}  {dtype}")
    failures = store.failures()
    print(f"failures   {len(failures):,}")
    for failure in failures:
        print(f"  {failure.repository}@{failure.revision}  {failure.reason}: {failure.message}")
    snapshots = store.snapshot_ids()
    print(f"snapshots  {len(snapshots):,}")
    for snapshot in snapshots:
        results = ", ".join(store.result_names(snapshot))
        print(f"  {snapshot}  {store.manifest(snapshot).n_models:,} models{f'; results: {results}' if results else ''}")
    return 0


if __name__ == "__main__":
    main()
