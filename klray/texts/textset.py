"""TextSet: texts, byte lengths, domains and a fingerprint; how documents become texts, and n of them are drawn."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from klray.errors import KlrayError, refuse_unfit

_HALF_PAIR = re.compile("[\ud800-\udfff]")
MAX_BYTES = 1024
MIN_BYTES = 256


@dataclass(frozen=True)
class TextSet:
    """N texts, each with the name of its domain.

    Two text sets with equal fingerprints give every model the same log-likelihoods, whatever their names and domains.
    The name is for people: where the texts come from and how they were drawn.

    Raises KlrayError: there are no texts, or not as many domains as texts; the name or a domain cannot be printed.
    """

    name: str
    texts: tuple[str, ...]
    domains: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.texts:
            raise KlrayError(f"text set '{self.name}' has no texts: a text set needs at least one")
        wrong = next((number for number, text in enumerate(self.texts) if not is_unicode(text)), None)
        if wrong is not None:
            raise KlrayError(f"text set '{self.name}': text {wrong:,} is no Unicode string: it has no UTF-8 form")
        refuse_unfit("text set", {"name": self.name, "domains": self.domains})
        if len(self.texts) != len(self.domains):
            raise KlrayError(
                f"text set '{self.name}' has {len(self.texts):,} texts and {len(self.domains):,} domains: "
                "give one domain per text"
            )

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def n_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each text, int32 (N,)."""
        return np.array([len(text.encode()) for text in self.texts], dtype=np.int32)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the texts in order, 64 hex digits.

        Each text enters as the number of its UTF-8 bytes (8 bytes, big-endian) and those bytes, so that no two
        sequences of texts make the same stream. Name and domains do not enter: they change no score.
        """
        digest = hashlib.sha256()
        for text in self.texts:
            data = text.encode()
            digest.update(len(data).to_bytes(8, "big"))
            digest.update(data)
        return digest.hexdigest()


def is_unicode(text: object) -> bool:
    """Whether it is a string without half of a surrogate pair, which has no UTF-8 form and so no number of bytes."""
    return isinstance(text, str) and _HALF_PAIR.search(text) is None


def chunk(document: str, max_bytes: int = MAX_BYTES, min_bytes: int = MIN_BYTES) -> list[str]:
    """Cut a document into texts of at most ``max_bytes`` UTF-8 bytes; drop those of ``min_bytes`` bytes or fewer.

    Each cut falls as late as it can without splitting a UTF-8 character. Source: arXiv 2502.16173 (1,024 and 256
    bytes).

    Raises KlrayError: ``max_bytes`` cannot hold every UTF-8 character.
    """
    if max_bytes < 4:
        raise KlrayError(f"max_bytes={max_bytes}: one UTF-8 character takes up to 4 bytes; set max_bytes to 4 or more")
    data = document.encode()
    pieces = []
    start = 0
    while start < len(data):
        end = min(start + max_bytes, len(data))
        # 0b10xxxxxx is the second or a later byte of a character: the cut has to move before its first byte.
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        if end - start > min_bytes:
            pieces.append(data[start:end].decode())
        start = end
    return pieces


def allocate(available: Sequence[int], n: int) -> list[int]:
    """Split n over groups evenly, as far as each group has members; ``sum(available) >= n``.

    What is left over by a small group, and by division, goes to the others, earlier groups first.
    """
    shares = [0] * len(available)
    while (rest := n - sum(shares)) > 0:
        open_groups = [g for g, count in enumerate(available) if shares[g] < count]
        for position, g in enumerate(open_groups):
            share = rest // len(open_groups) + (position < rest % len(open_groups))
            shares[g] = min(available[g], shares[g] + share)
    return shares


def draw(
    name: str,
    labelled: Iterable[tuple[str, str]],
    *,
    n: int | None,
    seed: int,
    domain: str | None,
    evenly: bool = False,
) -> TextSet:
    """Make the text set of n of the (text, domain) pairs, in their own order.

    Every text gets a uniform random number (``seed`` is that of ``numpy.random.default_rng``) and the n smallest are
    taken, so the draw of n texts is contained in the draw of more with the same seed. None takes all texts, or all
    domains; ``evenly`` splits n over the domains, as far as each has texts. ``name`` is the source, also for errors.

    Raises KlrayError: no such domain, no texts, n < 1, or n larger than the number of texts.
    """
    pairs = list(labelled)
    if not pairs:
        raise KlrayError(
            f"{name} gives no texts: nothing is left after pieces of {MIN_BYTES} bytes or fewer are dropped; "
            "give longer documents or more of them"
        )
    counts = Counter(label for _, label in pairs)
    if domain is not None:
        if domain not in counts:
            there = ", ".join(f"{label} ({count:,} texts)" for label, count in sorted(counts.items()))
            raise KlrayError(
                f"domain '{domain}' is not in {name}, which has: {there}; set texts.domain (in Python: domain=) to one "
                "of them"
            )
        pairs = [pair for pair in pairs if pair[1] == domain]
        name = f"{name} domain={domain}"
    if n is not None:
        if n < 1:
            raise KlrayError(
                f"texts.n={n}: a text set needs at least one text; set texts.n (in Python: n=) to 1 or more, or to "
                "null (None) for all"
            )
        if n > len(pairs):
            raise KlrayError(
                f"texts.n={n:,} texts were asked for, {name} has {len(pairs):,}: set texts.n (in Python: n=) to that "
                "or less"
            )
        priority = np.random.default_rng(seed).random(len(pairs))
        groups = sorted({label for _, label in pairs}) if evenly else [None]
        members = [[i for i, pair in enumerate(pairs) if group in (None, pair[1])] for group in groups]
        shares = allocate([len(group) for group in members], n)
        chosen = sorted(
            i
            for group, share in zip(members, shares, strict=True)
            for i in sorted(group, key=lambda i: priority[i])[:share]
        )
        pairs = [pairs[i] for i in chosen]
        name = f"{name} n={n} seed={seed}"
    return TextSet(name, tuple(text for text, _ in pairs), tuple(label for _, label in pairs))
