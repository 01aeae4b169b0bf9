"""The files of the live page: its modules as they are, and the page itself with the address of its store."""

import importlib.metadata
import importlib.resources
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import jinja2

from klray.errors import KlrayError
from klray.words.secrets import public

KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".txt": "text/plain"}
MODULES = ("page.js", "reader.js", "contents.js", "rows.js", "map.js", "zarrita.js")
FILES = (*MODULES, "page.css", "zarrita.licenses.txt")
SHARED = "divergence.js"  # with the report
HERE = "page"  # below the store, where the page is published


def page_files(store: str, result: str, title: str) -> dict[str, bytes]:
    """Every file of the page, by name; ``store`` is the address of the store, relative to the page or absolute.

    The page's policy lets it run its own modules and ask its own place; if ``store`` is absolute, that store alone.
    """
    source = importlib.resources.files("klray.report.live")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(source.joinpath("index.html").read_text("utf-8")).render(
        store=store,
        connect=f"{store.rstrip('/')}/" if urlsplit(store).scheme else "'self'",
        result=result,
        title=public(title),
        version=importlib.metadata.version("klray"),
    )
    shared = importlib.resources.files("klray.report").joinpath(f"script/{SHARED}").read_bytes()
    return {"index.html": page.encode(), SHARED: shared, **{name: source.joinpath(name).read_bytes() for name in FILES}}


def content_type(name: str) -> str:
    """What a server is to say of a file of the page."""
    return f"{KINDS[Path(name).suffix]}; charset=utf-8"


def address_of(store_url: str, asked: str | None, folder: Path) -> str:
    """Where a browser finds the store, from a page in ``folder``.

    Raises KlrayError: it is not known, or is no address that a policy can name.
    """
    if asked is None and "://" not in store_url:
        return Path(os.path.relpath(Path(store_url).expanduser().resolve(), folder.resolve())).as_posix()
    address = asked or store_url
    if not re.fullmatch(r"https?://[\w.:\[\]-]+(/[\w.~%+-]+)*/?", address, re.A):
        raise KlrayError(
            f"page.store_url={address}: a browser opens https://HOST/PATH alone; set page.store_url= to the store's "
            "address on the web, or page.publish=true, which puts the page into the store"
        )
    return address.rstrip("/")
