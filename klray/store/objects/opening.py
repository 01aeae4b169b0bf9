"""From the URL of a place to its objects."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from klray.errors import StoreError, lacks
from klray.store.objects.base import Objects
from klray.store.objects.folder import FolderObjects

BACKENDS = ("s3fs", "obstore")
DEFAULT_BACKEND = BACKENDS[0]


def open_objects(url: str, storage_options: Mapping[str, Any] | None = None) -> Objects:
    """The objects below ``url``.

    A path or ``file://`` for a folder, ``s3://bucket/prefix`` for S3, ``https://`` (or ``http://``) for reading what a
    web server shows. ``storage_options["backend"]`` says through which library S3 is asked: s3fs or obstore.

    Raises StoreError: the URL has another scheme, a password or a prefix that libraries do not all take as it stands,
    the backend is unknown, or the library is not installed.
    """
    options = dict(storage_options or {})
    backend = options.pop("backend", DEFAULT_BACKEND)
    scheme, separator, rest = url.partition("://")
    if _gives_access(url):
        place = f"{scheme}://..." if scheme in ("s3", "https", "http") else "..."
        raise StoreError(
            f"store.url={place} holds a user, a password or a signature, which would be shown and kept; take "
            "them out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        )
    if not separator:
        if one := re.match(r"(s3|https?|file):", url):
            raise StoreError(f"store.url={one[1]}:...: write {one[1]}:// with two slashes")
        return FolderObjects(Path(url))
    if scheme == "file":
        return FolderObjects(Path(rest))
    if scheme not in ("s3", "https", "http"):
        raise StoreError(f"store.url={url}: klray opens folders, s3:// and https:// stores, not {scheme}://")
    if backend not in BACKENDS:
        raise StoreError(f"store.backend={backend}: klray asks S3 through {' or '.join(BACKENDS)}")
    bucket = rest.split("/")[0]
    if scheme == "s3" and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
        raise StoreError(f"store.url={url}: {bucket!r} cannot be the name of a bucket; write s3://bucket/prefix")
    if scheme == "s3" and (odd := _misread(rest.rstrip("/").split("/")[1:])):
        shown = ascii(url)[1:-1] if not url.isprintable() else url
        raise StoreError(f"store.url={shown}: {odd}; write s3://bucket/prefix without")
    try:
        return _opened(backend if scheme == "s3" else scheme, url, options)
    except ModuleNotFoundError as error:
        raise StoreError(f"store.url={url}: {lacks(error)}") from error


def _opened(way: str, url: str, options: Mapping[str, Any]) -> Objects:
    # Each library takes 0.2 to 0.5 s to import: only who opens such a store waits for it.
    if way == "s3fs":
        from klray.store.objects.s3 import S3Objects  # noqa: PLC0415

        return S3Objects(url, options)
    if way == "obstore":
        from klray.store.objects.s3_obstore import ObstoreObjects  # noqa: PLC0415

        return ObstoreObjects(url, options)
    from klray.store.objects.web import WebObjects  # noqa: PLC0415

    return WebObjects(url, options)


def _gives_access(url: str) -> bool:
    """Whether a URL holds what is nobody else's business; also one with a slash too few, or no scheme, as typed."""
    if re.match("file:/", url):
        return False
    if re.match(r"(//)?[^/:]+:.*@", url, re.DOTALL):  # KEY:SECRET@bucket, s3:/KEY:SECRET@bucket, s3://a@b
        return True
    scheme, separator, rest = url.partition("://")
    if not separator:
        return False
    host = rest.split("/")[0]
    if scheme == "s3":
        return bool(re.search("[:%?#]", host))  # no bucket's name; KEY:SECRET%40bucket
    return bool(re.search("[?#]", rest) or re.search("[:%]", re.sub(r"^\[[\da-fA-F:.]+\]|:\d+$", "", host)))


def _misread(parts: list[str]) -> str:
    """What in a prefix the libraries that ask S3 do not all take as it stands; "" for a prefix that is a name."""
    for part in parts:
        if part in ("", ".", ".."):
            return f"a part of the prefix is {part!r}, which S3 takes for a name and klray's libraries do not"
        if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", part):
            return f"a part of the prefix is {part!r}, with characters that S3's answers cannot hold"
        if "?versionId=" in part:  # s3fs asks for a version of what stands before it
            return "?versionId= in it asks for a version of an object, and a store has none"
    return ""
