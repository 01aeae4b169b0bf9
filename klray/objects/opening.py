"""From the URL of a place to its objects."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from klray.errors import StoreError
from klray.objects.base import Objects
from klray.objects.folder import FolderObjects


def open_objects(url: str, storage_options: Mapping[str, Any] | None = None) -> Objects:
    """The objects below ``url``.

    A path or ``file://`` for a folder, ``s3://bucket/prefix`` for S3 through s3fs, ``https://`` (or ``http://``) for
    reading what a web server shows.

    Raises
    ------
    StoreError
        The URL has another scheme or holds a password, or s3fs is not installed.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return FolderObjects(Path(url))
    if "@" in rest.split("/")[0]:
        raise StoreError(
            f"store.url={scheme}://...@{rest.split('@', 1)[1]} holds a user or a password, which would be shown and "
            "kept; take them out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        )
    if scheme == "file":
        return FolderObjects(Path(rest))
    modules = {"s3": ("s3", "S3Objects"), "https": ("web", "WebObjects"), "http": ("web", "WebObjects")}
    if scheme not in modules:
        raise StoreError(f"store.url={url}: klray opens folders, s3:// and https:// stores, not {scheme}://")
    name, kind = modules[scheme]
    try:
        module = importlib.import_module(f"klray.objects.{name}")  # s3fs, which brings aiohttp, is an extra
    except ModuleNotFoundError as error:
        raise StoreError(f"store.url={url} needs s3fs, which is not installed; pip install 'klray[s3]'") from error
    objects: Objects = getattr(module, kind)(url, dict(storage_options or {}))
    return objects
