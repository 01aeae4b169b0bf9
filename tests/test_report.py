"""The report: complete in one file, true to the result, and safe whatever the names and messages contain."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from klray.analysis.analyze import analyze
from klray.analysis.noise_floor import ModelNoise, NoiseFloor, Variant
from klray.analysis.runs_table import run_table
from klray.report import Study, public, write_report
from klray.report import page as page_of_report
from klray.report.carried import limits
from klray.report.sampled import with_matrix
from klray.report.sections import section_models as models
from klray.store import Failure
from klray.words.numbers import with_error
from tests.html_page import Page
from tests.scale_data import scale_snapshot
from tests.synthetic import trajectory_result

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=alert(1)></td><script>alert(2)</script>"


def failed(repository: str, revision: str, reason: Any, message: str) -> Failure:
    return Failure("a key", repository, revision, reason, message, "an attempt", "2026-01-02T03:04:05+00:00")


def _small(**changes: object) -> xr.Dataset:
    arguments: dict[str, object] = {"sizes": ("1m",), "seeds": (0,), "steps": (0, 20, 40), "n_texts": 30}
    return trajectory_result(**(arguments | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def result() -> xr.Dataset:
    return trajectory_result()


@pytest.fixture(scope="module")
def page(result: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Page:
    failures = [
        failed("org/a", "step5", "download_failed", "the connection broke 5 times; run again"),
        failed("org/b", "main", "gated", "accept its terms on the hub, then run again"),
    ]
    return Page(write_report(result, tmp_path_factory.mktemp("out") / "new", title="Four runs", failures=failures))


def test_page_needs_nothing_else(page: Page) -> None:
    for tag, attrs in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "video", "audio", "source", "form")
        assert "srcset" not in attrs
        assert not any(name.startswith("on") for name in attrs)
        if "src" in attrs:
            assert str(attrs["src"]).startswith("data:image/png;base64,")
    links = [str(attrs["href"]) for attrs in page.all("a")]
    outside = [link for link in links if not link.startswith("#")]
    assert outside == ["https://arxiv.org/abs/2505.15353", "https://arxiv.org/abs/2502.16173"]
    assert "url(" not in page.source and "@import" not in page.source
    assert str(page.path.parent) not in page.source


def test_links_inside_the_page_arrive(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    inside = {str(attrs["href"])[1:] for attrs in page.all("a") if str(attrs["href"]).startswith("#")}
    assert inside == set(ids)
    assert {str(attrs["aria-labelledby"]) for attrs in page.all("section")} == set(ids)


def test_policy_forbids_requests_and_every_script_but_the_one_inside(page: Page) -> None:
    (policy,) = [str(m["content"]) for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "img-src data:" in policy
    data, script = page.scripts
    assert [attrs["type"] for attrs in page.all("script")] == ["application/json", "module"]
    assert "<" not in data
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_pictures_are_the_files_beside_the_page_and_have_text_alternatives(page: Page) -> None:
    images = page.all("img")
    names = ["model_map", "training_paths", "consecutive_kl", "diffusion_exponents", "kl_and_weight_exponents"]
    names += ["kl_heatmap"]
    assert len(images) == len(names)
    for attrs, name in zip(images, names, strict=True):
        data = base64.b64decode(str(attrs["src"]).split(",", 1)[1], validate=True)
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "PNG"
            assert image.width >= 1400
            assert len(image.convert("L").getcolors(1 << 16)) > 10  # not an empty canvas
        assert data == (page.path.parent / "figures" / f"{name}.png").read_bytes()
        assert (page.path.parent / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert len(str(attrs["alt"])) > 40


def test_run_table_shows_the_summary(page: Page, result: xr.Dataset) -> None:
    header, *body = page.tables[0]
    assert header[:3] == ["run", "size", "seed"]
    assert header[6:9] == ["early KL (± SE)", "late KL (± SE)", "cq (± sd over windows)"]
    rows = run_table(result)
    assert [cells[0] for cells in body] == [row.run for row in rows]
    for cells, row in zip(body, rows, strict=True):
        assert cells[5:7] == ["20", with_error(row.early_kl, row.early_kl_standard_error)]
        assert cells[7] == with_error(row.late_kl, row.late_kl_standard_error)
        assert cells[8] == with_error(row.exponent, row.exponent_spread)
        assert cells[10] == f"{2 / row.exponent:.2f}"
    assert body[3][3] == "35 (+1 excluded)"


def test_provenance_lets_a_reader_find_the_data(page: Page, result: xr.Dataset) -> None:
    for fact in (
        result.attrs["snapshot"],
        result.attrs["text_set"],
        "python_stdlib",
        "291 of 300",
        f"{result.attrs['mean_bytes']:.2f}",
        "2 of 147",
        "bits/byte",
        "klray 0.",
        "clip_quantile",
        "arXiv 2505.15353",
        "arXiv 2502.16173",
    ):
        assert fact in page.text
    kept = result.text_kept.values
    prose = int((result.domain.values[kept] == "prose").sum())
    assert f"code {kept.sum() - prose}, prose {prose}" in page.text
    prose_removed = int((result.domain.values[~kept] == "prose").sum())
    assert f"9 of 300: code {9 - prose_removed}, prose {prose_removed}" in page.text
    assert "3, 14, 15, … 4 values in all" in page.text


def _noise(result: xr.Dataset, dtypes: tuple[str, ...], floor: float) -> NoiseFloor:
    """One checkpoint, whose float32 is 1e-9 bits/byte from float64 and whose other precision is ``floor``."""
    ways = (Variant("float64", "cpu", 1), *(Variant(dtype, "cpu", 1) for dtype in dtypes))
    places = dict(zip([way.dtype for way in ways], (0, 1e-9, floor), strict=False))
    kl = tuple(tuple(abs(places[one.dtype] - places[two.dtype]) for two in ways) for one in ways)
    each = ModelNoise("org/<b>a</b>@step5", "c", variants=ways, kl=kl)
    return NoiseFloor(dtypes, "float32", result.attrs["text_set"], "some texts", 300, 700.0, (each,), {})


def test_the_noise_floor_is_told_with_its_verdicts(tmp_path: Path, no_figures: None) -> None:
    result = _small()
    noise = _noise(result, ("float32", "bfloat16"), 2e-4)
    page = Page(write_report(result, tmp_path, title="Noise", noise=noise))
    assert "The models of this report were scored in float32." in page.text
    assert "How far a checkpoint is from itself when it is scored in different ways, on" in page.text
    for sentence in noise.verdicts():
        assert sentence in page.text
    assert "bfloat16: too noisy: its noise floor of 2.0e-04 bits/byte is 50 times below 0.01" in page.text
    (table,) = [table for table in page.tables if table[0][0] == "precision"]
    assert [(row[0], row[5], row[7]) for row in table[1:]] == [
        ("float32", "1.0e-09", "fine"),
        ("bfloat16", "2.0e-04", "too noisy"),
    ]
    assert "largest of 1 checkpoint: org/<b>a</b>@step5." in page.text
    assert "not measured" not in page.text
    (image,) = page.all("img")
    png = base64.b64decode(str(image["src"]).split(",", 1)[1], validate=True)
    assert png == (page.path.parent / "figures" / "noise_floor.png").read_bytes()
    test_links_inside_the_page_arrive(page)


def test_noise_of_another_precision_or_of_other_texts_says_so(tmp_path: Path, no_figures: None) -> None:
    result = _small()
    noise = _noise(result.assign_attrs(text_set="other"), ("bfloat16",), 1e-9)
    page = Page(write_report(result, tmp_path, title="Noise", noise=noise))
    assert "float32 was not measured, only that of bfloat16" in page.text
    assert "other texts than theirs: some texts." in page.text


def test_a_report_without_noise_floor_says_that_it_was_not_measured(page: Page) -> None:
    assert "Noise floornot measured: klray noise does" in page.text.replace("\n", "")


def test_a_domain_that_lost_no_text_is_named_too(tmp_path: Path, no_figures: None) -> None:
    result = _small()
    kept = np.array([domain == "prose" or index > 5 for index, domain in enumerate(result.domain.values)])
    page = Page(write_report(result.assign(text_kept=("text", kept)), tmp_path, title="Removed"))
    assert "4 of 30: code 4, prose 0" in page.text


def test_recipe_shows_only_exclusions_that_match_a_model(tmp_path: Path, no_figures: None) -> None:
    result = _small()
    patterns = ["pythia-410m-seed3@*", "tiny-1m-seed0@step20", "*model-2@main", str(result.key.values[2])]
    excluded = [{"pattern": pattern, "reason": "by hand"} for pattern in patterns]
    result.attrs["recipe"] = json.dumps({"excluded": excluded})
    page = Page(write_report(result, tmp_path, title="Excluded"))
    assert [pattern in page.text for pattern in patterns] == [False, True, True, True]
    assert "pythia" not in page.text


def test_exponent_finding_says_what_limits_it(page: Page) -> None:
    finding = page.text.split("mean diffusion exponent ")[1].split("fractal dimension")[0]
    assert "below 1 in 4 of 4 runs." in finding
    assert "a learning rate that falls" in finding


def test_model_table_lists_all_models_with_keys_that_sort(page: Page, result: xr.Dataset) -> None:
    header, *body = page.tables[-1]
    assert len(body) == 147
    assert [cells[0] for cells in body] == result.repository.values.tolist()
    excluded = [cells[header.index("Excluded")] == "yes" for cells in body]
    assert excluded == result.excluded.values.tolist()
    keys = [attrs["data-key"] for attrs in page.all("td") if "data-key" in attrs]
    by_column = {name: keys[i::5] for i, name in enumerate(("step", "seed", "parameters", "kl", "exponent"))}
    steps = [float(key) if key else -1.0 for key in by_column["step"]]
    assert steps == result.step.values.tolist()
    kl = [float(key) if key else math.nan for key in by_column["kl"]]
    np.testing.assert_array_equal(kl, result.consecutive_kl.values)
    assert len([button for button in page.all("button") if button.get("type") == "button"]) == len(header)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_of_report, "PLATES", ())  # a second each, for tests that read tables only


def test_failures_have_their_own_table(page: Page, tmp_path: Path, no_figures: None) -> None:
    table = page.tables[1]
    assert table[0] == ["Repository", "Revision", "Reason", "Message"]
    assert table[1] == ["org/a", "step5", "download_failed", "the connection broke 5 times; run again"]
    assert "2 checkpoints were asked for" in page.text
    without = Page(write_report(_small(), tmp_path, title="No failures"))
    assert "Failures" not in without.text
    assert len(without.tables) == 2


def test_hostile_names_and_messages_are_text(tmp_path: Path) -> None:
    result = _small()
    names = [f"{HOSTILE}{index}" for index in range(result.sizes["model"])]
    hostile = result.assign_coords(
        {name: ("model", names) for name in ("repository", "revision")}
        | {name: ("model", np.repeat(HOSTILE, len(names))) for name in ("family", "size", "dtype", "quantization")}
        | {"run": ("model", [HOSTILE if run else "" for run in result.run.values])}
        | {"domain": ("text", np.repeat(HOSTILE, 30))}
    )
    hostile.attrs |= {
        "snapshot": HOSTILE,
        "text_set_name": HOSTILE,
        "recipe": json.dumps({HOSTILE: "</pre>" + HOSTILE}),
    }
    failure = failed(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    page = Page(write_report(hostile, tmp_path, title=HOSTILE, failures=[failure]))
    assert len(page.all("script")) == 2
    assert all(str(attrs["src"]).startswith("data:") for attrs in page.all("img"))
    assert page.tables[1][1] == [HOSTILE] * 4
    assert page.tables[0][1][0] == HOSTILE
    assert [cells[0] for cells in page.tables[-1][1:]] == names


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see https://arxiv.org/abs/2505.15353 and org/model", "see https://arxiv.org/abs/2505.15353 and org/model"),
        ("no space in /home/ann/.cache/klray/x.bin", "no space in …/x.bin"),
        ("'/mnt/a b/c' and file:///srv/models/m", "'…/a b/c' and …/m"),
        ("~/models/mine", "…/mine"),
        ("GET https://h/x?X-Amz-Signature=abc&y=1 gave 403", "GET https://h/x gave 403"),
        ("https://user:secret@h/x", "https://h/x"),
        ("hf_abcdefghijklmnop was refused", "hf_... was refused"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ..."),
        ("token=abc, password: xyz", "token=..., password: ..."),
        ("two\nlines\x1b[2J", "two\ufffdlines\ufffd[2J"),
        ("1/2 and a/b/c", "1/2 and a/b/c"),
    ],
)
def test_public_text_has_no_secret_and_no_folder(text: str, shown: str) -> None:
    assert public(text) == shown


def test_no_local_path_and_no_token_reaches_the_page(tmp_path: Path) -> None:
    result = _small()
    folder = "/home/ann/secret-project/model"
    local = result.assign_coords(
        repository=("model", np.repeat(folder, 6)), run=("model", [folder if run else "" for run in result.run.values])
    )
    local.attrs |= {"text_set_name": f"{folder}/texts.jsonl", "recipe": json.dumps({"path": f"{folder}/recipe.json"})}
    failure = failed(folder, "main", "load_failed", f"{folder}/config.json is broken; token=hf_0123456789abcdef")
    path = write_report(local, tmp_path, title=f"Runs of {folder}", failures=[failure])
    source = path.read_text(encoding="utf-8")
    for private in ("secret-project", r"\bann\b", "hf_0123456789abcdef"):
        assert not [part for part in source.split() if re.search(private, part) and "base64" not in part]


def test_without_exponents_the_report_says_why(tmp_path: Path) -> None:
    page = Page(write_report(_small(), tmp_path, title="Short"))
    assert "diffusion exponents were asked for" in page.text
    assert len(page.all("img")) == 4
    assert not (tmp_path / "figures" / "diffusion_exponents.png").exists()
    assert "fractal dimension 2/" not in page.text.split("Runs")[0]


@pytest.mark.parametrize("changes", [{"sizes": (), "singles": 3}, {"steps": (0, 20), "singles": 0, "excluded": False}])
def test_small_results_have_a_report_too(changes: dict[str, object], tmp_path: Path) -> None:
    result = _small(**changes)
    page = Page(write_report(result, tmp_path, title="Small"))
    assert len(page.tables[-1]) == 1 + result.sizes["model"]
    assert ("No run in this result" in page.text) == ("sizes" in changes)


def test_long_model_table_and_long_recipe_are_cut_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_figures: None
) -> None:
    monkeypatch.setattr(models, "MAX_MODEL_ROWS", 4)
    result = _small()
    result.attrs["recipe"] = json.dumps({"texts": {"removed": list(range(1000, 1300))}})
    page = Page(write_report(result, tmp_path, title="Long"))
    assert len(page.tables[-1]) == 1 + 4
    assert "The first 4 of 6 models" in page.text
    assert "1002" in page.text and "1003" not in page.text and "300 values in all" in page.text


def test_a_result_that_was_stored_gives_the_same_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = _small()
    text = {name: (v.dims, v.values.astype(object)) for name, v in result.variables.items() if v.dtype.kind == "U"}
    result.assign_coords(text).to_zarr(tmp_path / "result", zarr_format=3, consolidated=False)
    stored = xr.open_zarr(tmp_path / "result", zarr_format=3, consolidated=False)
    again = Page(write_report(stored, tmp_path / "b", title="Stored"))
    assert len(again.all("img")) == 4
    monkeypatch.setattr(page_of_report, "PLATES", ())
    direct = Page(write_report(result, tmp_path / "a", title="Stored"))
    assert again.tables == direct.tables
    assert again.text.endswith(direct.text[direct.text.index("Each model is represented") :])


def test_a_result_without_a_matrix_shows_the_pairs_of_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed from rows of the snapshot: the numbers that a matrix has, and nothing of excluded models."""
    monkeypatch.setattr(page_of_report, "PLATES", tuple(each for each in page_of_report.PLATES if each.of_matrix))
    snapshot = scale_snapshot(n_texts=60, last_step=13_000)
    snapshot = snapshot.assign_coords(parameters=("model", np.full(snapshot.sizes["model"], 14_000_000)))
    whole, lacking = (analyze(snapshot, tsne=False, pairs_kept=kept).load() for kept in ("all", "neighbours"))
    assert "kl" not in lacking and whole["excluded"].any()
    monkeypatch.setattr(limits, "ALL_PAIRS_MODELS", 20)
    monkeypatch.setattr(limits, "SAMPLE_MODELS", 16)
    sample = with_matrix(lacking, snapshot)
    assert sample is not None and sample.sizes["model"] == 16
    at = sample["position"].values
    for name in ("kl", "kl_standard_error"):
        expected = whole[name].values[np.ix_(at, at)]
        np.testing.assert_allclose(sample[name].values, expected, rtol=1e-9, atol=1e-12)
    page = Page(write_report(lacking, tmp_path, title="Many", study=Study(snapshot=snapshot)))
    assert "kl_heatmap" in [attrs.get("id") for _, attrs in page.elements]
    assert f"Of {whole.sizes['model']:,} models, 16 are shown" in page.text
    assert with_matrix(lacking, None) is None and with_matrix(lacking, snapshot.isel(model=slice(5))) is None


def test_symbols_are_set_in_escaped_text() -> None:
    assert page_of_report.symbols("<b> 2/c_q") == "&lt;b&gt; 2/<i>c<sub>q</sub></i>"
