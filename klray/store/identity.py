"""What determines a column: everything that went into its numbers, and nothing else."""

import dataclasses
import functools
import hashlib
import json

NUMERICS_VERSION = 1  # raise when the same inputs give other log-likelihoods than before, beyond rounding
TOKENIZATION = "tokenizer-defaults/first-token-uncounted/no-truncation"


@dataclasses.dataclass(frozen=True)
class Identity:
    """Identity of a column. Two columns with equal identities hold the same log-likelihoods, up to rounding.

    ``commit`` is the resolved commit sha, for a folder the hash of its files; a checkpoint that could not be resolved
    has ``unresolved:<revision>``, under which its failure is recorded.
    """

    repository: str
    commit: str
    text_set: str  # fingerprint
    dtype: str = "float32"
    quantization: str = "none"
    lens: str = "none"
    tokenization: str = TOKENIZATION
    numerics: int = NUMERICS_VERSION

    @functools.cached_property
    def key(self) -> str:
        """SHA-256 of the identity as canonical JSON (sorted names, no spaces): 64 hex digits."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def unresolved(revision: str) -> str:
    """Stands for the commit of a revision that could not be resolved."""
    return f"unresolved:{revision}"
