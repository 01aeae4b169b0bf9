"""klray doctor: what it finds on real servers, what it says, and how soon it gives up."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from klray import doctor
from klray.checkpoints import Hub
from klray.doctor import _dask, _store, bounded
from klray.doctor.scoring import Cluster, _cluster, _device, _disk, _hub
from klray.errors import KlrayError
from klray.store.objects.probe import Finding
from klray.sweep.cluster import Resources, Shape
from klray.sweep.settings import RaySettings, ScoringSettings
from klray.tiny.hub_server import HubServer
from klray.tiny.routes import HubHandler
from tests.careless_s3 import CarelessS3, careless_s3
from tests.hub_faults import FaultyHub
from tests.s3_server import CREDENTIALS
from tests.test_cli import klray
from tests.test_probe import URL, use

pytestmark = pytest.mark.slow


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on, and that nobody else can take meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where connections are accepted and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[CarelessS3]:
    with careless_s3("kept") as server:
        use(monkeypatch, server.endpoint)
        yield server


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    root = tmp_path / "hub"
    root.mkdir()
    with HubServer(root) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


def asked(hub: Hub) -> Finding:
    return _hub(lambda: contextlib.nullcontext(hub))


def store_verdicts(port: int, backend: str = "s3fs") -> list[Finding]:
    return list(_store(URL, {"endpoint_url": f"http://127.0.0.1:{port}", "backend": backend}))


def test_where_all_is_well_the_answer_is_0_and_no_secret_is_said(
    server: CarelessS3,
    hub: HubServer,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = f"+store.storage_options.endpoint_url={server.endpoint}"
    words = ["doctor", f"store.url={URL}", options, f"scoring.cache_dir={tmp_path}", "scoring.cache_gigabytes=0.001"]
    code, out, errors = klray(capfd, monkeypatch, *words, "scoring.dtype=bfloat16")  # a warning on a CPU
    rows = {line[:32].strip(): line.split("  ") for line in out.splitlines() if line[:32].strip()}
    assert code == 0, out + errors
    assert list(rows)[2:] == [
        "libraries",
        "Ray",
        "device",
        "disk",
        "hub",
        "Dask",
        "store: write",
        "store: read after write",
        "store: overwrite",
        "store: create, one after another",
        "store: create, 16 at once",
        "store: listing",
        "store: clock",
        "store: latency",
        "store: removal",
    ]
    assert "the token is local's" in " ".join(out.split()) and "a cluster of this machine" in out
    assert "checking the store" in errors
    for secret in (*CREDENTIALS.values(), hub.token):
        assert secret not in out + errors
    server.conditions = "ignored"
    code, out, _ = klray(capfd, monkeypatch, *words)
    assert code == 1 and "store.single_writer=true" in out
    for secret in (*CREDENTIALS.values(), hub.token):
        assert secret not in out
    code, out, _ = klray(capfd, monkeypatch, *words, "store.single_writer=true")
    assert code == 0 and "keep to store.single_writer=true" in out


def test_store_that_is_not_named_is_skipped_and_foreign_schemes_are_refused() -> None:
    (skipped,) = _store(None, {})
    assert (skipped.verdict, skipped.found) == ("skipped", "no store was named")
    (refused,) = _store("gs://bucket", {})
    assert refused.verdict == "refused" and "not gs://" in refused.found + refused.cure


@pytest.mark.parametrize("backend", ["s3fs", "obstore"])
def test_store_where_nobody_is_is_refused_at_once(server: CarelessS3, closed_port: int, backend: str) -> None:
    (finding,) = store_verdicts(closed_port, backend)
    assert "has not answered within" not in finding.found  # as it is when the doctor's patience ends
    assert finding.verdict == "refused" and f"http://127.0.0.1:{closed_port} does not answer" in finding.found
    assert "refused" in finding.found and finding.cure == "check AWS_ENDPOINT_URL and the network"


@pytest.mark.parametrize("backend", ["s3fs", "obstore"])
def test_store_that_says_nothing_is_given_up(
    server: CarelessS3, silent_port: int, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr("klray.doctor.PATIENCE_SECONDS", 1.0)
    (finding,) = store_verdicts(silent_port, backend)
    assert finding.verdict == "refused" and finding.found == f"{URL} has not answered within 1 s"


def test_credentials_that_are_missing_are_named(server: CarelessS3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    (finding,) = _store(URL, {"endpoint_url": server.endpoint})
    assert finding.verdict == "refused" and "no S3 credentials were found" in finding.found
    assert "set AWS_ACCESS_KEY_ID" in finding.cure


def test_hub_says_whose_the_token_is(hub: HubServer) -> None:
    finding = asked(Hub.from_environment())
    assert finding.verdict == "ok" and finding.found.startswith(f"{hub.endpoint} answers in ")
    assert finding.found.endswith("; the token is local's")
    assert hub.requests["whoami"] == 1


def test_hub_that_refuses_the_token_is_named_without_it(hub: HubServer) -> None:
    finding = asked(Hub(hub.endpoint, "hf_wrongtoken"))
    assert finding.verdict == "refused" and "refuses the token given (HTTP 401)" in finding.found
    assert finding.cure == "set HF_TOKEN to a valid token"
    broken = asked(Hub(hub.endpoint, "hf_bro\nken"))
    assert broken.verdict == "refused" and "Illegal header value b'Bearer ...'" in broken.found


def test_hub_that_counts_requests_is_quoted(tmp_path: Path) -> None:
    class Counting(HubHandler):
        def send_head(self, status: Any, kind: str, size: int, headers: dict[str, str]) -> None:
            limits = {"RateLimit": '"api";r=432;t=55', "RateLimit-Policy": '"fixed window";"api";q=1000;w=300'}
            super().send_head(status, kind, size, headers | limits)

    class CountingHub(HubServer):
        handler = Counting

    with CountingHub(tmp_path) as server:
        finding = asked(Hub(server.endpoint, server.token))
    assert finding.verdict == "ok" and finding.found.endswith("432 of 1,000 requests in 300 s are left")
    with FaultyHub(tmp_path, busy=1) as server:
        finding = asked(Hub(server.endpoint, server.token))
    assert finding.verdict == "warning" and "0 of 500 requests in 300 s are left" in finding.found


def test_hub_that_is_not_there_says_nothing_or_is_none(
    closed_port: int, silent_port: int, server: CarelessS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("klray.checkpoints.hub.CONTACT_SECONDS", 0.5)
    for endpoint, words in (
        (f"http://127.0.0.1:{closed_port}", "did not answer as a model hub (ConnectError"),
        (f"http://127.0.0.1:{silent_port}", "did not answer as a model hub (ReadTimeout"),
        (f"http://user:pass-word@127.0.0.1:{closed_port}", "did not answer as a model hub (ConnectError"),
        (server.endpoint, "refuses a request without a token (HTTP 403)"),
    ):
        finding = asked(Hub(endpoint))
        assert finding.verdict == "refused" and words in finding.found, finding
        assert "pass-word" not in finding.found


def test_hub_that_cannot_be_opened_is_refused() -> None:
    @contextlib.contextmanager
    def opening() -> Iterator[Hub]:
        raise KlrayError("models.recipe=huge: choose default or smallest")
        yield Hub("")

    assert _hub(opening) == Finding("hub", "refused", "models.recipe=huge", "choose default or smallest")


def test_ray_where_nobody_is_is_refused_at_once(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("klray.sweep.cluster.ray.init", lambda **_: pytest.fail("Ray would wait for two minutes"))
    for address in (f"127.0.0.1:{closed_port}", "auto"):
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
        finding, cluster = _cluster(RaySettings(address=address), ScoringSettings(), contextlib.nullcontext, None)
        assert finding.verdict == "refused" and cluster is None
        assert f"ray.address=127.0.0.1:{closed_port}: no Ray" in finding.found
        assert "ray start --head" in finding.cure


def test_dtype_is_held_against_the_device() -> None:
    on_cpus = Cluster(Shape(2, 0.0, 1), Resources(1, 2.0, 0.0, 2))
    assert _device(ScoringSettings(), on_cpus).verdict == "ok"
    slow = _device(ScoringSettings(dtype="float16"), on_cpus)
    assert slow.verdict == "warning" and "float16 is slow on most CPUs" in slow.found
    assert slow.cure == "set scoring.dtype=float32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU that PyTorch can use")
def test_gpus_that_pytorch_cannot_use_are_refused_where_actors_would_be() -> None:
    here = Cluster(Shape(2, 1.0, 1), Resources(1, 8.0, 2.0, 2))
    finding = _device(ScoringSettings(), here)
    assert finding.verdict == "refused" and "ray.gpus_per_worker=0" in finding.cure
    elsewhere = Cluster(Shape(2, 1.0, 1), Resources(2, 8.0, 2.0, 0))
    assert _device(ScoringSettings(), elsewhere).verdict == "skipped"


def test_disk_is_held_against_what_the_caches_may_take(tmp_path: Path) -> None:
    fine = _disk(tmp_path / "not" / "yet", 10**6, 3)
    assert fine.verdict == "ok" and "3 workers take 0.0 GB" in fine.found
    small = _disk(tmp_path, 10**18, 2)
    assert small.verdict == "warning" and "may fill 2000000000.0 GB" in small.found
    assert "set scoring.cache_gigabytes=" in small.cure
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    refused = _disk(tmp_path / "file", 1, 1)
    assert refused.verdict == "refused" and "cannot be written to (Not a directory)" in refused.found


def test_dask_runs_a_trial_and_says_where_it_cannot(
    closed_port: int, silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _dask("threads", None).verdict == "ok"
    assert _dask("distributed", None).verdict == "ok"
    assert _dask("slurm", None) == Finding(
        "Dask", "refused", "dask.scheduler=slurm", "choose threads, distributed or ray"
    )
    finding = _dask("distributed", f"tcp://127.0.0.1:{closed_port}")
    assert finding.verdict == "refused" and f"127.0.0.1:{closed_port}: no Dask scheduler answers" in finding.found
    assert "dask scheduler" in finding.cure
    monkeypatch.setattr("klray.doctor.PATIENCE_SECONDS", 1.0)
    silent = _dask("distributed", f"127.0.0.1:{silent_port}")
    assert silent.verdict == "refused" and "(has not answered within 1 s)" in silent.found


def test_what_takes_too_long_is_left_behind_and_errors_come_through() -> None:
    assert bounded(lambda: 3) == 3
    with pytest.raises(KlrayError, match="said so"):
        bounded(lambda: (_ for _ in ()).throw(KlrayError("said so")))
    ended = threading.Event()
    with pytest.raises(TimeoutError, match=r"has not answered within 0\.1 s"):
        bounded(lambda: ended.wait(30), 0.1)
    ended.set()
    with pytest.raises(TimeoutError, match="the disk"):
        bounded(lambda: (_ for _ in ()).throw(TimeoutError("the disk")))
    assert doctor.PATIENCE_SECONDS == 15
