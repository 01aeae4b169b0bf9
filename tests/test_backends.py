"""S3 through s3fs and through obstore: the same promises, the same words, the same stores."""

from __future__ import annotations

import json
import logging
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from klray import config as configs
from klray.config import Backend, StoreConfig
from klray.errors import Pauses, StoreError, StoreUnreachableError
from klray.store import Store
from klray.store.objects import Objects, open_objects
from tests.careless_s3 import CarelessS3, careless_s3
from tests.s3_server import CREDENTIALS
from tests.stores import N_TEXTS, TEXTS, add, column
from tests.test_cli import klray

pytestmark = pytest.mark.slow

URL = "s3://bucket/some/store"
BACKENDS = ("s3fs", "obstore")
ODD = "odd/a b+c=d&e~f'g#h%25é.json"

Open = Callable[..., Objects]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[CarelessS3]:
    with careless_s3("kept") as running:
        for name, value in {
            **CREDENTIALS,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": running.endpoint,
        }.items():
            monkeypatch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("klray.store.objects.bucket.PAUSES", Pauses(0.001, 8, 0.0))
        yield running


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


def opened(backend: str = "obstore", url: str = URL, **options: object) -> Objects:
    return open_objects(url, {"backend": backend, **options})


def refusals(work: Callable[[Objects], object], url: str = URL, both: dict[str, Objects] | None = None) -> list[str]:
    """What each backend says, of ``both``, or opened anew."""
    said = []
    for backend in BACKENDS:
        with pytest.raises(StoreError) as told:
            work(both[backend] if both else opened(backend, url))
        said.append(str(told.value))
    return said


def test_both_give_the_same_answers(s3_url: str) -> None:
    first, second = (opened(backend, s3_url) for backend in BACKENDS)
    bodies = {f"many/{number:03d}/x": b"%d" % number * number for number in range(100)}
    second.put_many({**bodies, ODD: b"odd", "many.json": b"beside"})
    keys = [*bodies, "many/none", ODD, "many"]
    expected = [*bodies.values(), None, b"odd", None]
    for objects in (first, second):
        assert list(objects.get_many(keys)) == expected
        assert objects.names("") == ["many", "many.json", "odd"] and objects.names("many")[:2] == ["000", "001"]
        assert objects.names("many.json") == objects.names("nothing") == []
        assert list(objects.walk("many")) == sorted(bodies) and list(objects.walk("odd")) == [ODD]
        assert objects.walk("nothing") == objects.fingerprints("nothing") == {}
    # as far as this server has them: some give whole seconds when asked for one object
    for prefix in ("", "many", "many.json"):
        assert first.fingerprints(prefix) == second.fingerprints(prefix)
    assert {key: time.replace(microsecond=0) for key, time in first.walk("").items()} == {
        key: time.replace(microsecond=0) for key, time in second.walk("").items()
    }
    assert all(
        time.utcoffset().total_seconds() == 0 for time in second.walk("").values() if time.utcoffset() is not None
    )
    second.delete_tree("many.json")
    second.delete_tree("many/000")
    second.delete_tree("nothing")
    assert len(first.walk("many")) == 99 and first.get("many.json") is None and first.get(ODD) == b"odd"
    assert second.endpoint == first.endpoint != ""


def test_listing_goes_on_over_pages(s3_url: str) -> None:
    keys = [f"pages/{number:04d}" for number in range(1001)]
    opened(url=s3_url).put_many(dict.fromkeys(keys, b""))
    for backend in BACKENDS:
        objects = opened(backend, s3_url)
        assert list(objects.walk("pages")) == keys and len(objects.walk("")) == 1001


def test_object_is_copied_only_while_it_is_what_it_was(s3_url: str) -> None:
    objects = opened(url=s3_url)
    objects.put("a/source", b"one")
    before = objects.fingerprints("a")["a/source"]
    assert objects.copy("a/source", "b/target", before) and objects.get("b/target") == b"one"
    objects.put("a/source", b"two")
    assert not objects.copy("a/source", "c/target", before) and objects.get("c/target") is None
    assert not objects.copy("a/none", "c/target", before)


