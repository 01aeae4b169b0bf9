"""S3 servers for tests, over real HTTP on loopback: moto everywhere, Ceph where Debian's radosgw is installed."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "klray-test-key", "AWS_SECRET_ACCESS_KEY": "klray-test-secret"}
CEPH = Path(__file__).parent.parent / "infra/local_s3/ceph.sh"


@dataclasses.dataclass(frozen=True)
class S3Server:
    """A server that runs, and one of its users: ``environment`` holds the four variables that a user would set."""

    environment: dict[str, str] = dataclasses.field(repr=False)

    @property
    def endpoint(self) -> str:
        return self.environment["AWS_ENDPOINT_URL"]

    def client(self) -> Any:
        """The user's boto3 client."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.environment["AWS_DEFAULT_REGION"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
        )

    def make_bucket(self, bucket: str) -> None:
        """Create an empty bucket, which is this user's."""
        self.client().create_bucket(Bucket=bucket)


@dataclasses.dataclass(frozen=True)
class CephServer(S3Server):
    """Ceph's gateway with ``folder`` as its home; this user owns the buckets that tests make."""

    folder: Path

    def user(self, name: str) -> S3Server:
        """Another user, without any bucket."""
        found = subprocess.run([str(CEPH), "user", str(self.folder), name], capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        return S3Server(read_variables(self.folder / f"{name}.env"))


def read_variables(path: Path) -> dict[str, str]:
    """NAME=VALUE lines, as a shell would read them."""
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def why_no_ceph() -> str | None:
    """Why Ceph cannot be started here; None if it can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # as ceph.sh looks for it
    return None if shutil.which("radosgw", path=path) else "there is no radosgw on the PATH (infra/README.md)"


@contextlib.contextmanager
def moto_server() -> Iterator[S3Server]:
    """A moto server. It believes every user and enforces no policy.

    Its threads take turns at puts: on its own, moto looks whether a key is taken and then writes, and two could win.
    """
    from moto.s3.responses import S3Response  # takes seconds, and not every run of the tests starts it
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    put, turn = S3Response.put_object, threading.Lock()

    def put_in_turn(self: S3Response) -> Any:
        with turn:
            return put(self)

    S3Response.put_object = put_in_turn
    server.start()
    try:
        host, port = server.get_host_and_port()
        place = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
        yield S3Server({**CREDENTIALS, **place})
    finally:
        server.stop()
        S3Response.put_object = put


@contextlib.contextmanager
def ceph_server(folder: Path) -> Iterator[CephServer]:
    """Ceph's RADOS Gateway; ends with this process, however that ends."""
    command = [str(CEPH), "run", "--memory", str(folder)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # closes when this process is killed, and then ceph.sh stops
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C is for pytest, which then ends the server
    )
    assert process.stdout
    try:
        first = process.stdout.readline()
        assert first.startswith("ready"), f"{first}{process.stdout.read()}"
        yield CephServer(read_variables(folder / "credentials.env"), folder)
    finally:
        process.terminate()
        rest, _ = process.communicate(timeout=480)
        assert process.returncode == 0, rest
