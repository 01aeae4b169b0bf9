"""What the tests of the store put into one: a text set, and columns whose values follow from their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from klray.store import Column, Identity, Store
from klray.store.columns import Commit, commit_column, encode_column
from klray.store.objects import FolderObjects
from klray.texts import TextSet

# For a test whose subject is what a place promises: conditional creation, listing, errors, what a reader sees.
EVERY_PLACE = pytest.mark.parametrize(
    "place",
    ["folder", *(pytest.param(name, marks=pytest.mark.slow) for name in ("s3", "obstore"))],
    indirect=True,
)

# For a test of what lies at a place, which klray does in another way on a server than in a folder.
ON_S3_TOO = pytest.mark.parametrize("place", ["folder", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)

N_TEXTS = 12
TEXTS = TextSet("test", tuple(f"text {i} " * 40 for i in range(N_TEXTS)), tuple("ab"[i % 2] for i in range(N_TEXTS)))


def column(name: str, step: int | None = None, text_set: TextSet = TEXTS, **facts: object) -> Column:
    identity = Identity(f"org/{name}", f"{step if step is not None else 0:040x}", text_set.fingerprint)
    values = np.random.default_rng([len(name), step or 0]).normal(-500, 100, (1, len(text_set)))
    n_tokens = np.full(len(text_set), 7)
    revision = "main" if step is None else f"step{step}"
    return Column(
        identity,
        values,
        (-1,),
        n_tokens,
        {"revision": revision, "step": step, "family": "fam", "run": f"org/{name}", "parameters": 10, **facts},
        {"klray": "test"},
        {"score_seconds": 1.0},
    )


def put_column(store: Store, column: Column, attempt: str) -> Commit:
    """What a writer has done that is about to commit; one that dies now leaves an orphan."""
    bodies, commit = encode_column(column, attempt)
    store.objects.put_many(bodies)
    return commit


def create_one(arguments: tuple[str, int]) -> bool:
    """Whether this process was the one to create an object below a folder; what is in it says who was."""
    root, number = arguments
    return FolderObjects(Path(root)).create("commits/one.json", f"attempt {number}".encode() * 1000)


def add(store: Store, *columns: Column) -> None:
    for number, each in enumerate(columns):
        assert commit_column(store.objects, put_column(store, each, attempt=f"{number:032x}"))


def change(store: Store, key: str, before: str, after: str) -> None:
    """Another text in place of one in an object."""
    path = Path(store.url) / key
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


def assert_holds(store: Store, *columns: Column) -> None:
    data = store.dataset().load()
    expected = np.concatenate([each.log_likelihood for each in columns]).astype(np.float32)
    np.testing.assert_array_equal(data["log_likelihood"].values, expected)
    assert data["key"].values.tolist() == [each.identity.key for each in columns for _ in each.layers]
    assert data["layer"].values.tolist() == [layer for each in columns for layer in each.layers]