def test_large_object_goes_up_in_parts(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("klray.store.objects.s3_obstore.PARTS_ABOVE_BYTES", 2**20)
    body = np.random.default_rng(0).bytes(6 * 2**20)
    objects = opened(url=s3_url)
    objects.put("large/body", body)
    assert objects.get("large/body") == body and "-" in objects.fingerprints("large")["large/body"]


def test_store_of_one_backend_is_continued_by_the_other(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("klray.store.publishing.CHUNK_BYTES", 4 * N_TEXTS * 2)  # two models a chunk
    columns = [column("a", step) for step in range(6)]
    for number, backend in enumerate(("s3fs", "obstore", "s3fs")):
        store = Store.create(s3_url, TEXTS, {"backend": backend})
        add(store, *columns[2 * number : 2 * number + 2])
        assert store.publish()[0].n_models == 2 * number + 2
    assert "could not be copied" not in caplog.text
    for backend in BACKENDS:
        store = Store.open(s3_url, {"backend": backend})
        values = np.concatenate([each.log_likelihood for each in columns]).astype(np.float32)
        np.testing.assert_array_equal(store.dataset()["log_likelihood"].values, values)
        assert store.audit().damages == ()


def test_objects_can_be_sent_to_another_process_and_asked_by_many_threads(s3_url: str) -> None:
    objects = opened(url=s3_url)
    objects.put("a", b"body")
    copy = pickle.loads(pickle.dumps(objects))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: list(copy.get_many(["a", "b"])), range(20))) == [[b"body", None]] * 20


def test_both_refuse_in_the_same_words(server: CarelessS3, monkeypatch: pytest.MonkeyPatch) -> None:
    both, elsewhere = ({each: opened(each, url) for each in BACKENDS} for url in (URL, "s3://other/store"))
    server.denied = {"PUT", "DELETE", "POST"}
    server.objects["some/store/a/b"] = (b"", server.now())
    for work in (lambda each: each.put("a/b", b""), lambda each: each.delete_tree("a")):
        first, second = refusals(work, both=both)
        assert first == second
        assert "a/b was refused (403, AccessDenied)" in first
    server.objects["some/store/commits/b"] = server.objects["some/store/failures/b"] = (b"", server.now())
    for work, takes in (
        (lambda each: each.put("commits/b", b""), "write this takes the role writer or curator"),
        (lambda each: each.put_many({"snapshots/b": b""}), "write this takes the role publisher or curator"),
        (lambda each: each.delete_tree("commits"), "delete this takes the role curator"),
        (lambda each: each.delete_tree("failures"), "delete this takes the role writer or curator"),
    ):
        first, second = refusals(work, both=both)
        assert first == second and first.endswith(f"to {takes} (infra/README.md)")
    server.denied = {"GET", "HEAD"}
    first, second = refusals(lambda each: each.names("a"), both=both)
    assert first == second and "the role reader, writer, publisher or" in first
    for work in (lambda each: each.get("a/b"), lambda each: each.walk("a"), lambda each: each.names("a")):
        first, second = refusals(work, both=both)
        assert first == second and "was refused (403, AccessDenied)" in first
    server.denied = set()
    first, second = refusals(lambda each: each.conditional_put("a", b""), both=elsewhere)
    assert first == second and "s3://other/store: there is no such bucket" in first
    for look in (lambda each: each.walk("a"), lambda each: each.names("a"), lambda each: each.get("a")):
        first, second = refusals(look, both=elsewhere)
        assert first == second and "s3://other/store: there is no such bucket" in first
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    first, second = refusals(lambda each: each.create("a", b""))
    assert first == second and "was refused (403, InvalidAccessKeyId)" in first


