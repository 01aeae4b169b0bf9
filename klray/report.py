"""One HTML file that shows a "trajectory" result to somebody who has nothing else."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.resources
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import jinja2
import numpy as np
import xarray as xr
from markupsafe import Markup, escape

from klray.errors import KlrayError
from klray.figures import PLATES, Plate, noise_floor, save
from klray.noise.floor import COLUMNS, ROWS_MEAN, NoiseFloor, cells
from klray.preprocess import Anomaly, Exclusion, names_of
from klray.summary import (
    RunRow,
    in_memory,
    printable,
    run_table,
    significant,
    single_models,
    strings,
    trajectories,
    with_error,
)

MAX_MODEL_ROWS = 2000
_LONGEST_LIST = 3  # longer lists of numbers in a recipe are abridged: the whole recipe stays with the result

# What a message of a download or of a local folder may carry and a published report may not.
_SECRETS = (
    (re.compile(r"(https?://)[^\s/@]*@"), r"\1"),
    (re.compile(r"(https?://[^\s?#]+)\?\S+"), r"\1?…"),
    (re.compile(r"\bhf_\w{8,}"), "hf_…"),
    (re.compile(r"(?i)\b(bearer\s+|(?:token|secret|password|signature)\s*[=:]\s*)\S+"), r"\1…"),
    (re.compile(r"(?<![\w:/.])(?:file://)?~?/(?:[^\s/'\",;()<>]+/)+([^\s/'\",;()<>]*)"), r"…/\1"),
)


class Failure(Protocol):
    """A checkpoint without a column, and why."""

    @property
    def repository(self) -> str:
        """Repository that was asked for."""

    @property
    def revision(self) -> str:
        """Revision that was asked for."""

    @property
    def reason(self) -> str:
        """One of `klray.errors.Reason`."""

    @property
    def message(self) -> str:
        """What happened, for a reader."""


@dataclass(frozen=True)
class _Picture:
    plate: Plate
    caption: str
    png_base64: str  # empty when there is nothing to draw: ``caption`` then says why


def write_report(
    result: xr.Dataset,
    directory: Path,
    *,
    title: str,
    failures: Iterable[Failure] = (),
    noise: NoiseFloor | None = None,
) -> Path:
    """Write ``report.html`` and, in ``figures/``, every figure as PNG and PDF; return the path of the HTML file.

    The page needs no other file and no network: pictures are embedded, and its content security policy forbids any
    request and any script but its own. Names and messages are shown as text whatever they contain; tokens, query
    strings of addresses and absolute paths in them are cut. A figure that has nothing to show is replaced by the
    reason. Of more than `MAX_MODEL_ROWS` models the table lists the first ones and says so. With ``noise`` the page
    says how far numerical noise is below the smallest KL of interest; without, that it was not measured.
    """
    directory.mkdir(parents=True, exist_ok=True)
    result = in_memory(result)
    rows = run_table(result)
    page = _template().render(
        title=public(title),
        written=datetime.now(UTC).strftime("%d %B %Y"),
        version=importlib.metadata.version("klray"),
        rows=rows,
        with_weights=any(math.isfinite(row.weight_exponent) for row in rows),
        findings=_findings(result, rows),
        pictures=[_picture(result, plate, directory / "figures") for plate in PLATES if plate.applies(result)],
        models=_model_rows(result),
        models_total=result.sizes["model"],
        failures=[
            [public(text) for text in (failure.repository, failure.revision, failure.reason, failure.message)]
            for failure in failures
        ],
        noise=None if noise is None else _noise(result, noise, directory / "figures"),
        set_apart=_set_apart(result),
        provenance=_provenance(result, noise is not None),
        snapshot=public(str(result.attrs.get("snapshot", ""))),
        recipe=_recipe(result),
    )
    path = directory / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def public(text: str) -> str:
    """``text`` as a report may show it: one line, without tokens, query strings and the folders of absolute paths.

    >>> public("no space left in /home/ann/cache/model.bin for https://hub/x?X-Signature=1")
    'no space left in …/model.bin for https://hub/x?…'
    """
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return printable(text, 1000)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {
        "integer": lambda value: "–" if value is None else f"{value:,}",
        "significant": significant,
        "sort_key": lambda value: "" if value is None or not math.isfinite(value) else repr(float(value)),
        "public": public,
        "symbols": _symbols,
        "sha256": lambda text: base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode(),
    }
    environment.globals |= {"with_error": with_error}
    source = importlib.resources.files("klray").joinpath("report_template.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)


def _symbols(text: str) -> Markup:
    return escape(text).replace("c_q", Markup("<i>c<sub>q</sub></i>")).replace("c_w", Markup("<i>c<sub>w</sub></i>"))


def _picture(result: xr.Dataset, plate: Plate, directory: Path) -> _Picture:
    try:
        png = save(plate.draw(result), directory, plate.name)
    except KlrayError as nothing_to_draw:
        return _Picture(plate, str(nothing_to_draw), "")
    return _Picture(plate, plate.caption(result), base64.b64encode(png).decode())


def _findings(result: xr.Dataset, rows: list[RunRow]) -> list[tuple[str, str]]:
    """Headline numbers as (value, what it is)."""
    singles = single_models(result, trajectories(result)).size
    found = [(f"{result.sizes['model']:,}", f"models: {len(rows):,} training runs and {singles:,} single models")]
    late = [row.late_kl for row in rows if math.isfinite(row.late_kl)]
    exponents = [row.exponent for row in rows if math.isfinite(row.exponent)]
    dimensions = [row.fractal_dimension for row in rows if math.isfinite(row.fractal_dimension)]
    if late:
        found.append((_range(late), "bits/byte between consecutive checkpoints late in training, by run"))
    if exponents:
        below = sum(value < 1 for value in exponents)
        found.append(
            (
                _range(exponents),
                f"mean diffusion exponent c_q of the late windows, by run; below 1 in {below} of {len(exponents)} "
                "runs. The windows of a run overlap, and a learning rate that falls during the run lowers both late "
                "KL and c_q",
            )
        )
    if dimensions:
        found.append((_range(dimensions), "fractal dimension 2/c_q of the path"))
    if of_weights := [row.weight_exponent for row in rows if math.isfinite(row.weight_exponent)]:
        found.append((_range(of_weights), "diffusion exponent c_w of the weights in the same windows, by run"))
    return found


def _range(values: list[float]) -> str:
    low, high = significant(min(values)), significant(max(values))
    return low if low == high else f"{low}–{high}"


def _model_rows(result: xr.Dataset) -> list[dict[str, Any]]:
    first = result.isel(model=slice(MAX_MODEL_ROWS))
    columns = {
        name: first[name].values
        for name in (
            "repository",
            "revision",
            "family",
            "size",
            "seed",
            "step",
            "parameters",
            "consecutive_kl",
            "consecutive_kl_standard_error",
            "excluded",
        )
    }
    nothing = np.full(first.sizes["model"], np.nan)
    columns["exponent"] = first["exponent_kl"].values if "exponent_kl" in first else nothing
    columns["variant"] = _variants(first)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for row in rows:
        for name in ("repository", "revision", "family", "size", "variant"):
            row[name] = public(str(row[name]))
        for name in ("step", "seed"):
            row[name] = int(row[name]) if row[name] >= 0 else None
    return rows


def _variants(result: xr.Dataset) -> np.ndarray:
    """Dtype, quantization, lens and layer of each model, (K,) strings; layer -1 is the model's own output."""
    layers = np.array([f"layer {layer}" if layer >= 0 else "" for layer in result["layer"].values])
    parts = [*(strings(result, name) for name in ("dtype", "quantization", "lens")), layers]
    return np.array([" ".join(p for p in row if p and p != "none") for row in zip(*parts, strict=True)])


