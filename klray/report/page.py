"""The page: every section of a report in one HTML file."""

import base64
import hashlib
import importlib.metadata
import importlib.resources
import itertools
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import xarray as xr
from markupsafe import Markup, escape

from klray.analysis.noise_floor import NoiseFloor
from klray.analysis.runs_table import in_memory, run_table
from klray.report.carried.page_data import page_data
from klray.report.figures import PLATES
from klray.report.inlined import script, style
from klray.report.sampled import with_matrix
from klray.report.sections import Section, Table, picture
from klray.report.sections.headline import findings
from klray.report.sections.section_models import model_rows
from klray.report.sections.section_noise import noise_section
from klray.report.sections.section_provenance import provenance, recipe_text
from klray.report.sections.section_runs import runs_section, set_apart_section
from klray.report.sections.section_warnings import warnings_section
from klray.report.sections.study_parts import NOTHING, Study, study_sections
from klray.report.sections.twins import TWINS
from klray.store import Failure
from klray.words.numbers import counted, significant, with_error
from klray.words.secrets import public
from klray.words.whole import write_whole


def write_report(
    result: xr.Dataset,
    directory: Path,
    *,
    title: str,
    failures: Iterable[Failure] = (),
    noise: NoiseFloor | None = None,
    study: Study = NOTHING,
) -> Path:
    """Write ``report.html`` and, in ``figures/``, every figure as PNG and PDF; return the path of the HTML file.

    The page needs no other file and no network: pictures are embedded, and its content security policy forbids any
    request and any script but its own. Names and messages are shown as text whatever they contain; tokens, query
    strings of addresses and absolute paths in them are cut. A figure that has nothing to show is replaced by the
    reason. Of more than `MAX_MODEL_ROWS` models the table lists the first ones and says so. With
    ``noise`` the page says how far numerical noise is below the smallest KL of interest; without, that it was not
    measured. What ``study`` has gets sections of its own, in front of the figures of the result.
    """
    directory.mkdir(parents=True, exist_ok=True)
    figures = directory / "figures"
    result = in_memory(result)
    rows = run_table(result)
    scale = study.scales.get(str(result.attrs.get("domain", "")))
    matrix = with_matrix(result, study.snapshot)
    plates = _plates(result, matrix, figures)
    found = [
        *plates[:1],  # the map
        runs_section(rows),
        set_apart_section(result),
        *study_sections(result, study, noise, figures),
        *plates[1:],
        warnings_section(result),
        _failures(failures),
        None if noise is None else noise_section(result, noise, figures),
    ]
    numbers = itertools.count(1)
    page = _template().render(
        title=public(title),
        written=datetime.now(UTC).strftime("%d %B %Y"),
        version=importlib.metadata.version("klray"),
        findings=findings(result, rows),
        sections=[
            (section, next(numbers) if section.picture and section.picture.png_base64 else 0)
            for section in found
            if section is not None
        ],
        models=model_rows(result),
        twins=TWINS,
        data=Markup(page_data(result, study.snapshot, scale, matrix)),  # noqa: S704 - JSON without <, > and &
        script=Markup(script()),  # noqa: S704 - klray's own
        style=Markup(style()),  # noqa: S704
        models_total=result.sizes["model"],
        provenance=provenance(result, noise is not None),
        snapshot=public(str(result.attrs.get("snapshot", ""))),
        recipe=recipe_text(result),
    )
    path = directory / "report.html"
    write_whole(path, page)
    return path


def symbols(text: str) -> Markup:
    """``text`` escaped, with c_q, c_w and R^2 as they are printed."""
    found = escape(text)
    for letter in "qw":
        found = found.replace(f"c_{letter}", Markup(f"<i>c<sub>{letter}</sub></i>"))  # noqa: S704 - one of two letters
    return found.replace("R^2", Markup("<i>R</i>²"))


def _plates(result: xr.Dataset, matrix: xr.Dataset | None, directory: Path) -> list[Section]:
    found = []
    for plate in PLATES:
        shown = matrix if plate.of_matrix else result
        if shown is not None and plate.applies(shown):
            found.append(Section(plate.name, plate.heading, picture=picture(plate, shown, directory)))
    return found


def _failures(failures: Iterable[Failure]) -> Section | None:
    rows = [(each.repository, each.revision, each.reason, each.message) for each in failures]
    if not rows:
        return None
    return Section(
        "failures",
        "Failures",
        paragraphs=(f"{counted(len(rows), 'checkpoint')} were asked for and are not part of this result.",),
        tables=(Table(("Repository", "Revision", "Reason", "Message"), rows, text_columns=4, long=3),),
    )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "integer": lambda value: "–" if value is None else f"{value:,}",
        "significant": significant,
        "sort_key": lambda value: "" if value is None or not math.isfinite(value) else repr(float(value)),
        "public": public,
        "symbols": symbols,
        "sha256": lambda text: base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode(),
    }
    environment.globals |= {"with_error": with_error}
    source = importlib.resources.files("klray.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)
