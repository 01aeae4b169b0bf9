"""What a study made, in the report: from a store with results beside the trajectory, against plain NumPy."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jobs.analyze import analyze
from jobs.report import report
from jobs.scale import scale
from klray.analysis.kl.layer_kl import layer_kl
from klray.analysis.noise_floor import ModelNoise, NoiseFloor, Variant
from klray.analysis.recipe import Recipe
from klray.analysis.scale.agreement import agreements
from klray.analysis.scale.measuring import scale_rows
from klray.config import AnalysisConfig, Config, ReportConfig, ScaleConfig, StoreConfig
from klray.errors import KlrayError
from klray.report import page as page_of_report
from klray.report import write_report
from klray.report.figures.layers_to_final import layers_to_final, layers_to_final_caption
from klray.report.sections.section_quantised import _ratio
from klray.store import Store
from klray.texts import TextSet
from klray.words.numbers import significant, with_error
from tests import test_report as plain
from tests.conftest import new_place
from tests.html_page import Page
from tests.s3_server import S3Server
from tests.scale_data import fill_store, scale_snapshot
from tests.synthetic import trajectory_result

pytestmark = pytest.mark.slow

SECTIONS = ["scale", "text_sensitivity", "domains", "layers_to_final", "quantised", "weights"]
RUN = "org/pythia-14m"
C_W, C_W_ALIGNED = 0.9, 0.8


def weights_of(dataset: xr.Dataset, window: int = 10) -> xr.Dataset:
    """As klray weights writes it: squared distances of one run that grow as powers of the steps between."""
    chosen = np.flatnonzero(dataset["run"].values == RUN)
    chosen = chosen[np.argsort(dataset["step"].values[chosen])]
    steps, commits = dataset["step"].values[chosen], dataset["commit"].values[chosen]
    squared, others = np.full((len(chosen), window), np.nan), np.full((len(chosen), window), "", dtype=object)
    for t, back in itertools.product(range(len(chosen)), range(1, window + 1)):
        if back <= t:
            squared[t, back - 1] = float(steps[t] - steps[t - back])
            others[t, back - 1] = commits[t - back]
    return xr.Dataset(
        {
            "squared_distance": (("model", "back"), squared**C_W),
            "squared_distance_aligned": (("model", "back"), squared**C_W_ALIGNED),
            "other_commit": (("model", "back"), others.astype(np.dtypes.StringDType())),
        },
        coords={name: ("model", dataset[name].values[chosen]) for name in ("repository", "commit", "step")},
        attrs={"made": "2026-01-02T03:04:05+00:00"},
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A store with everything that a study makes."""
    place = tmp_path_factory.mktemp("study")
    texts = tuple(f"text {i} " * (40 + i) for i in range(60))
    store = Store.create(str(place / "store"), TextSet("test", texts, tuple("ab"[i % 2] for i in range(60))))
    fill_store(store, scale_snapshot(n_texts=60, last_step=13_000))
    config = Config(
        store=StoreConfig(url=store.url),
        analysis=AnalysisConfig(),
        scale=ScaleConfig(resamples=20),
        report=ReportConfig(dir=str(place / "report"), publish=True),
    )
    snapshot = store.manifest().id
    analyze(config)
    config.analysis.domain = "a"
    analyze(config)
    config.analysis.domain = ""
    scale(config)
    config.scale.domains = ["a", "b"]
    scale(config)
    store.write_result(snapshot, "weights", weights_of(store.dataset().load()))
    return config


@pytest.fixture(scope="module")
def store(config: Config) -> Store:
    return Store.open(str(config.store.url))


@pytest.fixture(scope="module")
def page(config: Config) -> Page:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_of_report, "PLATES", page_of_report.PLATES[:1])  # a second each
        return Page(report(config))


def table_of(page: Page, first: str, other: str = "") -> list[list[str]]:
    (table,) = [each for each in page.tables if each[0][0] == first and (not other or other in each[0])]
    return table


def test_the_page_has_a_section_for_each_and_is_complete_in_itself(page: Page) -> None:
    ids = [str(attrs["id"]) for _, attrs in page.elements if "id" in attrs]
    assert ids == ["model_map", "runs", "set_apart", *SECTIONS, "method", "models"]
    plain.test_page_needs_nothing_else(page)
    plain.test_links_inside_the_page_arrive(page)
    plain.test_policy_forbids_requests_and_every_script_but_the_one_inside(page)
    assert [f"Figure {n}." in page.text for n in range(1, 6)] == [True] * 4 + [False]
    figures = page.path.parent / "figures"
    drawn = {"scale.png", "scale.pdf", "text_sensitivity.png", "layers_to_final.png"}
    assert drawn <= {each.name for each in figures.iterdir()}


