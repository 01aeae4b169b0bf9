"""Make a golden store: ``python -m tests.golden.make FOLDER``. One is kept, zipped, for each layout klray has written.

``tests/test_golden.py`` opens every golden store with today's klray. A golden store is never made again: a new layout
gets a new file beside the old ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import xarray as xr

from klray.store import Column, Identity, Store, unresolved
from klray.store.columns import commit_column
from klray.texts import TextSet
from tests.stores import put_column

TEXTS = TextSet("golden", tuple(f"golden text {i} é " * (20 + i) for i in range(6)), ("prose", "code") * 3)
COLUMNS = [("org/a", step) for step in (0, 1, 512, 1000)] + [("org/b", None)]
LATER = [("org/a", 2000)]


def column(repository: str, step: int | None) -> Column:
    """A column of exact float32 values, the same in every version of klray and NumPy."""
    seed = len(repository) + ord(repository[-1]) + (step or 0)
    values = -(np.arange(len(TEXTS)) * 37 + seed * 11 % 101 + 100) / 8
    revision = "main" if step is None else f"step{step}"
    facts = {"revision": revision, "step": step, "family": "golden", "run": repository, "size": "1m", "seed": 1}
    return Column(
        identity=Identity(repository, f"{seed:040x}", TEXTS.fingerprint),
        log_likelihood=values[None],
        layers=(-1,),
        n_tokens=np.array([5, 6, 7, 8, 9, 1 if step == 0 else 10]),
        facts={**facts, "parameters": 1_000_000, "architecture": "GPTNeoXForCausalLM"},
        versions={"klray": "golden"},
        timings={"score_seconds": 1.0},
    )


def main(folder: Path) -> None:
    """Columns, a failure, an orphan, two snapshots and a result."""
    store = Store.create(str(folder), TEXTS)
    for number, each in enumerate(COLUMNS):
        assert commit_column(store.objects, put_column(store, column(*each), f"{number:032x}"))
    put_column(store, column("org/a", 1), "f" * 32)  # came second: an orphan
    gone = Identity("org/gone", unresolved("main"), TEXTS.fingerprint)
    store.record_failure(gone, "main", "repository_not_found", "no such repository", "e" * 32)
    first, _ = store.publish()
    store.write_result(first.id, "golden", xr.Dataset({"kl": (("model", "other"), np.eye(len(COLUMNS)))}))
    for number, each in enumerate(LATER):
        assert commit_column(store.objects, put_column(store, column(*each), f"{90 + number:032x}"))
    store.publish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
