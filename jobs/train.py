"""Train the embedded family, if it is not there yet."""

from klray.config import Config
from klray.config.job import verb
from klray.tiny.serving import embedded_root
from klray.words.tables import say


@verb
def main(config: Config) -> int:
    """Exit code 0."""
    say(f"the embedded family is in {embedded_root(config.models.recipe)}")
    return 0


if __name__ == "__main__":
    main()
