"""What klray warned of when it scored the models of a result."""

import xarray as xr

from klray.analysis.facts import labels, strings
from klray.report.sections import Section, Table
from klray.words.heard import cells, kinds, parted
from klray.words.numbers import out_of


def warnings_section(result: xr.Dataset) -> Section | None:
    """A row for each kind of warning; None without any. The layers of a model count once."""
    texts = strings(result, "warnings")
    first = {key or at: at for at, key in reversed(list(enumerate(strings(result, "key").tolist())))}
    names = labels(result)
    warned = [(str(names[at]), parted(str(texts[at]))) for at in sorted(first.values()) if texts[at]]
    if not warned:
        return None
    header, rows = cells(kinds(warned))
    return Section(
        "warnings",
        "Warnings",
        paragraphs=(f"{out_of(len(warned), len(first))} models were scored with a warning.",),
        tables=(Table(header, rows, text_columns=3, long=2),),
    )
