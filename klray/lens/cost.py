"""What a lens adds to the cost of scoring, known before anything but config.json is fetched."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

from klray.checkpoints import CONFIG, Cache, Checkpoint, Hub
from klray.errors import CheckpointError
from klray.models import shape

log = logging.getLogger("klray")

_CACHE_BYTES = 64 * 2**20  # for config.json of one repository after another


def lens_weights(hub: Hub, checkpoints: Iterable[Checkpoint], *, tuned: bool) -> dict[str, int | None]:
    """Weights that a lens multiplies each token's hidden states with, by repository; None, and a warning, where its
    config does not tell.

    They come beside the model's own: the head for every layer but the last, and before it, with a ``tuned`` lens, a
    translator. One config.json is fetched for each repository, whose checkpoints are taken to have one shape.
    """
    found: dict[str, int | None] = {}
    with tempfile.TemporaryDirectory() as place, Cache(Path(place), _CACHE_BYTES) as cache:
        for each in checkpoints:
            if each.repository in found:
                continue
            config = dataclasses.replace(each, files=tuple(file for file in each.files if file.path == CONFIG))
            try:
                model = shape(cache.fetch(hub, config))
                translator = model.width if tuned else 0
                found[each.repository] = model.layers * model.width * (model.vocabulary + translator)
                cache.release(config)
            except CheckpointError as error:
                log.warning("what a lens costs is not known for %s: %s", each.label, error.message)
                found[each.repository] = None
    return found