def test_a_store_without_them_has_none_of_the_sections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_of_report, "PLATES", ())
    bare = Page(write_report(trajectory_result(), tmp_path, title="Plain"))
    assert not {str(attrs.get("id")) for _, attrs in bare.elements} & set(SECTIONS)


def test_the_scale_is_the_stored_one_with_its_errors_named(page: Page, store: Store) -> None:
    stored = store.result(store.manifest().id, "scale").load()
    header, *rows = table_of(page, "setting", "median (± SE)")
    assert header == ["setting", "n", "median (± SE)", "quartiles", "range", "SE of a pair", "published"]
    found = {row[0]: row for row in rows}
    kl, setting = stored["kl"].values, stored["pair_setting"].values
    assert set(found) == set(stored["setting"].values)
    for row in scale_rows(stored):
        of = np.sort(kl[setting == row.setting])
        median = (of[(len(of) - 1) // 2] + of[len(of) // 2]) / 2
        assert found[row.setting][1:3] == [f"{len(of):,}", with_error(float(median), row.median_standard_error)]
    assert found["8-bit"][-1] == "0.44" and found["early"][-1] == "0.05-0.1"
    assert "SE of a pair: median" in page.text
    assert "bootstrap over pairs (20 resamples, seed 0)" in page.text
    ratio = np.median(kl[setting == "8-bit"]) / 0.44
    assert f"is {significant(float(ratio), 2)} times the published 0.44:" in page.text
    assert "scored the same models on the same texts" in page.text
    assert "another preprocessing recipe" not in page.text


def test_agreement_is_a_ratio_within_two_to_the_median_or_the_nearer_end_of_a_range(store: Store) -> None:
    stored = store.result(store.manifest().id, "scale").load()
    said = {
        "later": (0.02, "later: the median of 0.0200 is inside the published 0.01 to 0.05."),
        "early": (0.21, "early: the median of 0.210 is 2.1 times the upper end of the published 0.05 to 0.1: "),
        "8-bit": (0.22, "8-bit: the median of 0.220 is 0.50 times the published 0.44: agrees."),
        "4-bit": (0.2449, "4-bit: the median of 0.245 is 0.50 times the published 0.49: does not agree."),
        "layer": (6.0, "layer: the median of 6.00 is 2.0 times the published 3.0: agrees."),
    }
    for name, (median, _) in said.items():
        stored["median"].values[stored["setting"].values == name] = median
    stored["n"].values[stored["setting"].values == "fine-tuning"] = 0
    sentences = agreements(stored)
    for _, sentence in said.values():
        (own,) = [each for each in sentences if each.startswith(sentence)]
        assert sentence.endswith(".") or own.endswith("does not agree.")
    assert [each.split(":")[0] for each in sentences] == ["later", "early", "8-bit", "4-bit", "intra-type", "layer"]


def test_domains_stand_side_by_side_with_all_texts(page: Page, store: Store) -> None:
    header, *rows = table_of(page, "setting", "all texts")
    assert header[2:] == ["all texts", "a", "b", "a / all texts", "b / all texts"]
    identifier = store.manifest().id
    scales = [store.result(identifier, name).sel(setting="seed") for name in ("scale", "scale-a", "scale-b")]
    medians = [float(each["median"]) for each in scales]
    (row,) = [row for row in rows if row[0] == "seed"]
    assert row[5:] == [significant(medians[1] / medians[0]), significant(medians[2] / medians[0])]
    # one of the domains was analysed: its exponent stands beside that of all texts, of runs that have one
    header, *rows = table_of(page, "run: cq")
    assert header[1:] == ["all texts", "a", "b"] and [row[0] for row in rows] == [RUN, "org/pythia-1b"]
    assert all(row[1] != "–" != row[2] and row[3] == "–" for row in rows)


def test_one_domain_is_not_compared_and_names_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_of_report, "PLATES", ())
    result = trajectory_result(sizes=("1m",), seeds=(0,), steps=(0, 20, 40), n_texts=30, singles=3, excluded=False)
    names = result["quantization"].values.astype("<U200")
    names[4] = plain.HOSTILE
    repositories = np.array(["a"] * 3 + ["b"] * 3)
    result = result.assign_coords(quantization=("model", names), repository=("model", repositories))
    bare = Page(write_report(result, tmp_path, title="Hostile"))
    (row,) = table_of(bare, "Quantisation")[1:]
    assert row[:3] == [plain.HOSTILE, "1", significant(float(result["kl"].values[4, 5]))]
    assert len(bare.all("script")) == 2 and not bare.all("img")
    assert "domains" not in {attrs.get("id") for _, attrs in bare.elements}


def by_column(dataset: xr.Dataset, lens: str) -> list[np.ndarray]:
    """(L + 1, N) values of every column under a lens of a model that is not excluded."""
    chosen = (dataset["layer"].values >= 0) & np.array([str(each).startswith(lens) for each in dataset["lens"].values])
    chosen &= dataset["revision"].values != "step116000"
    found = []
    for key in set(dataset["key"].values[chosen].tolist()):
        rows = np.flatnonzero(chosen & (dataset["key"].values == key))
        found.append(
            dataset["log_likelihood"].values[rows[np.argsort(dataset["layer"].values[rows])]].astype(np.float64)
        )
    return found


def test_layers_are_compared_by_lens(page: Page, store: Store) -> None:
    dataset = store.dataset().load()
    bits = 2 * dataset["text_bytes"].values.mean() * math.log(2)
    rows = {row[0]: row[1:] for row in table_of(page, "Lens")[1:]}
    halves = {}
    for lens in ("logit", "tuned"):
        columns = by_column(dataset, lens)
        adjacent = [np.var(a - b) / bits for values in columns for a, b in itertools.pairwise(values)]
        halves[lens] = np.mean([np.var(values[:3] - values[-1], axis=1).mean() / bits for values in columns])
        low, median, high = np.quantile(adjacent, [0.25, 0.5, 0.75])
        assert rows[lens] == [
            *(f"{len(columns)}", f"{len(adjacent)}", significant(median)),
            *(f"{significant(low)} to {significant(high)}", significant(float(halves[lens]))),
        ]
    assert len(rows) == 2 and rows["logit"][:2] == ["3", "12"]
    nearer = "nearer" if halves["tuned"] < halves["logit"] else "no nearer"
    assert f"of the layers is {nearer} to the output" in page.text


def test_lines_of_layers_are_their_kl_to_the_final_layer(store: Store) -> None:
    dataset = store.dataset().load()
    kept = dataset.isel(model=np.flatnonzero(dataset["revision"].values != "step116000"))
    result = layer_kl(kept)
    figure = layers_to_final(result)
    (axes,) = figure.axes
    names = ("llama/base-0@main", "mistr/base-0@main", "qwen2/base-0@main")
    drawn_labels = [str(line.get_label()) for line in axes.lines]
    assert drawn_labels == [f"{name} {lens}" for name in names for lens in ("logit", "tuned")]
    colors = [line.get_color() for line in axes.lines]
    assert colors[::2] == colors[1::2] and len(set(colors)) == 3
    drawn = sorted(float(value) for line in axes.lines for value in np.asarray(line.get_ydata()))
    expected = [np.var(v[:-1] - v[-1], axis=1) for lens in ("logit", "tuned") for v in by_column(dataset, lens)]
    bits = 2 * dataset["text_bytes"].values.mean() * math.log(2)
    np.testing.assert_allclose(drawn, np.sort(np.concatenate(expected)) / bits, rtol=1e-9)
    assert "are drawn" not in layers_to_final_caption(result)
    with pytest.raises(KlrayError, match="no layer differs from it"):
        layers_to_final(result.isel(model=np.flatnonzero(result["kl_final"].values == 0)))


def kl_of_quantised(store: Store, name: str) -> np.ndarray:
    """KL of the models of that quantisation to their unquantised selves, by their names."""
    dataset = store.dataset().load()
    recipe = Recipe.from_json(store.result(store.manifest().id, "trajectory").attrs["recipe"])
    values = np.maximum(dataset["log_likelihood"].values, np.float32(recipe.clip_threshold))[:, recipe.text_kept]
    of = {label: row.astype(np.float64) for label, row in zip(dataset["model"].values.tolist(), values, strict=True)}
    bits = 2 * dataset["text_bytes"].values[recipe.text_kept].mean() * math.log(2)
    pairs = [(label, label.replace(f"+{name}", "")) for label in of if label.endswith(f"+{name}")]
    return np.array([np.var(of[a] - of[b]) / bits for a, b in pairs if b in of])


def test_quantised_models_stand_against_their_selves_beside_the_noise(
    page: Page, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    rows = {row[0]: row[1:] for row in table_of(page, "Quantisation")[1:]}
    assert sorted(rows) == ["fp4", "int4wo", "int8", "nf4"]
    for name, (n, median, *_) in rows.items():
        kl = kl_of_quantised(store, name)
        assert int(n) == len(kl)
        assert float(median.split(" ± ")[0]) == pytest.approx(np.median(kl), rel=0.06)  # as it is rounded
    assert "The noise floor was not measured." in page.text
    ways = tuple(Variant(dtype, "cpu", 1) for dtype in ("float64", "float32"))
    each = ModelNoise("org/a@main", "c", variants=ways, kl=((0.0, 2e-4), (2e-4, 0.0)))
    noise = NoiseFloor(("float32",), "float32", "other", "texts", 300, 700.0, (each,), {})
    (tmp_path / "noise.json").write_text(noise.to_json(), "utf-8")
    monkeypatch.setattr(page_of_report, "PLATES", ())
    monkeypatch.setattr(config.report, "noise", str(tmp_path / "noise.json"))
    monkeypatch.setattr(config.report, "dir", str(tmp_path))
    monkeypatch.setattr(config.report, "publish", False)
    with_noise = {row[0]: row[1:] for row in table_of(Page(report(config)), "Quantisation")[1:]}
    median = float(np.median(kl_of_quantised(store, "nf4")))
    assert with_noise["nf4"][-2:] == ["2.0e-04", significant(median / 2e-4, 2)]
    assert _ratio(25_432_973_371.0) == "2.5e10" and _ratio(1357.0) == "1,357" and _ratio(math.nan) == "–"
    assert with_noise["int8"][-2:] == ["–", "–"]  # one of them is float16, of which the noise is not known


def test_exponents_of_weights_stand_next_to_those_of_kl(page: Page, store: Store) -> None:
    header, *rows = table_of(page, "Run", "cw, exact")
    assert header == ["Run", "cq", "cw, exact", "R²", "cw, aligned", "R²", "2/cw, exact"]
    (row,) = rows
    assert [row[0], *row[2:]] == [RUN, "0.900", "1.00", "0.800", "1.00", "2.22"]
    result = store.result(store.manifest().id, "trajectory").load()
    of_run = np.flatnonzero((result["run"].values == RUN) & (result["layer"].values < 0))
    of_run = of_run[np.argsort(result["step"].values[of_run])]
    exponent = result["exponent_kl"].values[of_run]
    late = exponent[np.isfinite(exponent)]
    late = late[len(late) // 2 :]
    assert row[1] == with_error(float(late.mean()), float(late.std(ddof=1)))
    assert "Alignment changes a run's cw by 0.10 at most." in page.text


def test_a_published_report_is_found_by_its_address_and_is_nothing_foreign(page: Page, store: Store) -> None:
    name, body = store.manifest().id, page.path.read_bytes()
    published = Path(store.url) / "results" / name / "report" / "index.html"
    assert published.read_bytes() == body
    written = published.stat()
    assert store.publish_report(name, "report", body) == str(published)
    assert published.stat().st_ino == written.st_ino, "the same page is not written again"
    store.publish_report(name, "report", b"<!doctype html>")
    assert published.read_bytes() == b"<!doctype html>"
    found = store.audit()
    assert not found.damages and not found.leftovers
    assert "report" not in store.result_names(name)


@pytest.mark.parametrize("backend", ["s3fs", "obstore"])
def test_a_bucket_says_of_a_published_report_that_it_is_html(
    s3_server: S3Server, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_place(s3_server, monkeypatch)
    store = Store.create(url, TextSet("test", ("a text",), ("a",)), {"backend": backend})
    address = store.publish_report("20260102T030405.000Z-5f2a9c1e", "report", b"<!doctype html>")
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    key = f"{prefix}/results/20260102T030405.000Z-5f2a9c1e/report/index.html"
    assert address == f"{s3_server.endpoint}/{bucket}/{key}"
    assert s3_server.client().head_object(Bucket=bucket, Key=key)["ContentType"] == "text/html; charset=utf-8"
    assert not store.audit().leftovers
