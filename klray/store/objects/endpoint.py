"""The S3 endpoint of a store: whether it is an address, and whether anybody is there, asked with little patience."""

import re
import socket
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from botocore.configprovider import ConfiguredEndpointProvider
from botocore.exceptions import BotoCoreError
from botocore.session import Session

from klray.errors import StoreError
from klray.store.objects.base import Objects
from klray.words.secrets import bare_address

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0


def check_endpoint(storage_options: Mapping[str, Any]) -> None:
    """Refuse an endpoint that is no address of a server, before a library says so and repeats a password in it.

    Raises StoreError: it has another form than ``http://host:port/path``, where user and password may stand before the
    host.
    """
    given = storage_options.get("client_kwargs", {}).get("endpoint_url") or storage_options.get("endpoint_url")
    url = given or _configured_endpoint(storage_options.get("profile"))
    where = "store.storage_options.endpoint_url" if given else "AWS_ENDPOINT_URL (or endpoint_url of the profile)"
    if not url or _is_address(str(url)):
        return
    shown = bare_address(str(url))
    shown = f"...@{shown.rpartition('://')[2]}" if "@" in str(url) else shown
    raise StoreError(
        f"{where} is {shown!r}, which is no address of a server: write it as https://host or http://host:port"
    )


def _configured_endpoint(profile: str | None) -> str:
    """Of the environment and the profile; "" if there is none, or a profile that the libraries will complain of."""
    session = Session(profile=profile)
    try:
        return ConfiguredEndpointProvider(session.full_config, session.get_scoped_config(), "s3").provide() or ""
    except BotoCoreError:
        return ""


def _is_address(url: str) -> bool:
    """Whether botocore, aiohttp and obstore all take it: other characters make the last panic."""
    letters = r"[\w.~%!$&'()*+,;=:-]"
    label = r"(?!-)[a-z\d-]{1,63}(?<!-)"
    host = rf"(?:\[[\da-f:.]+\]|{label}(?:\.{label})*\.?)"
    found = re.fullmatch(rf"https?://(?:{letters}*@)?{host}(:\d{{1,5}})?(?:/(?:{letters}|/)*)?", url, re.A | re.I)
    return found is not None and int((found[1] or ":0")[1:]) < 2**16 and url.startswith("http")


def impatient(storage_options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with which one try is all that a request gets; as given, botocore alone would make five."""
    patience: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
    if storage_options.get("backend") != "obstore":  # which makes one
        patience["retries"] = {"mode": "standard", "total_max_attempts": 1}
    return {**storage_options, "config_kwargs": {**patience, **storage_options.get("config_kwargs", {})}}


def why_silent(objects: Objects) -> str:
    """Why no connection can be made to the objects' S3 server; "" if one can, and behind a proxy, which may know more.

    Raises ValueError: the endpoint is no URL.
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
        return f"{bare_address(f'{parts.scheme}://{parts.netloc}')} does not answer ({error})"
    return ""
