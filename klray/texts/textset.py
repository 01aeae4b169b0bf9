"""TextSet: texts, byte lengths, domains and a fingerprint; how documents become texts, and n of them are drawn."""

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from klray.errors import KlrayError, refuse_unfit
from klray.words.numbers import counted

_HALF_PAIR = re.compile("[\ud800-\udfff]")
MAX_BYTES = 1024
MIN_BYTES = 256
TEXT_BYTES = 1 << 20  # of a text at most: no model's context holds as much, and tokenisers take minutes
MOST_CHARACTERS = 1 << 30  # of all texts
MOST_DOMAINS = 100_000


@dataclass(frozen=True)
class TextSet:
    """N texts, each with the name of its domain.

    Two text sets with equal fingerprints give every model the same log-likelihoods, whatever their names and domains.
    The name is for people: where the texts come from and how they were drawn.

    Raises KlrayError: there are no texts, or not as many domains as texts; a text is no Unicode or has over 1 MB; the
    name or a domain cannot be printed.
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
        sizes = (len(text.encode()) if len(text) > TEXT_BYTES // 4 else 0 for text in self.texts)
        long = next(((number, size) for number, size in enumerate(sizes) if size > TEXT_BYTES), None)
        if long is not None:
            raise KlrayError(
                f"text set '{self.name}': text {long[0]:,} has {long[1]:,} bytes, and a text may have {TEXT_BYTES:,}: "
                "cut documents into texts (texts.chunked=false, in Python: klray.texts.chunk)"
            )
        refuse_unfit("text set", {"name": self.name, "domains": self.domains})
        if len(self.texts) != len(self.domains):
            raise KlrayError(
                f"text set '{self.name}' has {counted(len(self.texts), 'text')} and "
                f"{counted(len(self.domains), 'domain')}: give one domain per text"
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
    return list(pieces([document.encode()], max_bytes, min_bytes))


def pieces(blocks: Iterable[bytes], max_bytes: int = MAX_BYTES, min_bytes: int = MIN_BYTES) -> Iterator[str]:
    """The texts of a document, as :func:`chunk`, from its UTF-8 bytes as they are read."""
    if max_bytes < 4:
        raise KlrayError(f"max_bytes={max_bytes}: one UTF-8 character takes up to 4 bytes; set max_bytes to 4 or more")
    data = b""
    for block in blocks:
        data += block
        start = 0
        while len(data) - start > max_bytes:
            end = start + max_bytes
            # 0b10xxxxxx is the second or a later byte of a character: the cut has to move before its first byte.
            while data[end] & 0xC0 == 0x80:
                end -= 1
            if end - start > min_bytes:
                yield data[start:end].decode()
            start = end
        data = data[start:]
    if len(data) > min_bytes:
        yield data.decode()


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
    if n is not None and n < 1:
        raise KlrayError(
            f"texts.n={n}: a text set needs at least one text; set texts.n (in Python: n=) to 1 or more, or to "
            "null (None) for all"
        )
    counts: Counter[str] = Counter()
    found = _counted(name, labelled, counts)
    of_domain = ((number, pair) for number, pair in enumerate(p for p in found if domain in (None, p[1])))
    groups = _all(name, of_domain) if n is None else _smallest(of_domain, n, seed, evenly)
    if not counts:
        raise KlrayError(
            f"{name} gives no texts: nothing is left after pieces of {MIN_BYTES} bytes or fewer are dropped; "
            "give longer documents or more of them"
        )
    if domain is not None:
        if domain not in counts:
            there = ", ".join(f"{label} ({counted(count, 'text')})" for label, count in sorted(counts.items()))
            raise KlrayError(
                f"domain '{domain}' is not in {name}, which has: {there}; set texts.domain (in Python: domain=) to one "
                "of them"
            )
        counts = Counter({domain: counts[domain]})
        name = f"{name} domain={domain}"
    if n is not None:
        if n > counts.total():
            raise KlrayError(
                f"texts.n={n:,} asks for {counted(n, 'text')}, {name} has {counts.total():,}: set texts.n (in Python: "
                "n=) to that or less"
            )
        shares = allocate([counts[group] for group in sorted(counts)], n) if evenly else [n]
        groups = [group[:share] for group, share in zip(groups, shares, strict=True)]
        name = f"{name} n={n} seed={seed}"
    pairs = [pair for _, pair in sorted(each for group in groups for each in group)]
    return TextSet(name, tuple(text for text, _ in pairs), tuple(label for _, label in pairs))


Numbered = tuple[int, tuple[str, str]]  # the place of a (text, domain) pair among those it is drawn from, and the pair


def _counted(name: str, pairs: Iterable[tuple[str, str]], counts: Counter[str]) -> Iterator[tuple[str, str]]:
    for pair in pairs:
        counts[pair[1]] += 1
        if len(counts) > MOST_DOMAINS:
            raise KlrayError(
                f"{name} has more than {MOST_DOMAINS:,} domains: a domain is a kind of text; set texts.domain_field "
                "(in Python: domain_field=) to a field that many texts share"
            )
        yield pair


def _all(name: str, pairs: Iterable[Numbered]) -> list[list[Numbered]]:
    """All of them, in one group, as far as memory should go."""
    kept, size = [], 0
    for each in pairs:
        kept.append(each)
        size += len(each[1][0])
        if size > MOST_CHARACTERS:
            raise KlrayError(
                f"{name} has more than {MOST_CHARACTERS:,} characters in {counted(len(kept), 'text')}, and each "
                "worker holds them all: set texts.n (in Python: n=) to draw some"
            )
    return [kept]


def _smallest(pairs: Iterable[Numbered], n: int, seed: int, by_domain: bool) -> list[list[Numbered]]:
    """Those with the n smallest random numbers, smallest first: of all, or of each domain, by its name."""
    random = np.random.default_rng(seed)
    heaps: dict[str, list[tuple[float, int, Numbered]]] = {} if by_domain else {"": []}
    for each in pairs:
        heap = heaps.setdefault(each[1][1] if by_domain else "", [])
        entry = (-random.random(), -each[0], each)
        if len(heap) < n:
            heapq.heappush(heap, entry)
        elif entry > heap[0]:
            heapq.heapreplace(heap, entry)
    return [[each for _, _, each in sorted(heaps[name], reverse=True)] for name in sorted(heaps)]
