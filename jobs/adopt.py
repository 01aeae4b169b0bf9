"""Take published log-likelihoods into a store, as columns that say where they are from."""

from klray import config as configs
from klray.config import Config
from klray.config.job import verb
from klray.store import Store
from klray.store.adopted.adopting import Adopted, Source, adopt, check_texts
from klray.store.adopted.files import read_published
from klray.store.text_facts import text_facts
from klray.words.numbers import counted, listed
from klray.words.progress import Stages
from klray.words.tables import say

NAMED = 5


def take(config: Config) -> Adopted:
    """Read the file, look whether it is of these texts, and commit what the store lacks."""
    path = configs.adopt_path(config.adopt)
    url = configs.store_url(config.store)
    text_set = configs.text_set(config.texts)
    file = read_published(path, len(text_set), configs.adopt_inner(config.adopt))
    check_texts(text_facts(text_set), file)
    store = Store.create(url, text_set, configs.storage_options(config.store), config.store.single_writer)
    if config.texts.publish:
        store.publish_texts(text_set)
    asked = config.adopt
    source = Source(asked.name, asked.precision, asked.quantization, asked.family, asked.repository)
    with Stages("adopt") as stages:
        adopted = adopt(store, file, source, stages)
    say(f"adopted {counted(adopted.new, 'model')} of {file.name}, {adopted.present:,} were there; store {store.url}")
    if adopted.without:
        say(f"without values: {listed(adopted.without, NAMED)}")
    return adopted


main = verb(take)

if __name__ == "__main__":
    main()
