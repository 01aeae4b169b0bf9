"""The report in a real browser, without a network: what a reader points at, chooses and keeps is klray's own."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import klray
from klray.analysis.analyze import analyze
from klray.analysis.recipe import Recipe
from klray.analysis.scale.measuring import measure_scale
from klray.report import Study, write_report
from klray.report import page as page_of_report
from klray.report.carried import limits
from klray.report.inlined import script
from klray.units import bits_per_byte
from klray.words.numbers import significant, with_error
from tests.browser import new_page, running_browser, why_no_browser
from tests.scale_data import scale_snapshot
from tests.test_report import HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_no_browser()), reason=why_no_browser())]

READY = "html[data-ready]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as found:
        yield found


@pytest.fixture(scope="module")
def snapshot() -> xr.Dataset:
    found = scale_snapshot(n_texts=60, last_step=13_000)
    found = found.isel(model=np.flatnonzero(found["layer"].values < 0))
    return found.assign_coords(parameters=("model", np.full(found.sizes["model"], 14_000_000)))


@pytest.fixture(scope="module")
def result(snapshot: xr.Dataset) -> xr.Dataset:
    return analyze(snapshot, tsne=False).load()


@pytest.fixture(scope="module")
def scale(snapshot: xr.Dataset, result: xr.Dataset) -> xr.Dataset:
    return measure_scale(snapshot, Recipe.from_json(result.attrs["recipe"]), resamples=20)


@pytest.fixture(scope="module")
def path(snapshot: xr.Dataset, result: xr.Dataset, scale: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        kept = ("model_map", "consecutive_kl", "kl_heatmap")
        patch.setattr(page_of_report, "PLATES", tuple(each for each in page_of_report.PLATES if each.name in kept))
        study = Study(snapshot=snapshot, scales={"": scale})
        return write_report(result, tmp_path_factory.mktemp("browser"), title="A study", study=study)


@pytest.fixture(scope="module")
def opened(browser: Browser, path: Path) -> tuple[Page, list[str]]:
    page, said = new_page(browser, accept_downloads=True)
    page.goto(path.as_uri())
    page.wait_for_selector(READY, state="attached")
    return page, said


@pytest.fixture
def page(opened: tuple[Page, list[str]]) -> Page:
    """The report as it opens; the page is one for all tests."""
    found, _ = opened
    found.mouse.move(2, 2)
    found.evaluate("klray.choices.set(klray.choices.defaults)")
    found.evaluate(
        "klray.explorer.hover(-1), klray.explorer.panels.forEach((each) => { each.view.reset(); each.redraw(); })"
    )
    return found


@pytest.fixture(scope="module")
def pair(result: xr.Dataset) -> tuple[int, int]:
    """Two checkpoints of the map, of one family."""
    at = {str(name): place for place, name in enumerate(result["model"].values)}
    return at["org/pythia-14m@step5000"], at["org/pythia-1b@step9000"]


def on_the_map(page: Page, model: int) -> tuple[float, float]:
    """Where a model is in the window."""
    page.locator(".panel canvas").first.scroll_into_view_if_needed()
    x, y = page.evaluate(
        "(model) => { const [panel] = klray.explorer.panels, box = panel.canvas.getBoundingClientRect();"
        " const [x, y] = panel.at(model); return [box.left + x, box.top + y]; }",
        model,
    )
    return x, y


def alone(page: Page, *models: int) -> None:
    """Zoom until nothing covers the first of the models."""
    page.evaluate(
        "(model) => { const [panel] = klray.explorer.panels, { view } = panel;"
        " view.zoom = 60; [view.x, view.y] = [panel.xy[2 * model], panel.xy[2 * model + 1]]; panel.redraw(); }",
        models[0],
    )


def test_the_page_opens_without_a_word_and_asks_for_nothing(opened: tuple[Page, list[str]]) -> None:
    page, said = opened
    assert said == []
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0
    assert page.locator("noscript img").count() == 0 or not page.locator("img").first.is_visible()


def test_pointing_at_a_model_tells_what_it_is_and_what_is_nearest(
    page: Page, result: xr.Dataset, snapshot: xr.Dataset, pair: tuple[int, int]
) -> None:
    model, _ = pair
    alone(page, model)
    page.mouse.move(*on_the_map(page, model))
    card = page.locator(".card")
    card.wait_for()
    nats = -float(snapshot["log_likelihood"].isel(model=model).mean("text", dtype=np.float64))
    rate = bits_per_byte(nats, float(snapshot["text_bytes"].mean()))
    facts = dict(zip(card.locator("dt").all_inner_texts(), card.locator("dd").all_inner_texts(), strict=True))
    assert card.locator("strong").inner_text() == "org/pythia-14m"
    assert facts.get("step") == "5,000" and facts["bits per byte"] == significant(rate, 4)
    kl = result["kl"].isel(model=model).values.copy()
    kl[model] = np.nan
    near = np.argsort(kl)[:5]
    error = result["kl_standard_error"].values[model]
    found = card.locator("li").evaluate_all(
        "(all) => all.map((each) => [...each.children].map((part) => part.textContent))"
    )
    assert [number for _, number in found] == [with_error(kl[at], error[at]) for at in near]
    assert [name.split(" · ")[0] for name, _ in found] == [
        f"{result['repository'].values[at]}@{result['revision'].values[at]}" for at in near
    ]
    page.mouse.move(2, 2)
    card.wait_for(state="hidden")


def test_two_clicks_give_klrays_own_kl_its_place_and_what_makes_the_difference(
    page: Page, result: xr.Dataset, snapshot: xr.Dataset, scale: xr.Dataset, pair: tuple[int, int]
) -> None:
    for model in pair:
        alone(page, model)
        page.mouse.click(*on_the_map(page, model))
    number = page.locator(".number-big output")
    kl, error = (float(str(number.get_attribute(name))) for name in ("data-kl", "data-se"))
    one, other = pair
    assert kl == pytest.approx(float(result["kl"][one, other]), rel=1e-6)
    assert error == pytest.approx(float(result["kl_standard_error"][one, other]), rel=2e-4)
    assert number.inner_text() == with_error(kl, error)
    assert page.locator(".likeness").inner_text() in str(klray.place(kl, scale))
    values = Recipe.from_json(result.attrs["recipe"]).apply(snapshot).isel(model=list(pair)).compute()
    tables = page.locator(".answer table")
    for domain, texts, shown in (
        tables.nth(0)
        .locator("tbody tr")
        .evaluate_all(
            "(rows) => rows.map(({ cells: [a, b, c] }) => [a.innerText, b.innerText, c.firstChild.dataset.kl])"
        )
    ):
        of = values.isel(text=np.flatnonzero(values["domain"].values == domain))
        assert int(texts) == of.sizes["text"]
        assert float(shown) == pytest.approx(klray.kl_divergence(of.values, of["text_bytes"].values)[0, 1], rel=1e-9)
    difference = (values[0] - values[1]).values.astype(float)
    difference -= difference.mean()
    text, _, size, nats, _ = tables.nth(1).locator("tbody tr").first.locator("td").all_inner_texts()
    at = int(np.argmax(np.abs(difference)))
    kept = np.flatnonzero(result["text_kept"].values)
    assert int(text) == kept[at] and int(size.replace(",", "")) == values["text_bytes"].values[at]
    assert float(nats.replace("−", "-")) == pytest.approx(difference[at], rel=5e-3)


def test_search_finds_a_model_and_enter_chooses_it(page: Page) -> None:
    field = page.get_by_label("Search models", exact=True)
    field.fill("410M seed3 step6000")
    assert page.locator("[role=option]").all_inner_texts() == ["org/pythia-410m-seed3@step6000 · float32"]
    field.press("Enter")
    assert page.locator(".slot .name").first.inner_text() == "org/pythia-410m-seed3@step6000 · float32"


def test_the_slider_ends_the_runs_and_a_legend_entry_dims(page: Page, result: xr.Dataset) -> None:
    state = "() => [...klray.explorer.look.state]"
    page.locator("#step").press("Home")
    steps = result["step"].values
    assert page.evaluate(state) == [2 if step > 0 else 0 for step in steps]
    page.locator("#step").press("End")
    assert set(page.evaluate(state)) == {0}
    page.locator("#colour").select_option("family")
    page.get_by_role("button", name=re.compile("^seeds")).click()
    assert page.evaluate(state) == [int(family == "seeds") for family in result["family"].values]
    page.get_by_role("button", name="Show all").click()
    assert set(page.evaluate(state)) == {0}


def test_saved_tables_hold_the_data(page: Page, result: xr.Dataset, tmp_path: Path) -> None:
    def saved(place: str, kind: str) -> str:
        with page.expect_download() as started:
            page.locator(place).get_by_role("button", name=kind, exact=True).click()
        started.value.save_as(tmp_path / started.value.suggested_filename)
        return (tmp_path / started.value.suggested_filename).read_text("utf-8")

    header, *rows = list(csv.reader(saved("[data-chart=map]", "CSV").splitlines()))
    assert header == ["model", "step", "run", "pca_1", "pca_2"]
    drawn = np.array([[float(each or "nan") for each in row[3:]] for row in rows])
    np.testing.assert_allclose(drawn, result["map_pca"].values, rtol=1e-6, atol=1e-7)
    header, *rows = list(csv.reader(saved("[data-chart=kl_heatmap]", "CSV").splitlines()))
    assert len(rows) == math.comb(result.sizes["model"], 2)
    upper = result["kl"].values[np.triu_indices(result.sizes["model"], 1)]
    np.testing.assert_allclose(
        sorted(float(row[2]) for row in rows if row[2]), np.sort(upper[np.isfinite(upper)]), rtol=1e-6
    )
    header, *rows = list(csv.reader(saved("[data-chart=consecutive_kl]", "CSV").splitlines()))
    known = result["consecutive_kl"].values
    np.testing.assert_allclose(sorted(float(row[3]) for row in rows), np.sort(known[np.isfinite(known)]), rtol=1e-6)
    assert saved("[data-chart=scale]", "SVG").count("<circle") == result_pairs(page)
    assert saved("[data-chart=map]", "SVG").startswith("<svg")
    with page.expect_download() as started:
        page.locator("[data-chart=map]").get_by_role("button", name="PNG", exact=True).click()
    with Image.open(started.value.path()) as image:
        assert image.width > 1000 and len(image.convert("L").getcolors(1 << 16)) > 10


def result_pairs(page: Page) -> int:
    return int(
        page.evaluate("klray.data.scale.settings.reduce((sum, each) => sum + each.kl.filter((kl) => kl > 0).length, 0)")
    )


def test_an_address_restores_what_was_chosen(browser: Browser, page: Page, pair: tuple[int, int], path: Path) -> None:
    page.evaluate(
        "([one, other]) => klray.choices.set({ colour: 'family', hide: ['seeds'], step: 7000, theme: 'dark',"
        " a: klray.data.models.label[one], b: klray.data.models.label[other] })",
        list(pair),
    )
    page.wait_for_url("**#*theme=dark*")
    shown = page.locator(".number-big").inner_text()
    again, said = new_page(browser)
    again.goto(page.url)
    again.wait_for_selector(READY, state="attached")
    assert again.locator(".number-big").inner_text() == shown
    assert again.locator("#colour").input_value() == "family"
    assert again.locator(".steps output").inner_text() == "7,000"
    assert again.get_by_role("button", name=re.compile("^seeds")).get_attribute("aria-pressed") == "false"
    dark = "getComputedStyle(document.body).backgroundColor"
    assert again.evaluate(dark) == "rgb(20, 24, 28)"
    again.get_by_role("button", name="Light").click()
    assert again.evaluate(dark) == "rgb(255, 255, 255)"
    assert said == []
    again.context.close()


def test_tables_sort_filter_and_fit(page: Page, result: xr.Dataset) -> None:
    table = page.locator("table.models")
    table.get_by_role("button", name="Step").click()
    table.get_by_role("button", name="Step").click()
    assert table.locator("tbody tr").first.locator("td").nth(1).inner_text() == f"{result['step'].values.max():,}"
    page.locator("section[aria-labelledby=models]").get_by_label("Filter rows").fill("llama child-a")
    expected = [name for name in result["repository"].values if "child-a" in name]
    assert table.locator("tbody tr").count() in (len(expected), 0)
    wide = (
        "() => [...document.querySelectorAll('.scroll')].filter((each) => each.scrollWidth > each.clientWidth).length"
    )
    assert page.evaluate(wide) == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 1300, "height": 900})


def test_keys_go_from_model_to_model_and_choose(page: Page) -> None:
    page.locator(".panel canvas").first.focus()
    names = []
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
        names.append(page.evaluate("klray.explorer.panels[0].hovered"))
    assert page.locator(".card").is_visible() and len(set(names)) > 1 and min(names) >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("klray.choices.get('a') === klray.data.models.label[klray.explorer.panels[0].hovered]")
    page.keyboard.press("Escape")
    assert not page.locator(".card").is_visible()
    before = page.evaluate("klray.explorer.panels[0].view.zoom")
    page.keyboard.press("+")
    assert page.evaluate("klray.explorer.panels[0].view.zoom") > before
    page.keyboard.press("0")
    assert page.evaluate("klray.explorer.panels[0].view.zoom") == 1


def test_without_scripts_the_pictures_are_seen(browser: Browser, path: Path) -> None:
    page, _ = new_page(browser, java_script_enabled=False)
    page.goto(path.as_uri())
    images = page.locator("figure img")
    assert images.count() == 5 and all(images.nth(at).is_visible() for at in range(5))
    assert not page.locator(".answers").first.is_visible()
    page.context.close()


def test_of_too_many_pairs_the_page_says_what_gives_the_others(
    browser: Browser, result: xr.Dataset, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_of_report, "PLATES", page_of_report.PLATES[:1])
        for name, value in {"ALL_PAIRS_MODELS": 20, "SAMPLE_MODELS": 4, "MOST_NEIGHBOURS": 2}.items():
            patch.setattr(limits, name, value)
        path = write_report(result, tmp_path, title="Many")
    page, said = new_page(browser)
    page.goto(path.as_uri())
    page.wait_for_selector(READY, state="attached")
    kl = result["kl"].values.copy()
    np.fill_diagonal(kl, np.nan)
    one = int(np.flatnonzero(np.isfinite(kl).any(axis=1))[0])
    near, far = int(np.nanargmin(kl[one])), int(np.nanargmax(kl[one]))
    choose = "([a, b]) => klray.choices.set({ a: klray.data.models.label[a], b: klray.data.models.label[b] })"
    for a, b in ((one, near), (near, one)):
        page.evaluate(choose, [a, b])
        shown = float(str(page.locator(".number-big output").get_attribute("data-kl")))
        assert shown == pytest.approx(kl[a, b], rel=1e-6)
    page.evaluate(choose, [one, far])
    names = [json.dumps(str(result["model"].values[at])) for at in (one, far)]
    chosen = f".kl.sel(model={names[0]}, other={names[1]}).item()"
    call = f"klray.open_result(URL, 'trajectory', '{result.attrs['snapshot']}'){chosen}"
    assert page.locator(".absent pre").inner_text() == call
    assert eval(call.replace("klray.open_result(URL, ", "opened("), {"opened": lambda *_: result}) == kl[one, far]
    assert "the 2 nearest models of each" in page.locator(".absent").inner_text()
    assert said == []
    page.context.close()


def test_what_strangers_wrote_stays_text(browser: Browser, result: xr.Dataset, tmp_path: Path) -> None:
    names = [f"{HOSTILE}{place}" for place in range(result.sizes["model"])]
    hostile = result.assign_coords(
        {name: ("model", names) for name in ("model", "repository", "revision")}
        | {"other": names, "run": ("model", [HOSTILE if run else "" for run in result["run"].values])}
        | {name: ("model", np.repeat(HOSTILE, len(names))) for name in ("family", "size", "dtype")}
    ).assign_attrs(snapshot=HOSTILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_of_report, "PLATES", page_of_report.PLATES[:1])
        path = write_report(hostile, tmp_path, title=HOSTILE)
    page, said = new_page(browser)
    page.on("dialog", lambda _: said.append("a dialog"))
    page.goto(path.as_uri())
    page.wait_for_selector(READY, state="attached")
    page.evaluate("klray.choices.set({ a: klray.data.models.label[0], b: klray.data.models.label[1] })")
    page.evaluate("klray.explorer.hover(0)")
    page.get_by_label("Search models", exact=True).fill("img")
    assert page.locator("body img").count() == 0 and page.locator("body script").count() == 2
    assert HOSTILE in page.locator("body").inner_text()
    assert said == []
    page.context.close()


def test_names_at_the_top_of_modules_differ() -> None:
    """They share one scope in the page."""
    modules = (Path(page_of_report.__file__).parent / "script").glob("*.js")
    top = re.compile(r"^(?:export )?(?:const|let|(?:async )?function|class) (\w+)", re.M)
    found = [name for module in modules for name in top.findall(module.read_text("utf-8"))]
    assert len(found) > 50 and len(set(found)) == len(found)
    assert not re.search(r"^(import|export)", script(), re.M)
    assert "innerHTML" not in script() and "</script" not in script()


def test_data_is_json_that_opens_no_tag(path: Path) -> None:
    data = re.search(r'<script type="application/json">(.*?)</script>', path.read_text("utf-8"), re.S)
    assert data is not None and "<" not in data.group(1)
    carried: dict[str, Any] = json.loads(data.group(1))
    assert carried["n"] > 0
