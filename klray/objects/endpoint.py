"""The S3 endpoint of a store: whether anybody is there, asked with little patience."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from klray.objects.base import Objects

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0


def impatient(storage_options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with which one try is all that a request gets; as given, botocore alone would make five."""
    patience: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": READ_SECONDS,
    }
    if storage_options.get("backend") != "obstore":  # which makes one
        patience["retries"] = {"mode": "standard", "total_max_attempts": 1}
    return {**storage_options, "config_kwargs": {**patience, **storage_options.get("config_kwargs", {})}}


def why_silent(objects: Objects) -> str:
    """Why no connection can be made to the objects' S3 server; "" if one can, and behind a proxy, which may know more.

    Raises
    ------
    ValueError
        The endpoint is no URL.
    """
    if not objects.endpoint:
        return ""
    parts = urlsplit(objects.endpoint)
    host = parts.hostname or ""
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return ""
    try:
        socket.create_connection((host, parts.port or (80 if parts.scheme == "http" else 443)), CONNECT_SECONDS).close()
    except OSError as error:
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]} does not answer ({error})"
    return ""
