"""Write the report of an analysis: one HTML file that opens offline, and its figures as PNG."""

from __future__ import annotations

from pathlib import Path

from klray import config as configs
from klray.config import Config
from klray.job import verb
from klray.noise.floor import NoiseFloor
from klray.preprocess import result_name
from klray.report import write_report
from klray.store import Store


def report(config: Config) -> Path:
    """Write the report and say where it is."""
    noise = NoiseFloor.read(Path(config.report.noise).expanduser()) if config.report.noise else None
    store = Store.open(configs.store_url(config.store), configs.storage_options(config.store))
    snapshot = store.manifest(config.analysis.snapshot).id
    result = store.result(snapshot, result_name(config.analysis.name, config.analysis.domain)).load()
    page = write_report(
        result, Path(config.report.dir), title=config.report.title, failures=store.failures(), noise=noise
    )
    print(f"report {page}")
    return page


@verb()
def main(config: Config) -> int:
    """Exit code 0."""
    report(config)
    return 0


if __name__ == "__main__":
    main()
