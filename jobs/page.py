"""Write a static page that reads the store in the browser, or publish it into the store."""

import logging
from pathlib import Path

import xarray as xr

from klray import config as configs
from klray.analysis.recipe import result_name
from klray.config import Config
from klray.config.job import verb
from klray.report.live.making import HERE, address_of, content_type, page_files
from klray.store import Store
from klray.words.tables import say
from klray.words.whole import write_whole

log = logging.getLogger("klray")


def page(config: Config) -> str:
    """Make the page and say where it is."""
    store = Store.open(configs.store_url(config.store), configs.storage_options(config.store))
    if config.texts.publish:
        store.publish_texts(configs.text_set(config.texts))
    folder = Path(config.page.dir).expanduser()
    address = ".." if config.page.publish else address_of(store.url, config.page.store_url, folder)
    result = result_name(config.analysis.name, config.analysis.domain)
    files = page_files(address, result, config.page.title, _scale(store, config))
    if not config.page.publish:
        folder.mkdir(parents=True, exist_ok=True)
        for name, body in files.items():
            write_whole(folder / name, body.decode())
        say(f"page {folder / 'index.html'} of the store at {address}; a web server shows it: python -m http.server")
        return str(folder)
    for name, body in files.items():
        store.objects.put(f"{HERE}/{name}", body, content_type(name))
    where = store.objects.address(f"{HERE}/index.html")
    say(f"page {where}; whoever reads the store may open it")
    return where


def _scale(store: Store, config: Config) -> xr.Dataset | None:
    """On which the page places a KL; None where the newest snapshot has none."""
    snapshot, name = store.manifest().id, result_name(config.scale.name, config.analysis.domain)
    return store.result(snapshot, name).load() if name in store.result_names(snapshot) else None


main = verb(page, lambda _: False)

if __name__ == "__main__":
    main()
