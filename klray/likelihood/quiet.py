"""transformers without its words: what klray has to say it says itself."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

_lock = threading.Lock()
_before: list[tuple[int, bool]] = []  # the settings as they were, once for each thread that is inside


@contextmanager
def quiet() -> Iterator[None]:
    """Errors only and no progress bars from transformers inside; as they were after the last thread has left."""
    with _lock:
        settings = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
        _before.append(_before[0] if _before else settings)
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        with _lock:
            verbosity, bars = _before.pop()
            if not _before:
                transformers_logging.set_verbosity(verbosity)
                if bars:
                    transformers_logging.enable_progress_bar()
