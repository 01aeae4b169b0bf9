"""Write the report of an analysis: one HTML file that opens offline, and its figures as PNG."""

from pathlib import Path

import xarray as xr

from klray import config as configs
from klray.analysis.continuing import exact_weights
from klray.analysis.exact_kl import check_result
from klray.analysis.noise_floor import NoiseFloor
from klray.analysis.recipe import of_domain, result_name
from klray.config import Config
from klray.config.job import verb
from klray.errors import KlrayError
from klray.report import Study, write_report
from klray.store import Store
from klray.store.datasets import UNREADABLE
from klray.words.outside import printable
from klray.words.tables import say


def report(config: Config) -> Path:
    """Write the report and say where it is."""
    noise = NoiseFloor.read(Path(config.report.noise).expanduser()) if config.report.noise else None
    store = Store.open(configs.store_url(config.store), configs.storage_options(config.store))
    snapshot = store.manifest(config.analysis.snapshot).id
    result = store.result(snapshot, result_name(config.analysis.name, config.analysis.domain)).load()
    if "consecutive_kl" not in result:
        raise KlrayError(
            f"analysis.name={config.analysis.name}: the result of that name of snapshot {snapshot} is none of klray "
            "analyze; name one that is, or run klray analyze"
        )
    study = made(store, snapshot, config)
    try:
        page = write_report(
            result,
            Path(config.report.dir).expanduser(),
            title=config.report.title,
            failures=store.failures(),
            noise=noise,
            study=study,
        )
    except KlrayError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), error.filename or config.report.dir) from error
    except UNREADABLE as error:
        found = printable(f"{type(error).__name__}: {error}")
        raise KlrayError(
            f"analysis.name={config.analysis.name}: the result of snapshot {snapshot} is not what klray analyze "
            f"writes ({found}); run klray analyze with analysis.recipe=fit for another"
        ) from error
    say(f"report {page}")
    if config.report.publish:
        name = result_name("report", config.analysis.domain)
        say(f"published {store.publish_report(snapshot, name, page.read_bytes())}")
    return page


def made(store: Store, snapshot: str, config: Config) -> Study:
    """What else there is of the snapshot: results by their names, of all texts and of each domain."""
    dataset = store.dataset(snapshot)
    labels = sorted({str(domain) for domain in dataset["domain"].values} - {""})
    there = set(store.result_names(snapshot))

    def by_domain(name: str) -> dict[str, xr.Dataset]:
        names = {domain: result_name(name, domain) for domain in ("", *labels)}
        found = {domain: store.result(snapshot, each) for domain, each in names.items() if each in there}
        # a domain's name in a result's may be that of another domain, or of a result that was called so by the user
        return {domain: each for domain, each in found.items() if each.attrs.get("domain", "") == domain}

    scales = {domain: each.load() for domain, each in by_domain(config.scale.name).items()}
    compared = store.result(snapshot, config.compare.name).load() if config.compare.name in there else None
    if compared is not None:
        check_result(compared, config.compare.name)
    return Study(
        snapshot=of_domain(dataset, config.analysis.domain),
        scales=scales,
        trajectories=by_domain(config.analysis.name) if len(scales) > 1 else {},
        weights=exact_weights(store, snapshot, config.analysis.weights),
        compared=compared,
    )


main = verb(report)

if __name__ == "__main__":
    main()
