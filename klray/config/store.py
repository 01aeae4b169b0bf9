"""Group ``store``: where columns, snapshots and results live; and what ``klray verify`` does there."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from klray.errors import KlrayError


class Backend(Enum):
    """The library that sends requests to S3."""

    s3fs = "s3fs"
    obstore = "obstore"  # about half of the CPU time; an extra


@dataclass
class StoreConfig:
    """Where columns, snapshots and results live."""

    url: str | None = None  # a folder, or s3://bucket/prefix
    backend: Backend = Backend.s3fs
    storage_options: dict[str, Any] = field(default_factory=dict)  # for the backend; never credentials
    single_writer: bool = False  # one job at a time writes here: S3 servers without conditional puts will do then


@dataclass
class VerifyConfig:
    """What klray verify does about what it finds."""

    repair: bool = False  # take damaged columns out, and remove leftovers
    # With repair: ids of damaged snapshots that nobody cites; they are removed with their results
    snapshots: list[str] = field(default_factory=list)
    grace_hours: float = 24.0  # leftovers that were written to more recently stay: their writer may be at work


@dataclass
class StatusConfig:
    """What klray status does beside telling once."""

    watch: bool = False  # tell of the running jobs again and again, until none is left
    every_seconds: float = 30.0  # between two looks


def store_url(config: StoreConfig) -> str:
    """The store's place; it has no default, because results should not land where nobody looks."""
    if not config.url:
        raise KlrayError("no store was named: set store.url= to a folder or to s3://bucket/prefix")
    secrets = sorted(key for key in _keys(config.storage_options) if re.search(r"(?i)secret|token|password|^key$", key))
    if secrets:
        raise KlrayError(
            f"store.storage_options has {', '.join(secrets)}, and credentials do not belong in a config, which is "
            "printed and kept; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, in the environment"
        )
    return config.url


def storage_options(config: StoreConfig) -> dict[str, Any]:
    """Options for whoever opens the store, the backend among them."""
    return {"backend": config.backend.value, **config.storage_options}


def _keys(options: Mapping[str, Any]) -> list[str]:
    nested = [key for value in options.values() if isinstance(value, Mapping) for key in _keys(value)]
    return [*(str(key) for key in options), *nested]
