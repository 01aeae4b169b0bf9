"""Taking 1,018 published models of 10,000 texts into a store, from the published format."""

from __future__ import annotations

import pickle
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from klray.store import Store
from klray.store.adopted.adopting import Source, adopt
from klray.store.adopted.files import read_published
from klray.texts import TextSet

MODELS, TEXTS = 1018, 10_000


def main() -> str:
    """Seconds and memory."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(257, 1025, TEXTS)
    text_set = TextSet("pile", tuple("x" * int(size) for size in sizes), ("pile",) * TEXTS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log-likelihood_1018.pkl"
        found = {
            f"org-{n}/model-{n}": -sizes * rng.uniform(0.5, 0.7) - rng.gamma(4.0, 20.0, TEXTS) for n in range(MODELS)
        }
        path.write_bytes(pickle.dumps(found))
        del found
        start = time.perf_counter()
        file = read_published(path, TEXTS)
        read = time.perf_counter()
        store = Store.create(str(Path(folder) / "store"), text_set)
        adopted = adopt(store, file, Source("modelmap", dtype="float16"))
        written = time.perf_counter()
        store.publish()
        published = time.perf_counter()
        size = path.stat().st_size / 1e6
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        f"adopting: a pickle of {size:.0f} MB read in {read - start:.1f} s, {adopted.new:,} columns written in "
        f"{written - read:.1f} s, published in {published - written:.1f} s: {published - start:.1f} s in all, "
        f"{memory:.0f} MiB at most\n"
    )
