"""What a checkpoint of Pythia-14m's shape costs on a CPU beside its forward passes and its download, in a real sweep.

The time from one commit to the next, less the wait for the download and less the forward passes; what the scoring does
beside these (a probe of the output head) is measured on a text of 33 tokens and counts, and so does the weight sketch,
which is taken on a thread beside the forward passes and may slow them by as much as it takes.
"""

from __future__ import annotations

import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from klray.checkpoints import Hub, RepositorySpec, Selection, resolve
from klray.likelihood import loading as models
from klray.likelihood import score as likelihood
from klray.likelihood.tokens import Tokens
from klray.tiny.hub_server import local_hub
from tests.benchmarks.machine import seconds, table
from tests.benchmarks.overlap import swept
from tests.benchmarks.trajectory14m import REPOSITORY, write_run

N_CHECKPOINTS = 16
WARM = 4  # the first ones build the model and read the tokenizer


def main() -> str:
    """Measure and return the table."""
    with tempfile.TemporaryDirectory() as place:
        root = write_run(Path(place) / "hub", N_CHECKPOINTS)
        with local_hub(root) as (endpoint, token):
            hub = Hub(endpoint, token)
            checkpoints, _ = resolve(hub, Selection("bench", (RepositorySpec(REPOSITORY, "step*"),)))
            found = swept(hub, checkpoints, Path(place) / "sweep", 10**9)
        probe = _probe(root / REPOSITORY / "step0")
    each = [later - earlier for earlier, later in pairwise(found.committed)][WARM:]
    parts = {
        name: [timing[f"{name}_seconds"] for timing in found.timings][WARM + 1 :]
        for name in ("fetch", "load", "sketch", "score")
    }
    rest = [
        whole - fetch - load - score
        for whole, fetch, load, score in zip(each, parts["fetch"], parts["load"], parts["score"], strict=True)
    ]
    middle = statistics.median
    rows = [
        ("part", "median, s", "least, s"),
        (
            "load: read, copy into the model, find the tokens",
            f"{middle(parts['load']):.3f}",
            f"{min(parts['load']):.3f}",
        ),
        ("probe of the output head, and a forward of 33 tokens", f"{probe:.3f}", ""),
        ("weight sketch, beside the forward passes", f"{middle(parts['sketch']):.3f}", f"{min(parts['sketch']):.3f}"),
        ("commit, driver, eviction, start of the next", f"{middle(rest):.3f}", f"{min(rest):.3f}"),
        ("all of these", f"{middle(parts['load']) + probe + middle(parts['sketch']) + middle(rest):.3f}", ""),
        ("beside them: scoring with the probe", f"{middle(parts['score']):.3f}", f"{min(parts['score']):.3f}"),
        ("beside them: wait for the download", f"{middle(parts['fetch']):.3f}", f"{min(parts['fetch']):.3f}"),
        ("longest gap of the watch", f"{found.watch.gap:.3f}", ""),
    ]
    return table(f"One checkpoint of {N_CHECKPOINTS} in a sweep, Pythia-14m's shape, beyond its forward passes", rows)


def _probe(folder: Path) -> float:
    """Seconds that scoring takes beside its texts: of one text of 33 tokens, with one thread as in a sweep."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loaded = models.load(folder)
    # as long as the head's probe takes from a text, and nothing after it
    ids = np.arange(33, dtype=np.int32)
    encoded = Tokens(ids, np.array([0, len(ids)]))
    found = seconds(lambda: likelihood.score(loaded.model, encoded), repeats=5)
    torch.set_num_threads(threads)
    return found
