"""Gather the committed columns into a new snapshot that xarray opens."""

from klray import config as configs
from klray.config import Config
from klray.config.job import verb
from klray.store import Manifest, Store
from klray.words.numbers import counted
from klray.words.progress import Stages
from klray.words.tables import say


def publish(config: Config) -> Manifest:
    """Publish, and say which snapshot is the newest now."""
    store = Store.open(configs.store_url(config.store), configs.storage_options(config.store))
    with Stages("publish") as stages:
        manifest, new = store.publish(stages)
    size = f"{counted(manifest.n_models, 'model')}, {counted(manifest.n_texts, 'text')}"
    without = f"; {counted(manifest.n_left_out, 'committed column')} could not be read" if manifest.n_left_out else ""
    say(f"snapshot {manifest.id}: {size}{without}{'' if new else ' (nothing new)'}")
    return manifest


main = verb(publish)

if __name__ == "__main__":
    main()
