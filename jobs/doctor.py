"""Check everything that the other verbs need, from the store's server to the disk, and say what to do."""

import functools
import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from klray import config as configs
from klray.config import Config
from klray.config.job import verb
from klray.doctor import examine
from klray.errors import lacks
from klray.store.objects.probe import Finding
from klray.words.tables import show, text_table

FOUND_WIDTH, CURE_WIDTH = 64, 44  # columns of a terminal


def _table(findings: Sequence[Finding]) -> str:
    """Long sentences go on in lines below."""
    rows = []
    for each in findings:
        found, cure = (
            textwrap.wrap(words, width, break_long_words=False, break_on_hyphens=False)
            for words, width in ((each.found, FOUND_WIDTH), (each.cure, CURE_WIDTH))
        )
        rows += list(zip_longest([each.check], [each.verdict], found, cure, fillvalue=""))
    return text_table(("check", "verdict", "what was found", "what to do"), rows, text_columns=4)


def _scoring(config: Config) -> Iterator[Finding]:
    """What scoring needs; of an installation that reads and analyses, how to install that."""
    try:
        from klray.config import sweep  # noqa: PLC0415 - an extra
        from klray.doctor.scoring import examine_scoring  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        return iter([Finding("scoring", "skipped", "this installation reads and analyses", lacks(error))])
    settings, lacking = sweep.scoring_settings(config.scoring), sweep.lacks_libraries(config.ray, config.scoring)
    store = (config.store.url, configs.storage_options(config.store)) if config.store.url else None
    hub = functools.partial(sweep.hub, config.models)
    selected = lambda opened: sweep.resolved(opened, sweep.selection(config.models))[0]  # noqa: E731 - typed there
    return examine_scoring(hub, settings, config.ray, lacking, store, selected)


@verb
def main(config: Config) -> int:
    """Exit code 1 if something is refused; what is only a warning does not count."""
    findings = list(
        examine(
            configs.store_url(config.store) if config.store.url else None,
            configs.storage_options(config.store),
            _scoring(config),
            config.dask.scheduler,
            config.dask.address,
            config.store.single_writer,
        )
    )
    show(_table(findings))
    return 1 if any(each.verdict == "refused" for each in findings) else 0


if __name__ == "__main__":
    main()
