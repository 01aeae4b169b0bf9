"""No secret is shown, logged or kept: each kind of secret at each place where words go out."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from pathlib import Path

import pytest

from klray.checkpoints import Hub
from klray.config import job
from klray.doctor import without
from klray.doctor.scoring import _hub
from klray.errors import KlrayError
from klray.report import public
from klray.store import Identity, Store
from klray.store.objects.probe import Finding
from klray.words.secrets import VARIABLES, Discreet, without_secrets
from tests.stores import TEXTS

VALUES = {name: f"{name.lower()}/of+me" for name in VARIABLES}
KINDS = {
    "user and password": ("503 for url 'https://me:hush@cdn.example/a/b@main'", "hush"),
    "signature": ("503 for url https://cdn.example/a?X-Amz-Signature=1f5e&b=2 (see <s3://b/k#frag-ment>)", "1f5e"),
    "fragment": ("see <https://hub.example/a#frag-ment>, or not", "frag-ment"),
    "header in quotes": ("Illegal header value b'Bearer odd word\\n'", "odd word"),
    "header": ("Authorization: Bearer abc.def/g, refused", "abc.def/g"),
    "basic": ("{'authorization': 'Basic Ym9iOmh1c2g='}", "Ym9iOmh1c2g="),
    "signed header": ("Authorization: AWS4-HMAC-SHA256 Credential=me/2026, Signature=1f5e", "1f5e"),
    "token of a hub": ("hf_0123456789abcdef was refused", "0123456789abcdef"),
    "id of a key": ("who is AKIAIOSFODNN7EXAMPLE?", "IOSFODNN7EXAMPLE"),
    "named by a colon": ("password: xyz-1, please", "xyz-1"),
    "named by a sign": ("HF_TOKEN=abc-2, please", "abc-2"),
    "named in quotes": ("{'aws_secret_access_key': 'def-3', 'n': 1}", "def-3"),
    "named with blanks": ("token = ghi-4", "ghi-4"),
    **{name: (f"the server does not know {value}.", value) for name, value in VALUES.items()},
}


@pytest.fixture(params=KINDS)
def said(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Words, and the secret in them."""
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)
    return KINDS[request.param]


def test_words(said: tuple[str, str]) -> None:
    words, secret = said
    shown = without_secrets(words)
    assert secret in words and secret not in shown and without_secrets(shown) == shown
    assert shown.split()[0] == words.split()[0] or "..." in shown  # what is no secret stays


def test_log(said: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    words, secret = said
    log, handler = logging.Logger("alone"), logging.StreamHandler(sys.stderr)
    handler.addFilter(Discreet())
    log.addHandler(handler)
    log.warning("%s, %d times", words, 2)
    try:
        raise KlrayError(words)
    except KlrayError:
        log.exception("it went wrong")
    told = capsys.readouterr().err
    assert secret not in told and ", 2 times" in told and "KlrayError" in told


def test_error(said: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    words, secret = said
    assert job._fail(words) == 1
    assert secret not in capsys.readouterr().err


def test_finding(said: tuple[str, str]) -> None:
    words, secret = said
    finding = without(Finding("check", "refused", words, words))
    assert secret not in finding.found + finding.cure

    def hub() -> contextlib.AbstractContextManager[Hub]:
        raise KlrayError(words)

    assert secret not in _hub(hub).found + _hub(hub).cure


def test_report(said: tuple[str, str]) -> None:
    words, secret = said
    assert secret not in public(words)


def test_record_of_a_failure(said: tuple[str, str], tmp_path: Path) -> None:
    words, secret = said
    store = Store.create(str(tmp_path), TEXTS)
    identity = Identity("org/a", "0" * 40, TEXTS.fingerprint)
    failure = store.record_failure(identity, "main", "download_failed", words, "a" * 32)
    (path,) = (tmp_path / "failures").glob("*.json")
    kept = json.loads(path.read_text())["message"]
    assert secret not in kept + failure.message and store.failures() == [failure]


def test_token_that_a_hub_was_given_is_in_no_words_of_its_errors() -> None:
    assert Hub("https://hub.example", "hush-word").said(OSError("b'hush-word' is\nno header")) == "b'...' is no header"


def test_short_secrets_take_no_words_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    assert without_secrets("a key, a test and pytest-latest") == "a key, a ... and pytest-latest"


@pytest.mark.parametrize(
    "words",
    [
        "see https://arxiv.org/abs/2505.15353 and org/model@step1000",
        "scoring.tokens_per_batch=1024, plan.bytes_per_token=4 and eos_token=0",
        "org/a was not found at https://hub.example with no token: check the spelling",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE",
    ],
)
def test_what_is_no_secret_stays(words: str) -> None:
    assert without_secrets(words) == words


@pytest.mark.parametrize("words", ["a://b:c", "a://b@", "auth-token"])
def test_words_of_a_stranger_take_as_long_as_they_are(words: str) -> None:
    """A hub's error of a megabyte took 40 minutes: each address in it was read to the end."""
    start = time.process_time()
    without_secrets(words * (400_000 // len(words)))
    assert time.process_time() - start < 30
