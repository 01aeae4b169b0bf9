"""The probe of a store's place: what it accepts and refuses, on real servers and on one that keeps no promises."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from klray.errors import StoreError
from klray.store import Store
from klray.store.columns import commit_column
from klray.store.objects import open_objects
from klray.store.objects.probe import Finding, probe
from tests.careless_s3 import CarelessS3, careless_s3
from tests.s3_server import CREDENTIALS
from tests.stores import EVERY_PLACE, TEXTS, column, put_column

URL = "s3://bucket/some/store"


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)


@pytest.fixture
def ignoring(monkeypatch: pytest.MonkeyPatch) -> Iterator[CarelessS3]:
    with careless_s3("ignored") as server:
        use(monkeypatch, server.endpoint)
        yield server


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> Iterator[CarelessS3]:
    with careless_s3("kept") as server:
        use(monkeypatch, server.endpoint)
        yield server


def probed(server: CarelessS3, url: str = URL) -> dict[str, Finding]:
    # the endpoint is in the options too, because s3fs hands out one file system again for the same options
    findings = list(probe(open_objects(url, {"endpoint_url": server.endpoint})))
    return {finding.check.removeprefix("store: "): finding for finding in findings}


@EVERY_PLACE
def test_places_that_keep_their_promises_are_accepted_and_left_as_they_were(place: str, tmp_path: Path) -> None:
    objects = open_objects(place)
    findings = list(probe(objects))
    assert [finding.verdict for finding in findings] == ["ok"] * 9, findings
    assert [finding.check.removeprefix("store: ") for finding in findings] == [
        "write",
        "read after write",
        "overwrite",
        "create, one after another",
        "create, 16 at once",
        "listing",
        "clock",
        "latency",
        "removal",
    ]
    assert objects.walk("") == {}
    assert list(tmp_path.iterdir()) == [], "a folder that was not there is not left there"


def test_folder_that_was_there_stays_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "probes" / "of another").mkdir(parents=True)
    list(probe(open_objects(str(tmp_path))))
    assert [path.name for path in tmp_path.rglob("*")] == ["probes", "of another"]


def test_server_that_ignores_the_condition_is_refused(ignoring: CarelessS3) -> None:
    findings = probed(ignoring)
    turn, race = findings["create, one after another"], findings["create, 16 at once"]
    assert (turn.verdict, race.verdict) == ("refused", "refused")
    assert "a second create of one key was told" in turn.found
    assert "16 of 16 concurrent creates of one key" in race.found
    assert "two jobs could overwrite" in race.found
    assert "another S3 server, or a newer version" in race.cure and "store.single_writer=true" in race.cure
    others = [finding.verdict for name, finding in findings.items() if not name.startswith("create")]
    assert others == ["ok"] * 7
    assert ignoring.objects == {}


def test_server_that_looks_and_then_writes_is_refused_for_its_race(monkeypatch: pytest.MonkeyPatch) -> None:
    with careless_s3("raced") as server:
        use(monkeypatch, server.endpoint)
        findings = probed(server)
    assert findings["create, one after another"].verdict == "ok"
    assert findings["create, 16 at once"].verdict == "refused"
    assert "of 16 concurrent creates of one key" in findings["create, 16 at once"].found


def test_the_same_server_is_accepted_when_it_keeps_the_condition(keeping: CarelessS3) -> None:
    assert {finding.verdict for finding in probed(keeping).values()} == {"ok"}


def test_store_on_a_careless_server_is_refused_before_anything_is_written(ignoring: CarelessS3) -> None:
    options = {"endpoint_url": ignoring.endpoint}
    with pytest.raises(StoreError, match=r"a second create of one key") as told:
        Store.create(URL, TEXTS, options)
    assert "set store.single_writer=true" in str(told.value)
    assert ignoring.objects == {}
    ignoring.conditions = "raced"
    with pytest.raises(StoreError, match=r"\d+ of 16 concurrent creates"):
        Store.create(URL, TEXTS, options)
    assert ignoring.objects == {}


def test_single_writer_can_use_a_careless_server(ignoring: CarelessS3) -> None:
    store = Store.create(URL, TEXTS, {"endpoint_url": ignoring.endpoint}, single_writer=True)
    written = column("a", 1)
    assert commit_column(store.objects, put_column(store, written, attempt="1" * 32))
    assert not commit_column(store.objects, put_column(store, written, attempt="2" * 32)), (
        "one after another, the first stands"
    )
    (commit,) = store.commits()
    assert commit.attempt == "1" * 32
    store.publish()
    values = Store.open(URL, {"endpoint_url": ignoring.endpoint}).dataset()["log_likelihood"].values
    np.testing.assert_array_equal(values, written.log_likelihood.astype(np.float32))


@pytest.mark.parametrize(
    ("ahead", "verdict", "words"),
    [
        (timedelta(seconds=30), "ok", "ahead of this machine's"),
        (timedelta(minutes=5), "warning", "5 min ahead of this machine's"),
        (timedelta(minutes=-5), "warning", "5 min behind this machine's"),
        (timedelta(hours=2), "refused", "120 min ahead of this machine's"),
    ],
)
def test_clock_that_is_wrong_is_found(keeping: CarelessS3, ahead: timedelta, verdict: str, words: str) -> None:
    keeping.clock, keeping.lenient = ahead, True
    found = probed(keeping)["clock"]
    assert found.verdict == verdict and words in found.found
    assert verdict == "ok" or "by NTP" in found.cure


def test_clock_so_wrong_that_signatures_are_refused_is_named(keeping: CarelessS3) -> None:
    keeping.clock = timedelta(hours=2)
    (finding,) = probed(keeping).values()
    assert finding.verdict == "refused" and "over 15 min apart" in finding.found and "NTP" in finding.cure


def test_credentials_that_are_wrong_or_may_not_write_are_named_plainly(
    keeping: CarelessS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping.denied = {"PUT"}
    (finding,) = probed(keeping).values()
    assert finding.verdict == "refused" and "was refused (403, AccessDenied" in finding.found
    assert "the bucket's policy allows this" in finding.cure
    keeping.denied = set()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    url = {"endpoint_url": keeping.endpoint, "default_block_size": 2**20}  # another file system, with these credentials
    (finding,) = probe(open_objects(URL, url))
    assert finding.verdict == "refused" and "InvalidAccessKeyId" in finding.found


def test_bucket_that_is_not_there_is_named(keeping: CarelessS3) -> None:
    (finding,) = probed(keeping, "s3://other/store").values()
    assert (finding.verdict, finding.cure) == ("refused", "create it first")
    assert "there is no such bucket" in finding.found


def test_what_may_not_be_removed_is_a_warning(keeping: CarelessS3) -> None:
    keeping.denied = {"POST", "DELETE"}
    findings = probed(keeping)
    assert {name for name, finding in findings.items() if finding.verdict != "ok"} == {"removal"}
    assert (
        findings["removal"].verdict == "warning" and "remove s3://bucket/some/store/probes/" in findings["removal"].cure
    )
    store = Store.create(URL, TEXTS, {"endpoint_url": keeping.endpoint})
    assert store.committed_keys() == set(), "left probes do not make a place another's"


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (finding,) = [each for each in probe(open_objects(str(tmp_path / "file" / "store"))) if each.verdict != "ok"]
    assert finding.verdict == "refused" and "Not a directory" in finding.found