def _noise(result: xr.Dataset, noise: NoiseFloor, directory: Path) -> dict[str, Any]:
    """Verdicts, what they are about, the table (the largest KL of each kind by precision), and the picture."""
    used = sorted(set(strings(result, "dtype")))
    measured = ", ".join(noise.dtypes)
    about = [f"The models of this report were scored in {', '.join(used)}."]
    if unknown := [dtype for dtype in used if dtype not in noise.dtypes]:
        about.append(f"The noise of {', '.join(unknown)} was not measured, only that of {measured}.")
    if noise.text_set != result.attrs.get("text_set"):
        about.append(f"The noise was measured on other texts than theirs: {noise.text_set_name}.")
    checkpoints = [each.model for each in noise.models]
    try:
        png = base64.b64encode(save(noise_floor(noise), directory, "noise_floor")).decode()
    except KlrayError:  # nothing was measured, as the verdicts say
        png = ""
    return {
        "png_base64": png,
        "verdicts": [public(sentence) for sentence in noise.verdicts()],
        "about": public(" ".join(about)),
        "checkpoints": public(f"{', '.join(checkpoints[:8])}{', …' if len(checkpoints) > 8 else ''}"),
        "count": len(checkpoints),
        "texts": noise.n_texts,
        "columns": COLUMNS,
        "rows": [(public(row.dtype), cells(row), row.verdict) for row in noise.worst()],
        "meaning": ROWS_MEAN.replace("Each row is one checkpoint in one precision.", "Each row is one precision."),
    }


