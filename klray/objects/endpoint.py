"""The S3 endpoint of a store: whether anybody is there, asked with little patience."""

from __future__ import annotations

import importlib
import socket
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0


def impatient(storage_options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for s3fs with which one try is all that a request gets; as given, botocore alone would make five."""
    patience = {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": READ_SECONDS,
        "retries": {"mode": "standard", "total_max_attempts": 1},
    }
    return {**storage_options, "config_kwargs": {**patience, **storage_options.get("config_kwargs", {})}}


def why_silent(url: str, storage_options: Mapping[str, Any]) -> str:
    """Why no connection can be made to the server of an S3 URL; "" if one can, and behind a proxy, which may know more.

    Raises
    ------
    ValueError
        The endpoint is no URL.
    """
    if not url.startswith("s3://"):
        return ""
    s3fs = importlib.import_module("s3fs")  # an extra
    endpoint = str(s3fs.S3FileSystem(**{**storage_options, "skip_instance_cache": True}).s3.meta.endpoint_url)
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return ""
    try:
        socket.create_connection((host, parts.port or (80 if parts.scheme == "http" else 443)), CONNECT_SECONDS).close()
    except OSError as error:
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]} does not answer ({error})"
    return ""
