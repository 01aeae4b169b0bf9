"""Write a snapshot and a result as tables that other programs read: Parquet or CSV."""

from pathlib import Path

from klray import config as configs
from klray.analysis.recipe import of_domain, result_name
from klray.config import Config
from klray.config.job import verb
from klray.report.export import export
from klray.store import Store
from klray.words.tables import say


def tables(config: Config) -> list[Path]:
    """Export the snapshot that is asked for, with its result if it has one, and say which tables there are."""
    store = Store.open(configs.store_url(config.store), configs.storage_options(config.store))
    snapshot = store.manifest(config.analysis.snapshot).id
    name = result_name(config.analysis.name, config.analysis.domain)
    result = store.result(snapshot, name) if name in store.result_names(snapshot) else None
    dataset = of_domain(store.dataset(snapshot), config.analysis.domain)
    folder = Path(config.export.dir).expanduser()
    paths = export(dataset, result, folder, config.export.format.value)
    made = f"result {name}" if result is not None else f"no result {name} there: klray analyze makes one"
    say(f"snapshot {snapshot}, {made}")
    for path in paths:
        say(f"  {path}")
    return paths


main = verb(tables, lambda _: False)

if __name__ == "__main__":
    main()
