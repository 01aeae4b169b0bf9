"""The report of thousands of synthetic models: bytes, how long Chromium takes to open it, frames per second while a
reader points and zooms, by the browser's own trace.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from klray.analysis.defaults import NEIGHBOURS
from klray.report import write_report
from klray.report.inlined import script
from tests.benchmarks.machine import table
from tests.browser import new_page, running_browser, why_no_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MODELS, CHECKPOINTS, DIMENSIONS = (2_000, 10_000), 40, 12
OPENINGS = 5
FRAMES = "disabled-by-default-devtools.timeline.frame"
READY = "html[data-ready]"
# A turn of the wheel with each frame: Playwright's own wheel waits two frames for each.
ZOOM = """async () => {
  const [{ canvas }] = klray.explorer.panels, box = canvas.getBoundingClientRect();
  const middle = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, ctrlKey: true };
  for (let at = 0; at < 240; at++) {
    canvas.dispatchEvent(new WheelEvent("wheel", { ...middle, deltaY: at % 80 < 40 ? -60 : 60, cancelable: true }));
    await new Promise(requestAnimationFrame);
  }
}"""


def synthetic(n_models: int, all_pairs: bool) -> xr.Dataset:
    """A result of runs that walk in a space of a few dimensions, as ``klray analyze`` has it with either pairs kept."""
    rng = np.random.default_rng(0)
    n_runs = n_models // CHECKPOINTS
    steps = np.tile(np.arange(CHECKPOINTS) * 1000, n_runs)
    starts = np.repeat(rng.normal(size=(n_runs, DIMENSIONS)), CHECKPOINTS, axis=0)
    walk = rng.normal(size=(n_runs, CHECKPOINTS, DIMENSIONS)).cumsum(axis=1).reshape(-1, DIMENSIONS)
    points = starts + 0.05 * walk
    of = np.repeat(np.arange(n_runs), CHECKPOINTS)
    square = (points**2).sum(1)
    names = np.array([f"organisation-{run % 40}/a-language-model-{run}" for run in of])
    labels = [f"{name}@step{step}" for name, step in zip(names, steps, strict=True)]
    consecutive = np.full(n_models, np.nan)
    consecutive[1:] = np.where(of[1:] == of[:-1], ((points[1:] - points[:-1]) ** 2).sum(1), np.nan)
    first = steps == 0
    found: dict[str, object] = {
        "consecutive_kl": ("model", consecutive),
        "consecutive_kl_standard_error": ("model", 0.1 * consecutive),
        "previous_step": ("model", np.where(first, -1, steps - 1000)),
        "exponent_kl": ("model", np.where(steps < 29_000, rng.normal(0.5, 0.1, n_models), np.nan)),
        "exponent_kl_r_squared": ("model", rng.uniform(0.8, 1, n_models)),
        "map_pca": (("model", "component"), points[:, :2], {"explained_variance_ratio": [0.4, 0.2]}),
        "map_tsne": (("model", "component"), points[:, 2:4]),
        "text_kept": ("text", np.ones(10_000, dtype=bool)),
        "excluded": ("model", np.zeros(n_models, dtype=bool)),
    }
    if all_pairs:
        kl = np.maximum(square[:, None] + square - 2 * points @ points.T, 0)
        found |= {name: (("model", "other"), kl * by) for name, by in (("kl", 1), ("kl_standard_error", 0.1))}
    else:
        place, near = np.empty((n_models, NEIGHBOURS), np.int64), np.empty((n_models, NEIGHBOURS))
        for start in range(0, n_models, 500):
            rows = slice(start, start + 500)
            kl = np.maximum(square[rows, None] + square - 2 * points[rows] @ points.T, 0)
            place[rows] = np.argsort(kl, axis=1)[:, 1 : 1 + NEIGHBOURS]
            near[rows] = np.take_along_axis(kl, place[rows], 1)
        found |= {
            "neighbour": (("model", "rank"), place),
            "neighbour_kl": (("model", "rank"), near),
            "neighbour_kl_standard_error": (("model", "rank"), 0.1 * near),
        }
    words = {
        "repository": names,
        "revision": np.array([f"step{step}" for step in steps]),
        "key": np.array([f"{at:064x}" for at in range(n_models)]),
        "commit": np.array(["0" * 40] * n_models),
        "family": np.array([f"family {run % 20}" for run in of]),
        "run": names,
        "size": np.array([f"{10 * 2 ** (run % 9)}m" for run in of]),
        **{name: np.array([""] * n_models) for name in ("base_model", "quantization", "lens")},
        "dtype": np.array(["float32"] * n_models),
    }
    numbers = {"step": steps, "seed": of % 5, "layer": np.full(n_models, -1), "parameters": 10_000_000 * 2 ** (of % 9)}
    return xr.Dataset(
        found,
        coords={
            "model": labels,
            **({"other": labels} if all_pairs else {}),
            **{name: ("model", each) for name, each in (words | numbers).items()},
            "text_bytes": ("text", np.full(10_000, 1000)),
            "domain": ("text", np.array(["prose", "code"] * 5000)),
        },
        attrs={"mean_bytes": 1000.0, "recipe": "{}", "window": 10, "min_step": 1000, "snapshot": "synthetic"},
    )


def frames_per_second(browser: Browser, page: Page, act: Callable[[int], None], times: int) -> float:
    """How many frames the browser drew in each second that the reader was at it."""
    browser.start_tracing(page=page, categories=[FRAMES])
    start = time.perf_counter()
    for number in range(times):
        act(number)
    spent = time.perf_counter() - start
    events = json.loads(browser.stop_tracing())["traceEvents"]
    return sum(event["name"] == "DrawFrame" for event in events) / spent


def opened(browser: Browser, path: Path) -> tuple[Page, float]:
    """The report in a new page, and the seconds until it answers, by the page's own clock."""
    page, said = new_page(browser)
    page.goto(path.as_uri())
    page.wait_for_selector(READY, state="attached")
    seconds = page.evaluate("performance.getEntriesByName('ready')[0].startTime") / 1000
    assert said == [], said
    return page, seconds


