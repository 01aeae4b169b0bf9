"""Tables for other programs: what is in a snapshot and a result comes out of Parquet and CSV again."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from klray.analysis import analyze as trajectory
from klray.report.export import NEIGHBOURS, export
from klray.store import Store
from klray.store.adopted.adopting import Source, adopt
from klray.store.adopted.files import read_published
from tests.stores import column
from tests.test_adopt import TEXTS, values

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two runs and a model with a name that a spreadsheet would compute."""
    made = Store.create(str(tmp_path_factory.mktemp("export") / "store"), TEXTS)
    for run in (1, 2):
        for step in range(0, 5000, 1000):
            each = column(f"run{run}", step, TEXTS)
            each.log_likelihood[:] = values(run) + np.random.default_rng([run, step]).normal(0, 5, len(TEXTS))
            made.add_column(each)
    made.add_column(column("=1+1", None, TEXTS))
    snapshot = made.publish()[0].id
    result = trajectory.analyze(made.dataset(), exclude=["run2@step3000"], tsne=False)
    made.write_result(snapshot, "trajectory", result)
    made.write_result(snapshot, "near", trajectory.analyze(made.dataset(), pairs_kept="neighbours", tsne=False))
    return made


def tables(folder: Path) -> dict[str, dict[str, list[object]]]:
    import pyarrow.parquet as pq

    return {path.stem: pq.read_table(path).to_pydict() for path in folder.glob("*.parquet")}


@pytest.mark.parametrize("name", ["trajectory", "near"])
def test_parquet_holds_the_snapshot_and_the_result(store: Store, name: str, tmp_path: Path) -> None:
    data, result = store.dataset(), store.result(store.manifest().id, name)
    export(data, result, tmp_path, "parquet")
    found = tables(tmp_path)
    assert set(found) == {"models", "texts", "log_likelihood", "pairs"}
    rows = np.array(found["log_likelihood"]["log_likelihood"], dtype=np.float32)
    np.testing.assert_array_equal(rows, data["log_likelihood"].values)
    assert found["log_likelihood"]["model"] == found["models"]["model"] == data["model"].values.tolist()
    assert found["texts"]["bytes"] == data["text_bytes"].values.tolist()
    assert found["texts"]["kept"] == result["text_kept"].values.tolist()
    for each in ("key", "step", "family"):
        assert found["models"][each] == data[each].values.tolist()
    np.testing.assert_array_equal(found["models"]["consecutive_kl"], result["consecutive_kl"].values)
    np.testing.assert_array_equal(np.transpose([found["models"][each] for each in "xy"]), result["map_pca"].values)
    per_byte = (
        -data["log_likelihood"].values.mean(axis=1, dtype=np.float64) / np.log(2) / data["text_bytes"].values.mean()
    )
    np.testing.assert_allclose(found["models"]["bits_per_byte"], per_byte)
    at = {label: place for place, label in enumerate(data["model"].values)}
    pairs = found["pairs"]
    if name == "trajectory":
        first, second = ([at[each] for each in pairs[side]] for side in ("model", "other"))
        assert len(first) == len(at) * (len(at) - 1) // 2
        for column_of in ("kl", "kl_standard_error"):
            np.testing.assert_array_equal(pairs[column_of], result[column_of].values[first, second])
    _check_neighbours(found["models"]["neighbors"], result)


def _check_neighbours(found: list[object], result: xr.Dataset) -> None:
    """Positions of rows and KL, ascending: as Embedding Atlas asks for them."""
    excluded = result["excluded"].values
    for model, each in enumerate(found):
        assert isinstance(each, dict)
        ids, distances = each["ids"], each["distances"]
        assert distances == sorted(distances) and model not in ids and not excluded[ids].any()
        if excluded[model]:
            assert ids == []
        elif "kl" in result:
            kl = np.where(excluded, np.inf, result["kl"].values[model])
            kl[model] = np.inf
            assert len(ids) == min(NEIGHBOURS, int(np.isfinite(kl).sum()))
            np.testing.assert_array_equal(distances, np.sort(kl)[: len(ids)])


def test_csv_says_the_same_and_computes_nothing(store: Store, tmp_path: Path) -> None:
    data, result = store.dataset(), store.result(store.manifest().id, "trajectory")
    export(data, result, tmp_path, "csv")
    with (tmp_path / "models.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["bits_per_byte"]) > 0 for row in rows] == [True] * len(rows)
    assert [row["model"] for row in rows] == data["model"].values.tolist() and json.loads(rows[1]["neighbors"])["ids"]
    (tmp_path / "t").mkdir()
    renamed = data.assign_coords(model=["=cmd|' /C calc'!A0", *data["model"].values[1:]])
    export(renamed, None, tmp_path / "t", "csv")
    assert "\n'=cmd" in (tmp_path / "t" / "models.csv").read_text()
    with (tmp_path / "log_likelihood.csv").open(newline="") as file:
        header, first = next(reader := csv.reader(file)), next(reader)
    assert header[:3] == ["model", "key", "log_likelihood_0"]
    np.testing.assert_array_equal(np.array(first[2:], dtype=np.float32), data["log_likelihood"].values[0])


def test_an_export_is_adopted_by_a_store_of_its_texts_alone(store: Store, tmp_path: Path) -> None:
    export(store.dataset(), None, tmp_path, "parquet")
    file = read_published(tmp_path / "log_likelihood.parquet", len(TEXTS))
    assert file.text_set == TEXTS.fingerprint
    other = Store.create(str(tmp_path / "other"), TEXTS)
    assert adopt(other, file, Source("elsewhere")).new == 11
    other.publish()
    both = (np.sort(each.dataset()["log_likelihood"].values[:, 0]) for each in (store, other))
    np.testing.assert_array_equal(*both)
