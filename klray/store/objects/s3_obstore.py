"""The objects of a store on S3, through obstore: the same requests from Rust, for about half of the CPU time of s3fs.

Endpoint, region and credentials are looked up by botocore, as they are for s3fs: variables, AWS_PROFILE, ~/.aws, roles.
"""

import contextlib
import functools
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import NoCredentialsError
from obstore.exceptions import BaseError, GenericError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from klray.errors import StoreError
from klray.store.objects.base import Listed
from klray.store.objects.bucket import BucketObjects

if TYPE_CHECKING:
    from obstore import Attributes
    from obstore.store import S3Credential, S3CredentialProvider

CONNECT_SECONDS = 60.0  # botocore's
ANSWER_SECONDS = 300.0  # to a whole request: 50 MiB at 1.4 Mbit/s
PAGE_OBJECTS = 1000  # S3's
PARTS_ABOVE_BYTES = 50 * 2**20  # s3fs's: larger objects go up in parts, and their ETags say so
CREDENTIALS_KEPT = timedelta(minutes=5)  # botocore renews what expires, 10 to 15 minutes before it does
OPTIONS = (
    "anon",
    "endpoint_url",
    "profile",
    "client_kwargs.endpoint_url",
    "client_kwargs.region_name",
    "config_kwargs.connect_timeout",
    "config_kwargs.read_timeout",
)


class ObstoreObjects(BucketObjects):
    """Objects below ``s3://bucket/prefix``; options are those of s3fs that have a meaning here (``OPTIONS``)."""

    silence = (ConnectionError,)

    def __init__(self, url: str, storage_options: Mapping[str, Any]):
        super().__init__(url, storage_options)
        unknown = sorted(set(_names(storage_options)) - set(OPTIONS))
        if unknown:
            raise StoreError(
                f"store.storage_options has {', '.join(unknown)}, which mean nothing with store.backend=obstore; it "
                f"knows {', '.join(OPTIONS)}; take them out, or set store.backend=s3fs"
            )

    @functools.cached_property
    def _files(self) -> S3Store:
        session = self._session()
        place = self._client(session).meta
        endpoint = str(place.endpoint_url)
        patience = self._options.get("config_kwargs", {})
        bucket, _, prefix = self._root.partition("/")
        return S3Store(
            bucket,
            prefix=prefix or None,
            config={
                # All of it, because obstore looks for what is not given in the environment, by other rules.
                "aws_endpoint_url_s3": endpoint,
                "region": "us-east-1" if place.region_name in (None, "aws-global") else place.region_name,
                "skip_signature": self._anonymous,
                "conditional_put": "etag",
                "virtual_hosted_style_request": False,
                "disable_bulk_delete": True,
            },
            client_options={
                "allow_http": endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=patience.get("connect_timeout", CONNECT_SECONDS)),
                "timeout": timedelta(seconds=patience.get("read_timeout", ANSWER_SECONDS)),
            },
            retry_config={"max_retries": 0},  # _patiently repeats, and knows more of what S3 answers
            credential_provider=None if self._anonymous else _credentials(session),
        )

    @property
    def endpoint(self) -> str:
        return str(self._client(self._session()).meta.endpoint_url)

    def _client(self, session: Any) -> Any:
        """Botocore's own client, for what it makes of variables and profiles; it sends nothing."""
        options = {"endpoint_url": self._options.get("endpoint_url"), **self._options.get("client_kwargs", {})}
        region = options.get("region_name") or session.get_config_variable("region") or os.environ.get("AWS_REGION")
        return session.create_client(
            "s3",
            region_name=region,
            endpoint_url=options["endpoint_url"],
            config=Config(signature_version=UNSIGNED),  # credentials are looked up when they are needed
        )

    def _send(self, key: str, body: bytes | bytearray, *, new: bool = False, content_type: str = "") -> None:
        kind: Attributes | None = {"Content-Type": content_type} if content_type else None
        with _in_words():
            if new:
                self._files.put(key, body, attributes=kind, mode="create", use_multipart=False)
            else:
                self._files.put(key, body, attributes=kind, use_multipart=len(body) > PARTS_ABOVE_BYTES)

    def _copy(self, source: str, target: str, fingerprint: str) -> bool:
        # obstore copies without a condition. Looking first will do: what a snapshot's chunk holds is never replaced.
        with _in_words():
            if self._files.head(source)["e_tag"] != fingerprint:
                return False
            self._files.copy(source, target)
        return True

    def _fetch(self, key: str, most: int) -> bytes:
        with _in_words():
            answer = self._files.get(key)
            self._check_size(key, answer.meta["size"], most)
            return answer.bytes().to_bytes()

    def _list(self, prefix: str) -> list[str]:
        with _in_words():
            found = self._files.list_with_delimiter(prefix)
        paths = [*found["common_prefixes"], *(each["path"] for each in found["objects"])]
        return [path.rsplit("/", 1)[-1] for path in paths]

    def _page(self, prefix: str, mark: str) -> tuple[dict[str, Listed], str]:
        with _in_words():
            page = next(self._files.list(prefix, offset=mark or None, chunk_size=PAGE_OBJECTS), ())
        found = {each["path"]: Listed(each["last_modified"].astimezone(UTC), str(each["e_tag"])) for each in page}
        return found, page[-1]["path"] if len(page) == PAGE_OBJECTS else ""

    def _remove(self, key: str) -> None:
        with _in_words():
            self._files.delete(key)

    @staticmethod
    def _codes(error: BaseException | None) -> set[str]:
        return {
            code for pair in re.findall(r"status code: (\d{3})[^(]*(?:\(([\w.]+)\))?", str(error)) for code in pair
        } - {""}


def _names(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        yield from (f"{name}.{below}" for below in value) if isinstance(value, Mapping) else (name,)


def _credentials(session: Any) -> "S3CredentialProvider":
    found = session.get_credentials()
    if found is None:
        raise NoCredentialsError

    def now() -> "S3Credential":
        frozen = found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + CREDENTIALS_KEPT,
        }

    return now


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """Raise obstore's errors as OSErrors: ConnectionError without an answer, PermissionError, and so on.

    What S3 answered is in obstore's words alone. Of these stay the status and S3's code, not the whole answer.
    """
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        words = str(error).partition("\n\nDebug source")[0]
        code = re.search(r"<Code>([\w.]+)</Code>", words)
        words = words.partition(": <")[0] + (f" ({code[1]})" if code else "")
        if isinstance(error, FileNotFoundError) or "status code: 404" in words:
            raise FileNotFoundError(words) from error
        if isinstance(error, PermissionDeniedError | UnauthenticatedError):
            raise PermissionError(words) from error
        if "incorrectly configured region" in words:  # its words for a redirect that does not say where to
            raise OSError("status code: 301 (PermanentRedirect)") from error
        if isinstance(error, GenericError) and "status code: " not in words:
            raise ConnectionError(words) from error
        raise OSError(words) from error
