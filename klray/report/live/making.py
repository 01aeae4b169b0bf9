"""The files of the live page: its modules and the report's as they are, and a page with the store's address."""

import importlib.metadata
import importlib.resources
import os
import re
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jinja2
import xarray as xr
from markupsafe import Markup

from klray.errors import KlrayError
from klray.report.carried.charts import carried_scale
from klray.report.carried.models import MAPS
from klray.report.carried.packing import as_json
from klray.words.secrets import public

KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".txt": "text/plain"}
FILES = ("style.css", "live/zarrita.licenses.txt")
FOLDERS = ("live", "script")  # where a module lies: of the page alone, or the report's
HERE = "page"  # below the store, where the page is published


def page_files(store: str, result: str, title: str, scale: xr.Dataset | None) -> dict[str, bytes]:
    """Every file of the page, by name; ``store`` is the address of the store, relative to the page or absolute.

    ``scale`` is the result on which the page places a KL; without it, the published values. The page's policy lets it
    run its own modules and ask its own place; if ``store`` is absolute, that store alone.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    modules = _modules("page.js")
    told: dict[str, Any] = {"store": store, "result": result, "maps": MAPS, "scale": carried_scale(scale)}
    page = environment.from_string(_read("live/index.html").decode()).render(
        told=Markup(as_json(told)),  # noqa: S704 - JSON without <, > and &
        connect=f"{store.rstrip('/')}/" if urlsplit(store).scheme else "'self'",
        modules=modules,
        title=public(title),
        version=importlib.metadata.version("klray"),
    )
    return {"index.html": page.encode(), **modules, **{name.rpartition("/")[2]: _read(name) for name in FILES}}


def _modules(first: str) -> dict[str, bytes]:
    """The module and all that it imports."""
    found: dict[str, bytes] = {}
    asked = [first]
    while asked:
        name = asked.pop()
        if name not in found:
            (folder,) = (each for each in FOLDERS if _source(f"{each}/{name}").is_file())
            found[name] = _read(f"{folder}/{name}")
            asked += re.findall(r'^import .* from "\./([\w.]+)";$', found[name].decode(), re.M)
    return found


def _source(name: str) -> Traversable:
    return importlib.resources.files("klray.report").joinpath(name)


def _read(name: str) -> bytes:
    return _source(name).read_bytes()


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
