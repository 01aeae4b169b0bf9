"""Errors that a user can act on: each message says what was asked, what was found and what to do."""

import importlib.util
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

from klray.words.outside import fault, sentence

Reason = Literal[
    "repository_not_found",  # missing, private, or a wrong name
    "gated",  # exists, but its terms must be accepted or a token given
    "revision_not_found",
    "no_safe_weights",  # nothing but formats that could run code when loaded
    "checksum_mismatch",  # bytes on disk are not the bytes that the hub announced
    "download_failed",  # network, after the retries
    "disk_full",
    "load_failed",  # unknown architecture, broken config or broken weights
    "not_causal",  # an encoder, a masked model, a classifier: what it gives is no probability of the next token
    "text_lost",  # a text is not in its tokens
    "timed_out",  # tokenising took too long
    "text_too_long",  # a text has more tokens than the model's context
    "non_finite",  # a log-likelihood came out as NaN or infinity
    "out_of_memory",
    "limit_exceeded",  # it took more seconds or more memory than a checkpoint of its size may
    "worker_died",  # the process that scored it was killed or crashed
    "unexpected",  # anything else: the message has the type of the error
]


# Which extra brings what not every installation has.
EXTRAS = {
    **dict.fromkeys(("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "ray", "scipy"), "score"),
    "sentencepiece": "score",
    "sklearn": "maps",
    "distributed": "distributed",
    "bitsandbytes": "quant",
    "accelerate": "multi_gpu",
    "gguf": "gguf",
    "obstore": "obstore",
    "pyarrow": "parquet",
}


def lacks(error: ModuleNotFoundError) -> str:
    """What is not installed and how to install it, in one sentence; an error with another cause raises again."""
    library = (error.name or "").partition(".")[0]
    if library not in EXTRAS or not (sentence := needed("this", library)):
        raise error
    return sentence


def needed(what: str, *libraries: str) -> str:
    """Which libraries ``what`` needs and are not installed, and the extra that brings them; "" if all are there."""
    missing = [each for each in libraries if importlib.util.find_spec(each) is None]
    return f"{what} needs {' and '.join(missing)}: pip install 'klray[{EXTRAS[missing[0]]}]'" if missing else ""


class KlrayError(ValueError):
    """Base of every error that klray raises for its users: a message of one line, whatever it quotes."""

    def __init__(self, message: str, *details: object):
        super().__init__(sentence(message), *details)


def refuse_unfit(what: str, fields: Mapping[str, object]) -> None:
    """Raise the KlrayError that names the field of ``fields`` which is not fit to be kept, if there is one.

    Readers of every kind make arrays, tables and pages of what is kept: a value that they cannot take stops them all.
    """
    if why := fault(fields):
        raise KlrayError(f"{what}: {why}; give it another value")


class CheckpointError(KlrayError):
    """One checkpoint cannot be scored. A sweep records it with its reason and goes on."""

    def __init__(self, message: str, reason: Reason):
        super().__init__(message, reason)  # both in args, so that it survives pickling between processes
        self.message: str = self.args[0]
        self.reason: Reason = reason

    def __str__(self) -> str:
        return self.message


class StoreError(KlrayError):
    """The store cannot do what was asked: another text set, a newer schema, damaged or missing objects."""


class StoreDamagedError(StoreError):
    """What the store holds is not what was written, or is missing; the message says how it is mended."""


class StoreUnreachableError(StoreError):
    """The store's server is silent, busy or refuses: of what it holds nothing was learnt, least of all damage."""


@dataclass(frozen=True)
class Pauses:
    """How long to wait before what was in vain is tried again: ``first`` seconds, doubled each time.

    There are ``attempts`` at most. Those who wait together come back at different times, up to ``spread`` times a pause
    later. A server that asks for more than ``longest`` seconds is not waited for.
    """

    first: float
    attempts: int
    spread: float
    longest: float = math.inf

    def after(self, failed: int, asked: float | None = None) -> float | None:
        """Seconds before the next attempt after ``failed`` in a row, or as the server ``asked``; None: no more of them.

        >>> [Pauses(0.5, 3, 0.1).after(failed) for failed in (1, 2, 3)]
        [0.5, 1.0, None]
        """
        seconds = self.first * 2.0 ** (failed - 1) if asked is None else asked
        return seconds if failed < self.attempts and seconds <= self.longest else None

    def spread_over(self, seconds: float) -> float:
        """A pause of ``seconds`` as one of those who wait together keeps it."""
        return seconds * random.uniform(1, 1 + self.spread)  # noqa: S311 - jitter, not cryptography


def seconds_named(retry_after: str) -> float | None:
    """Seconds from now that a Retry-After header names, as a number or a date (RFC 9110); None when it names none.

    >>> seconds_named("120"), seconds_named("soon")
    (120.0, None)
    """
    words = retry_after.strip()
    if words.isdecimal():
        return float(words)
    try:
        return max(0.0, (parsedate_to_datetime(words) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