@pytest.mark.parametrize(
    ("seconds", "why"), [("", "the login of the day is over"), ("-5", "refreshed credentials are still expired")]
)
def test_credentials_that_lapse_are_refused_at_once_in_the_same_words(
    server: CarelessS3,
    no_credentials: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    seconds: str,
    why: str,
) -> None:
    """They come from a program that is asked for new ones when they have less than ten minutes to go."""
    keys = {"Version": 1, "AccessKeyId": CREDENTIALS["AWS_ACCESS_KEY_ID"], "SecretAccessKey": "x", "SessionToken": "y"}
    given = tmp_path / "given"

    def give(lasts: float) -> None:
        given.write_text(json.dumps({**keys, "Expiration": (datetime.now(UTC) + timedelta(seconds=lasts)).isoformat()}))

    command = f"sh -c 'cat {given} || {{ echo the login of the day is over >&2; exit 1; }}'"
    (tmp_path / "config").write_text(f"[profile x]\ncredential_process = {command}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "x")
    give(300)
    both = {each: opened(each) for each in BACKENDS}
    for each in both.values():
        each.put("a", b"")
    given.unlink()
    if seconds:
        give(float(seconds))
    until = time.monotonic() + 30  # obstore asks again after 0.1 s

    def put(each: Objects) -> None:
        while time.monotonic() < until:
            each.put("a", b"")

    first, second = refusals(put, both=both)
    assert first == second and "the S3 credentials have lapsed (" in first and why in first
    assert not any(each.exc_info or each.name == "klray" for each in caplog.records)


def test_without_credentials_writers_are_refused_and_readers_are_anonymous(
    server: CarelessS3, no_credentials: None, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = refusals(lambda each: each.put("a", b""))
    assert first == second and "set AWS_ACCESS_KEY_ID and" in first
    caplog.set_level(logging.INFO, "klray")
    first, second = refusals(lambda each: each.get("a"))
    assert first == second and "(this was asked anonymously)" in first
    assert caplog.text.count(f"reading {URL} anonymously") == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_whether_requests_are_signed_is_decided_once_for_each_opening(
    server: CarelessS3, no_credentials: None, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    server.objects["some/store/a"] = (b"body", server.now())
    before = opened(backend)
    for _ in range(2):
        with pytest.raises(StoreError, match="this was asked anonymously"):
            before.get("a")
        with pytest.raises(StoreError, match="no S3 credentials were found; set"):
            before.put("a", b"")
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
    for after in (opened(backend), pickle.loads(pickle.dumps(before))):
        assert after.get("a") == b"body"


def test_profile_that_is_not_there_is_named(server: CarelessS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody's")
    first, second = refusals(lambda each: each.get("a"))
    assert first == second and "profile (nobody's) could not be found; check AWS_PROFILE" in first


@pytest.mark.parametrize("backend", BACKENDS)
def test_busy_server_is_asked_again_once_each_time(
    server: CarelessS3, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    objects = opened(backend)
    server.busy = [(503, "SlowDown"), (409, "ConditionalRequestConflict"), (429, "TooMany"), (500, "InternalError")]
    assert objects.conditional_put("a", b"body")
    assert server.requests == 5 and server.objects["some/store/a"][0] == b"body"
    (message,) = caplog.messages
    assert f"store {URL}: the server is busy (503, SlowDown)" in message
    server.busy = [(408, "X"), (502, "BadGateway"), (504, "GatewayTimeout"), (400, "RequestTimeout"), (502, "X")]
    assert objects.get("a") == b"body" and server.requests == 11 and len(caplog.messages) == 2


@pytest.mark.parametrize("answer", [(503, "SlowDown"), (502, "BadGateway"), (400, "RequestTimeout")])
def test_server_that_stays_busy_is_named_with_its_answer(server: CarelessS3, answer: tuple[int, str]) -> None:
    server.busy = [answer] * 16
    first, second = refusals(lambda each: each.get("a"))
    assert first == second and server.requests == 16
    words = f"store {URL}: the server is busy: for bucket/some/store/a it answered {answer[0]}, {answer[1]} after 8 att"
    assert first.startswith(words)


def test_refusals_that_no_credentials_mend_say_what_does(server: CarelessS3) -> None:
    both = {backend: opened(backend) for backend in BACKENDS}
    for answer, words in (
        ((301, "PermanentRedirect"), f"store {URL}: S3 has this bucket in another region (301, PermanentRedirect); "),
        ((400, "AuthorizationHeaderMalformed"), "another region (400, AuthorizationHeaderMalformed); set AWS_DEFAULT_"),
        ((403, "RequestTimeTooSkewed"), "(403, RequestTimeTooSkewed); set the clock of this machine by NTP"),
        ((403, "QuotaExceeded"), "(403, QuotaExceeded): the server has no room, or none for you; make room"),
        ((507, "XMinioStorageFull"), "(507, XMinioStorageFull): the server has no room"),
    ):
        for work in (lambda each: each.put("a", b""), lambda each: each.get("a"), lambda each: each.walk("a")):

            def asked(objects: Objects, work: Callable[[Objects], object] = work, answer: Any = answer) -> None:
                server.busy = [answer] * 9  # botocore asks more than once where a bucket is when it is redirected
                work(objects)

            first, second = refusals(asked, both=both)
            assert first == second and words in first and "credentials" not in first


def test_error_without_words_is_named_by_its_type(server: CarelessS3, monkeypatch: pytest.MonkeyPatch) -> None:
    def reset(_: str, most: int) -> bytes:
        raise ConnectionResetError

    objects = opened()
    monkeypatch.setattr(objects, "_fetch", reset)
    with pytest.raises(StoreUnreachableError, match=r"did not answer \(ConnectionResetError\)"):
        objects.get("a")


def test_create_whose_answer_was_lost_is_known_by_its_body(server: CarelessS3) -> None:
    objects = opened()
    server.lost = 1
    assert objects.conditional_put("a", b"mine")
    assert not objects.conditional_put("a", b"another's")
    assert objects.get("a") == b"mine"


def test_server_that_does_not_answer_is_named(server: CarelessS3) -> None:
    objects = opened(endpoint_url="http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9/.*\); check AWS_ENDPOINT_URL"):
        objects.get("a")


def test_profile_says_who_and_where(
    server: CarelessS3, no_credentials: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key, secret = CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"]
    lines = (
        f"aws_access_key_id={key}\naws_secret_access_key={secret}\nregion=eu-west-1\nendpoint_url={server.endpoint}\n"
    )
    (tmp_path / "config").write_text(f"[profile lab]\n{lines}")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    opened(profile="lab").put("a", b"by option")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert opened().get("a") == b"by option"


def test_options_and_backends_that_mean_nothing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"client_kwargs\.verify, default_block_size, .*store\.ba"):
        opened(default_block_size=1, client_kwargs={"verify": False, "region_name": "eu-west-1"}, anon=True)
    with pytest.raises(StoreError, match=r"store\.backend=boto: .*s3fs or obstore"):
        opened("boto")
    monkeypatch.delitem(sys.modules, "klray.store.objects.s3_obstore", raising=False)
    for name in ("obstore", "obstore.store"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(StoreError, match=r"needs obstore: pip install 'klray\[obstore\]'"):
        opened()


def test_config_chooses_for_every_opener(
    server: CarelessS3, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert configs.storage_options(StoreConfig()) == {"backend": "s3fs"}
    chosen = StoreConfig(backend=Backend.obstore, storage_options={"anon": True})
    assert configs.storage_options(chosen) == {"backend": "obstore", "anon": True}
    store = Store.create(URL, TEXTS)
    add(store, column("a", 1))
    words = ["status", f"store.url={URL}", "store.backend=obstore"]
    code, out, errors = klray(capfd, monkeypatch, *words)
    assert code == 0 and "fam" in out, errors
    code, _, errors = klray(capfd, monkeypatch, *words, "+store.storage_options.default_block_size=1")
    assert code != 0 and "mean nothing with store.backend=obstore" in errors


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("http://me:ge/heim@host:1", "...@host:1"),
        ("http://me:geheim @host", "...@host"),
        ("me:geheim@host", "...@host"),
        ("http://me:geheim@host:port", "...@host:port"),
        ("http://me:gehé@host", "...@host"),
        ("http://host/?key=geheim", "http://host/"),
        ("127.0.0.1:9000", "127.0.0.1:9000"),
        ("http://a_b:1", "http://a_b:1"),
        ("http://host:99999", "http://host:99999"),
    ],
)
def test_endpoint_that_is_no_address_is_named_without_its_password(
    server: CarelessS3, monkeypatch: pytest.MonkeyPatch, backend: str, endpoint: str, shown: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StoreError) as told:
        opened(backend)
    assert f"(or endpoint_url of the profile) is {shown!r}" in str(told.value)
    with pytest.raises(StoreError, match=r"^store\.storage_options\.endpoint_url is ") as told:
        opened(backend, endpoint_url=endpoint)
    assert "geh" not in str(told.value)


@pytest.mark.parametrize("endpoint", ["https://me:w%C3%A9@s3.example.org:9000/a", "http://[::1]:9000", "http://h"])
def test_endpoint_that_is_an_address_is_taken(server: CarelessS3, endpoint: str) -> None:
    assert [opened(backend, endpoint_url=endpoint).endpoint for backend in BACKENDS] == [endpoint] * 2
