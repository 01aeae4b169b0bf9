"""S3 servers that fault campaigns run against, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import s3fs

from tests.s3_server import CREDENTIALS, S3Server, ceph_server

START_SECONDS = 240


@contextlib.contextmanager
def server(name: str) -> Iterator[S3Server]:
    """``moto`` or ``ceph``; this process is its user meanwhile."""
    with contextlib.ExitStack() as stack:
        if name == "ceph":
            running: S3Server = stack.enter_context(ceph_server(Path(stack.enter_context(_temporary()))))
        else:
            running = stack.enter_context(_moto_process())
        stack.enter_context(mock.patch.dict(os.environ, running.environment))
        s3fs.S3FileSystem.clear_instance_cache()  # instances of before would keep the endpoint of then
        yield running


def new_bucket(running: S3Server) -> str:
    """Name of a new, empty bucket."""
    bucket = f"faults-{uuid.uuid4().hex[:12]}"
    running.make_bucket(bucket)
    return bucket


def _temporary() -> contextlib.AbstractContextManager[str]:
    return tempfile.TemporaryDirectory(prefix="klray-faults-")


@contextlib.contextmanager
def _moto_process() -> Iterator[S3Server]:
    """moto in a process of its own: its threads would share the interpreter with the clients."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + START_SECONDS
        while not _answers(endpoint):
            assert process.poll() is None, "moto did not start"
            assert time.monotonic() < until, f"moto does not answer after {START_SECONDS} s"
            time.sleep(0.1)
        yield S3Server({**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"})
    finally:
        process.kill()
        process.wait()


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(endpoint, timeout=5):
            return True
    except OSError:
        return False