def main() -> str:
    """Measure and return the table."""
    if why := why_no_browser():
        return f"report: {why}\n"
    rows = [("models", "pairs", "written in", "file", "opens in", "hover", "zoom")]
    with tempfile.TemporaryDirectory() as folder, running_browser() as browser:
        for n_models in MODELS:
            result = synthetic(n_models, all_pairs=n_models <= 5_000)
            start = time.perf_counter()
            path = write_report(result, Path(folder), title="Many models")
            written = time.perf_counter() - start
            openings = []
            for _ in range(OPENINGS):
                page, seconds = opened(browser, path)
                openings.append(seconds)
                if len(openings) < OPENINGS:
                    page.context.close()
            canvas = page.locator(".panel canvas").first
            canvas.scroll_into_view_if_needed()
            box = canvas.bounding_box()
            assert box
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            page.mouse.click(x, y)

            def point(at: int, page: Page = page, x: float = x, y: float = y) -> None:
                page.mouse.move(x + 90 * np.cos(at / 9), y + 90 * np.sin(at / 7))

            def zoom(_: int, page: Page = page) -> None:
                page.evaluate(ZOOM)

            hover = frames_per_second(browser, page, point, 240)
            zoomed = frames_per_second(browser, page, zoom, 1)
            page.context.close()
            kept = "all" if "kl" in result else f"{NEIGHBOURS} nearest"
            size = f"{path.stat().st_size / 1e6:.2f} MB"
            opening = f"{statistics.median(openings):.2f} s"
            rows.append((f"{n_models:,}", kept, f"{written:.0f} s", size, opening, f"{hover:.0f}/s", f"{zoomed:.0f}/s"))
    return table(f"The report, with {len(script()) / 1e3:.0f} kB of script", rows)