def _set_apart(result: xr.Dataset) -> list[tuple[str, str, str]]:
    """Checkpoints that are excluded or look anomalous as (which, why, what was done); one row for a reason."""
    by_reason: dict[str, list[str]] = {}
    excluded = json.loads(result.attrs.get("excluded_reasons", "{}"))
    for model, reason in excluded.items():
        by_reason.setdefault(reason, []).append(model)
    rows = [(_first(models), reason, "excluded") for reason, models in by_reason.items()]
    unknown = {"ratio": math.nan, "typical_ratio": math.nan}  # to results of klray 0.1
    for each in json.loads(result.attrs.get("anomalies", "[]")):
        anomaly = Anomaly(**unknown | each)
        if anomaly.model not in excluded:
            rows.append((anomaly.model, f"off its run's path: {anomaly.evidence}", "kept"))
    return [(public(which), public(why), done) for which, why, done in rows]


def _first(names: list[str]) -> str:
    rest = len(names) - _LONGEST_LIST
    return ", ".join(names[:_LONGEST_LIST]) + (f" and {rest:,} more" if rest > 0 else "")


def _provenance(result: xr.Dataset, with_noise: bool) -> list[tuple[str, str]]:
    attrs = result.attrs
    kept = result["text_kept"].values.astype(bool)
    domains = strings(result, "domain")
    facts = [
        ("Snapshot", attrs.get("snapshot")),
        ("Text set", attrs.get("text_set_name")),
        ("Text set fingerprint", attrs.get("text_set")),
        ("Texts kept", f"{kept.sum():,} of {kept.size:,}"),
        ("Kept texts by domain", _by_domain(domains, kept)),
        ("Texts removed", f"{(~kept).sum():,} of {kept.size:,}: {_by_domain(domains, ~kept)}"),
        ("Mean bytes of a kept text", significant(float(attrs["mean_bytes"]), 5) if "mean_bytes" in attrs else None),
        ("Models excluded", f"{int(result['excluded'].values.astype(bool).sum()):,} of {result.sizes['model']:,}"),
        ("Checkpoints in a diffusion window", attrs.get("window")),
        ("Smallest step that starts a window", attrs.get("min_step")),
        ("Unit of KL", "bits/byte"),
        ("Noise floor", None if with_noise else "not measured: klray noise does"),
        ("klray", importlib.metadata.version("klray")),
    ]
    return [(name, public(str(value))) for name, value in facts if value is not None]


def _by_domain(domains: np.ndarray, chosen: np.ndarray) -> str:
    """How many of the ``chosen`` texts each domain of the text set has, zeros among them."""
    return ", ".join(
        f"{public(name) or 'none'} {int((chosen & (domains == name)).sum()):,}" for name in np.unique(domains)
    )


def _recipe(result: xr.Dataset) -> str:
    """The preprocessing recipe as indented JSON; empty when the result has none.

    Long lists of numbers are abridged, and exclusions that match no model of the result are left out.
    """
    if "recipe" not in result.attrs:
        return ""
    recipe = json.loads(result.attrs["recipe"])
    if "excluded" in recipe:
        models = names_of(result)
        recipe["excluded"] = [
            each for each in recipe["excluded"] if any(Exclusion(**each).matches(*model) for model in models)
        ]
    lines = json.dumps(_abridged(recipe), indent=2, ensure_ascii=False).splitlines()
    return "\n".join(public(line) for line in lines)


def _abridged(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _abridged(item) for key, item in value.items()}
    if isinstance(value, list) and len(value) > _LONGEST_LIST and all(isinstance(item, int | float) for item in value):
        return f"{', '.join(map(str, value[:_LONGEST_LIST]))}, … {len(value):,} values in all"
    if isinstance(value, list):
        return [_abridged(item) for item in value]
    return value
