"""A real browser in the tests: headless Chromium as Debian has it, driven by Playwright."""

from __future__ import annotations

import functools
import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """Where it is; "" where it is not."""
    return next((path for name in NAMES if (path := shutil.which(name))), "")


@functools.cache
def why_no_browser() -> str:
    """Why no browser can be started here; "" if one can."""
    if importlib.util.find_spec("playwright") is None:
        return "no browser: playwright is not installed"
    return "" if chromium() else f"no browser: none of {', '.join(NAMES)} is installed"


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser without a window. While it runs its thread has an event loop: let it end with the module."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium(), args=["--disable-gpu"])
        try:
            yield found
        finally:
            found.close()


def new_page(browser: Browser, width: int = 1300, height: int = 900, **options: Any) -> tuple[Page, list[str]]:
    """A page in a context of its own, and what its console says that no sound page says: errors, refused requests."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(f"request failed: {request.url[:200]}"))
    return page, said
