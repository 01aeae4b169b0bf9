"""Stores that earlier versions of klray wrote open, and go on growing, in this one."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import klray
from klray.store import Store
from tests.golden.make import COLUMNS, LATER, TEXTS, column

ARCHIVES = sorted((Path(__file__).parent / "golden").glob("*.zip"))


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    zipfile.ZipFile(request.param).extractall(tmp_path)
    return Store.open(str(tmp_path))


def expected(columns: list[tuple[str, int | None]]) -> np.ndarray:
    return np.concatenate([column(*each).log_likelihood for each in columns]).astype(np.float32)


def test_there_is_a_golden_store_of_every_layout() -> None:
    assert [path.stem for path in ARCHIVES] == ["schema-1a", "schema-1b"]


def test_columns_and_failures_of_a_golden_store(golden: Store) -> None:
    commits = {(commit.identity.repository, commit.facts["step"]): commit for commit in golden.commits()}
    assert set(commits) == {*COLUMNS, *LATER}
    for each, commit in commits.items():
        np.testing.assert_array_equal(golden.read_column(commit), expected([each]))
    assert [(each.repository, each.reason) for each in golden.failures()] == [("org/gone", "repository_not_found")]
    found = golden.audit()
    assert (found.sound, found.damages) == (6, ())
    assert [each.kind for each in found.leftovers] == ["column"]


def test_snapshots_and_results_of_a_golden_store(golden: Store) -> None:
    first, second = golden.snapshot_ids()
    for snapshot, columns in ((first, COLUMNS), (second, COLUMNS + LATER), ("latest", COLUMNS + LATER)):
        data = klray.open_dataset(golden.url, snapshot=snapshot)
        np.testing.assert_array_equal(data["log_likelihood"].values, expected(columns))
        assert list(zip(data["repository"].values, data["step"].values, strict=True)) == [
            (repository, -1 if step is None else step) for repository, step in columns
        ]
        assert data["text_bytes"].values.tolist() == TEXTS.n_bytes.tolist()
        assert data["domain"].values.tolist() == list(TEXTS.domains)
        assert set(data["family"].values) == {"golden"} and set(data["base_model"].values) == {""}
    xr.testing.assert_equal(golden.result(first, "golden").load(), xr.Dataset({"kl": (("model", "other"), np.eye(5))}))


def test_golden_store_goes_on_growing_and_its_models_keep_their_places(golden: Store) -> None:
    assert golden.publish()[1] is False
    more = [("org/c", 1), ("org/a", 3000)]
    for each in more:
        golden.add_column(column(*each))
    manifest, new = golden.publish()
    assert new and manifest.n_models == 8
    data = golden.dataset()
    np.testing.assert_array_equal(data["log_likelihood"].values, expected(COLUMNS + LATER + more[::-1]))
    assert golden.publish() == (manifest, False)
    assert golden.audit().damages == ()
