"""Group ``dask``: the scheduler that analyses."""

from __future__ import annotations

from dataclasses import dataclass

from klray.errors import KlrayError


@dataclass
class DaskConfig:
    """The Dask scheduler that analyses."""

    scheduler: str = "threads"  # threads, distributed or ray
    address: str | None = None
    threads: int | None = None
    memory_limit: str = "4GiB"  # an analysis that would need more is refused


def memory_bytes(text: str) -> int:
    """Bytes of a size such as 4GiB or 500MB."""
    from dask.utils import parse_bytes  # noqa: PLC0415 - 0.2 s, and help needs no Dask

    try:
        return int(parse_bytes(text))
    except ValueError as error:
        raise KlrayError(f"dask.memory_limit={text}: write a size such as 4GiB or 500MB") from error
